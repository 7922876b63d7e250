"""Times what storage drivers do, as ratios in one run: `make bench-drivers`. README.md tells what.

These are five scenarios of `cowshed bench` in their full size, on the first file system that serves each driver.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BASE = "overlay"  # always among them: what the others are compared with where a row has no control of its own
GROUPS = ("child", "changes", "quota", "commit", "removal")
ROUNDS = 15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--driver", action="append", default=[], metavar="NAME[@KIND]",
        help=f"on a file system of this kind (default: the first that its probe takes); repeatable. Default: every "
        f"driver that can be had here. {BASE} is always among them",
    )  # fmt: skip
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of files; 0.05 in a slow guest")
    parser.add_argument("--rounds", type=float, default=1.0, help=f"multiplies the {ROUNDS} rounds of each row")
    parser.add_argument("--size", type=int, default=8192, metavar="MIB", help="of each file system (images are sparse)")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"some groups, with commas: {' '.join(GROUPS)}")
    parser.add_argument("--seed", type=int, default=1, help="of the order")
    parser.add_argument("--place", default=tempfile.gettempdir(), metavar="DIR", help="where the images lie")
    parser.add_argument("--out", default="", metavar="PATH", help="write PATH.md, PATH.json and PATH.html as well")
    said = parser.parse_args()
    command = shutil.which("cowshed", path=f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}")
    words = [command or "cowshed", "bench", "--format", "markdown", "--scenario", said.only, "--place", said.place]
    words += [
        "--scale",
        str(said.scale),
        "--rounds",
        str(max(1, round(ROUNDS * said.rounds))),
        "--seed",
        str(said.seed),
    ]
    words += ["--size", f"{said.size}m", "--one-each", *(["--out", said.out, "--html"] if said.out else [])]
    if said.driver and not any(one.partition("@")[0] == BASE for one in said.driver):
        words += ["--subject", BASE]
    for one in said.driver:
        words += ["--subject", one]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="")
    if said.out and not done.returncode:
        Path(f"{said.out}.md").write_text(done.stdout)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
