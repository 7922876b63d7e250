"""The command `cowshed` in children of a process that has imported all of it: a kill at a random moment meets the work
of a command and not the start of an interpreter, and a command costs no more than a fork.

`python -m cowshed_testing.forked` reads orders from standard input, one in a line: the words and a file for the output.
It answers with the child's number, and when it is asked for that by an empty line, with the child's wait status.
"""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

_PACKAGES = (
    "cowshed.cli", "cowshed.container", "cowshed.image", "cowshed.layers", "cowshed.registry", "cowshed.space",
    "cowshed.state", "cowshed.storage", "cowshed_driver_overlay",
)  # fmt: skip


class Forked:
    """`with Forked(cowshed, folder) as forked:` commands as `cowshed`, a `command.Cowshed`, would start them."""

    def __init__(self, cowshed, folder, **env):
        self._cowshed, self._output = cowshed, f"{folder}/forked-output"
        self._env = {**cowshed.env, "PYTHONPATH": str(Path(__file__).parents[1]), **env}
        self._took = {}  # by words, seconds

    def __enter__(self):
        python = Path(self._cowshed.words()[0]).with_name("python")
        self._process = subprocess.Popen(
            [python, "-m", "cowshed_testing.forked"],
            env=self._env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _start(self, words):
        order = {"words": self._cowshed.words(*words)[1:], "output": self._output}
        self._process.stdin.write(json.dumps(order) + "\n")
        return int(self._process.stdout.readline())

    def _ended(self):
        self._process.stdin.write("\n")
        return os.waitstatus_to_exitcode(int(self._process.stdout.readline()))

    def __call__(self, *words):
        """What a command prints, which succeeds."""
        since = time.monotonic()
        self._start(words)
        status, output = self._ended(), Path(self._output).read_text()
        assert status == 0, (words, status, output)
        took = time.monotonic() - since
        self._took[words] = (self._took.get(words, took) + took) / 2
        return output

    def killed(self, chance, *words):
        """Start a command, which has succeeded before, and kill it at some moment; whether that met it alive."""
        pid = self._start(words)
        time.sleep(chance.uniform(0, self._took[words]))
        os.kill(pid, 9)  # one that has ended waits for its status to be asked for
        return self._ended() == -9


def main():
    for package in _PACKAGES:
        found = __import__(package, fromlist=["__path__"])
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            __import__(module.name)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _become(**json.loads(line))
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitpid(pid, 0)[1], flush=True)


def _become(words, output):
    from cowshed.cli.main import main as command

    for number, path in ((0, os.devnull), (1, output), (2, output)):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if number == 1 else 0), 0o600)
        os.dup2(fd, number)
        os.close(fd)
    sys.argv = ["cowshed", *words]
    command()


if __name__ == "__main__":
    main()
