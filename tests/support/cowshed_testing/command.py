"""The command `cowshed` with a store of its own, as people and scripts use it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

COMMAND = str(Path(__file__).parents[3] / ".venv/bin/cowshed")


class Cowshed:
    def __init__(self, folder):
        self.root, self.run = f"{folder}/store", f"{folder}/run"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("COWSHED_")}
        self.env |= {"HOME": str(folder), "TERM": "xterm"}

    def words(self, *words):
        return [COMMAND, "--root", self.root, "--run-root", self.run, "--driver", "overlay", *words]

    def __call__(self, *words, status=0, **options):
        done = subprocess.run(self.words(*words), capture_output=True, env=self.env, timeout=120, text=True, **options)
        assert done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def lines(self, *words, **options):
        return self(*words, **options).stdout.splitlines()
