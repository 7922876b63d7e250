"""What a command imports is most of what it costs: budgets of modules beyond those of a bare interpreter.

A name that appears here as costly has cost 2 to 50 ms of every command once. Raise a budget only with a reason.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cowshed_testing.images import Image, busybox_layer
from cowshed_testing.registry import Registry

TOP = Path(__file__).parents[2]
COMMAND = TOP / ".venv/bin/cowshed"
COSTLY = {
    "_hashlib", "argparse", "asyncio", "collections", "contextlib", "dataclasses", "datetime", "enum", "functools",
    "hashlib", "http", "importlib", "importlib.metadata", "inspect", "json", "logging", "pathlib", "random", "re",
    "shutil", "signal", "site", "socket", "sqlite3", "ssl", "stevedore", "subprocess", "tempfile", "threading",
    "tomllib", "types", "typing", "urllib", "uuid", "warnings", "zstandard",
}  # fmt: skip


def imported(arguments: list[str]) -> list[str]:
    """The modules that an interpreter without `site` imports for these arguments."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COWSHED_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", *arguments], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, env=environment, timeout=60,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert done.returncode == 0, [line for line in lines if not line.startswith("import time:")]
    return [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")][1:]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with an image and a running container, its zygote up and its caches filled."""
    folder = tmp_path_factory.mktemp("imports")
    options = ["--root", f"{folder}/store", "--run-root", f"{folder}/run", "--driver", "overlay"]

    def command(*words: str) -> str:
        return subprocess.run([COMMAND, *options, *words], check=True, capture_output=True, text=True).stdout.strip()

    with Registry(f"{folder}/registry") as registry:
        image = registry.push(Image([busybox_layer(), b"\0" * 1024]), "imports")
        command("pull", "-q", image)
        command("run", "-d", "--name", "box", image, "sleep", "600")
        try:
            yield [str(COMMAND), *options], image
        finally:
            command("rm", "-f", "box")


# name: (words, modules). With a configuration file, `files` adds none: its parse is kept.
BUDGETS = {
    "version": (["--version"], 21),
    "ps": (["ps", "-a"], 52),
    "images": (["images"], 50),
    "inspect": (["inspect", "box"], 56),
    "logs": (["logs", "box"], 56),
    "exec": (["exec", "box", "true"], 58),
    "run": (["run", "--rm", "IMAGE", "true"], 106),
    "create": (["create", "--name", "other", "IMAGE", "true"], 102),
    "rm": (["rm", "-f", "other"], 92),
}


def test_a_policy_costs_what_it_asks_for(store):
    """A policy that accepts everything, as Debian's podman brings one, costs its parser; none costs a look for it."""
    command, image = store
    there = any(map(os.path.lexists, ("/etc/cowshed/policy.json", "/etc/containers/policy.json")))
    found = set(imported([*command, "run", "--rm", image, "true"]))
    allowed = {"cowshed.trust", "cowshed.trust.policy"} if there else set()
    assert {m for m in found if m.startswith("cowshed.trust")} <= allowed
    assert not [m for m in found if m.startswith("cryptography")]


@pytest.mark.parametrize("name", BUDGETS)
def test_a_command_keeps_to_its_budget_of_modules(name, store):
    command, image = store
    words, budget = BUDGETS[name]
    bare = set(imported(["-c", ""]))
    found = [m for m in imported([*command, *[image if w == "IMAGE" else w for w in words]]) if m not in bare]
    found = [m for m in found if m not in ("cowshed.trust", "cowshed.trust.policy")]  # if this host has a policy file
    assert not COSTLY & set(found), sorted(COSTLY & set(found))
    assert len(found) <= budget, f"{len(found)} modules: {' '.join(found)}"


def test_load_imports_no_client_of_registries(store, tmp_path):
    command, _ = store
    Image([b"\0" * 1024]).write_layout(f"{tmp_path}/layout", "example.org/other:1")
    found = imported([*command, "load", "-q", "-i", f"{tmp_path}/layout"])
    assert "cowshed.image.pull" in found
    assert {"http", "ssl", "cowshed.registry.client"}.isdisjoint(found)
