"""The documentation is true: references are up to date, links resolve, and what pages tell people to type works."""

import fnmatch
import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest
from cowshed_testing import plugins

from cowshed.cli import find

TOP = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(sh run|text)\n(.*?)^\1```$", re.S | re.M)
PAGES = [page for page in sorted((TOP / "docs").rglob("*.md")) if "```sh run\n" in page.read_text()]


def test_the_reference_is_up_to_date_and_all_links_resolve():
    done = subprocess.run([TOP / ".venv/bin/python", TOP / "tools/docs", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_names_only_commands_that_exist():
    text = (TOP / "README.md").read_text()
    missing = []
    for row in ("images", "containers", "volumes"):
        (cell,) = re.findall(rf"^\| {row} \| (.*) \|$", text, re.M)
        for span in re.findall(r"`([a-z ]+)`", cell):
            first, *others = span.split()
            names = [f"{first} {word}" for word in others] if find.group(first) else span.split()
            missing += [name for name in names if name not in find.known()]
    assert missing == []


def test_there_are_pages_to_try():
    assert {"first-container.md", "write-a-driver.md", "choose-a-driver.md"} <= {page.name for page in PAGES}


def blocks(page):
    """(script, what is shown below it) of each block to run; shown is None if the page does not say."""
    found = [(kind, textwrap.dedent(body)) for _, kind, body in FENCE.findall(page.read_text())]
    for at, (kind, body) in enumerate(found):
        if kind == "sh run":
            following = found[at + 1] if at + 1 < len(found) else ("", "")
            yield body, following[1] if following[0] == "text" else None


def compare(shown, printed, what):
    """Each line shown is printed, in this order; `…` stands for anything, alone for any lines."""
    lines = iter(printed.splitlines())
    for wanted in shown.splitlines():
        pattern = re.sub(r"([\[?*])", r"[\1]", wanted).replace("…", "*")
        assert any(fnmatch.fnmatchcase(line.rstrip(), pattern) for line in lines), (
            f"{what}: {wanted!r} not in:\n{printed}"
        )


@pytest.mark.timeout(900)  # the tutorial runs the core level of the suite
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_to_type_works(page, tmp_path, quick, greeting, engine_of):
    it = engine_of(tmp_path)
    programs = (
        plugins.environment(tmp_path / "venv") / "bin" if "pip install" in page.read_text() else TOP / ".venv/bin"
    )
    folder = tmp_path / "here"
    folder.mkdir()
    env = {
        **it.env, "PATH": f"{programs}:{os.environ['PATH']}", "IMAGE": greeting, "REGISTRY": greeting.partition("/")[0],
        "VIRTUAL_ENV": str(programs.parent), "UV_OFFLINE": "1", "TMPDIR": quick,
        "COWSHED_ROOT": str(it.root), "COWSHED_RUN_ROOT": str(it.run_root),
    }  # fmt: skip
    # One shell for the whole page, as a reader would have; it prints a mark after each block.
    mark = "-- end of block --"
    script = "set -euo pipefail\nexec 2>&1\n" + "".join(f"{body}\necho '{mark}'\n" for body, _ in blocks(page))
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            timeout=800,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        printed = done.stdout.split(f"{mark}\n")
        for number, (body, shown) in enumerate(blocks(page)):
            if shown is not None:
                compare(shown, printed[number], f"{page.name}: {body.strip()[:60]}")
    finally:
        it.close()
    it.assert_clean()
