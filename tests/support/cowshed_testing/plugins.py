"""Small distributions with storage drivers in them, good and broken ones, as an installer would lay them out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[3]

MINE = """
from cowshed.storage.api import API_VERSION, DriverPlugin, Option
from cowshed_driver_copy import plugin as copy

OPTIONS = (
    Option("level", int, 1, "how hard it tries"),
    Option("mode", str, "fast", "how it works", ("fast", "slow"), creation_only=True),
    Option("checked", bool, False, "whether it looks twice"),
)


def made(name, kind=DriverPlugin, **other):
    values = dict(
        name=name, api=API_VERSION, summary="copies, for tests", options=OPTIONS, probe=copy.probe, init=copy.init,
        open=copy.open, destroy=copy.destroy,
    )
    return kind(**{**values, **other})
"""

# Each stands for one way in which a plug-in goes wrong: the entry point's name, and the module that it names.
BROKEN = {
    "noimport": "import a_module_that_nobody_has",
    "syntax": "def (",
    "exits": "raise SystemExit(3)",
    "noplugin": "plugin = {'name': 'noplugin'}",
    "misnamed": "plugin = made('othername')",
    "newer": "plugin = made('newer', api=(API_VERSION[0], API_VERSION[1] + 1))",
    "older": "plugin = made('older', api=(API_VERSION[0] - 1, 0))",
    "badprobe": "plugin = made('badprobe', probe=lambda root, options, host: 1 // 0, priority=1000)",
    "noreport": "plugin = made('noreport', probe=lambda root, options, host: None, priority=1000)",
    "mute": "from cowshed.storage.api import ProbeReport\n"
    "plugin = made('mute', probe=lambda root, options, host: ProbeReport(None))",
    "badopen": "def open(*words, **more):\n    raise KeyError('a bug')\nplugin = made('badopen', open=open)",
    "badinit": "def init(*words, **more):\n    raise KeyError('a bug')\nplugin = made('badinit', init=init)",
}
FALSY = """
class Falsy(DriverPlugin):
    def __bool__(self):
        return False


plugin = made("falsy", Falsy)
"""


def distribution(folder: str, name: str, points: dict[str, str], modules: dict[str, str]) -> str:
    """Lay out an installed distribution; points: entry points by name, modules: their source. Its entry_points.txt."""
    info = f"{folder}/{name.replace('-', '_')}-1.0.dist-info"
    os.makedirs(info)
    for module, source in modules.items():
        with open(f"{folder}/{module}.py", "w") as file:
            file.write(source)
    lines = "".join(f"{point} = {value}\n" for point, value in points.items())
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "entry_points.txt": f"[cowshed.storage_drivers]\n{lines}",
    }
    files["RECORD"] = "".join(f"{os.path.basename(info)}/{n},,\n" for n in (*files, "RECORD"))
    for file_name, text in files.items():
        with open(f"{info}/{file_name}", "w") as file:
            file.write(text)
    return f"{info}/entry_points.txt"


def driver(folder: str, name: str, source: str, *, attr: str = "plugin") -> str:
    """A distribution example-NAME with one driver NAME, whose module is SOURCE below what MINE defines."""
    module = f"example_{name}"
    return distribution(folder, f"example-{name}", {name: f"{module}:{attr}"}, {module: f"{MINE}\n{source}\n"})


def all_kinds(folder: str) -> None:
    """Every broken driver, a falsy one, one that two distributions claim, and `mine`, which is good."""
    for name, source in BROKEN.items():
        driver(folder, name, source)
    driver(folder, "falsy", FALSY)
    driver(folder, "mine", 'plugin = made("mine")')
    driver(folder, "twice", 'plugin = made("twice")')
    distribution(folder, "other-twice", {"twice": "example_twice:plugin"}, {})


def launcher(command: Path, *folders: Path) -> str:
    """The path of a `cowshed` with more directories of distributions on its path."""
    ours = (TOP / ".venv/bin/cowshed").read_text()
    more = "".join(f"sys.path.append({str(folder)!r})\n" for folder in folders)
    command.write_text(ours.replace("import sys\n", f"import sys\n{more}", 1))
    command.chmod(0o755)
    return str(command)


def environment(folder: Path) -> Path:
    """A virtual environment that holds all that .venv does, and into which a test may install: as `make setup` would
    have filled it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (ours,) = (TOP / ".venv/lib").glob("python*/site-packages")
    (site,) = (folder / "lib").glob("python*/site-packages")
    for entry in ours.iterdir():
        (site / entry.name).symlink_to(entry)
    (folder / "bin/uv").symlink_to(TOP / ".venv/bin/uv")
    suite = folder / "bin/cowshed-conformance"
    suite.write_text(
        f"#!{folder}/bin/python\nfrom cowshed_conformance.command import main\n\nraise SystemExit(main())\n"
    )
    suite.chmod(0o755)
    (ready,) = [line for line in (TOP / "Makefile").read_text().splitlines() if line.startswith("MEMBERS := ")]
    members = ready.partition(":=")[2].split()
    subprocess.run([TOP / "tools/launcher", os.path.relpath(folder, TOP), *members], cwd=TOP, check=True)
    return folder
