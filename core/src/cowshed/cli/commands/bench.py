"""bench, bench compare."""

from __future__ import annotations

import os
import sys

from cowshed import log
from cowshed.bench import journal, session
from cowshed.errors import BadUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.bench.result import Result
    from cowshed.bench.scratch import Device
    from cowshed.cli.parser import Values
    from cowshed.engine import Engine


def bench(engine: Engine, said: Values) -> int:
    if said.list:
        return _list()
    if said.clean:
        return _clean(engine, said.device or "")
    if said.html and not said.out:
        raise BadUsage("--html needs --out PATH, beside which the page is written")
    if said.report:
        return _report(said)
    place = said.place or _existing(engine.settings.root)
    steps = Steps()
    asked = session.Asked(
        mode=session.QUICK if said.quick else session.FULL, subjects=said.subject or (), scenarios=said.scenario or (),
        place=place, path=said.path or "", device=said.device or "", size=said.size or 0, scale=_number(said, "scale"),
        rounds=said.rounds or 0, seconds=_number(said, "seconds", 0.0), seed=1 if said.seed is None else said.seed,
        one_each=bool(said.one_each),
        strict=bool(said.strict), version=_version(), said=steps.said, told=steps.told,
    )  # fmt: skip
    session.check(asked)
    for path in _files(said):
        _try(path)
    _clean_left(engine)
    from cowshed.bench import scratch
    from cowshed.bench.supervisor import supervised

    device = scratch.claim(asked.device) if asked.device else None
    try:
        entry = journal.Journal.begin(engine.settings.root, asked.path or place, device)
        return supervised(entry, lambda: _work(asked, entry, device, said, steps))
    finally:
        if device is not None:
            device.close()


def _work(asked: session.Asked, entry: journal.Journal, device: Device | None, said: Values, steps: Steps) -> int:
    from cowshed.bench import scratch

    scratch.enter_private_namespace()
    try:
        result = session.run(asked, entry, device)
    finally:
        steps.close()
    _give(result, said)
    return 0


def _give(result: Result, said: Values) -> None:
    from cowshed.bench import result as results
    from cowshed.bench.report import markdown, text

    render = {"json": results.dump, "markdown": markdown.render}.get(said.format, text.render)
    sys.stdout.write(render(result))
    sys.stdout.flush()  # what the run has found is seen, though its files cannot be written
    for path in _files(said):
        if path.endswith(".html"):
            from cowshed.bench.report import page

            _write(path, page.render(result))
        else:
            _write(path, results.dump(result))


def _files(said: Values) -> list[str]:
    """Where the result is kept."""
    if not said.out:
        return []
    path = said.out.removesuffix(".json")
    return [f"{path}.json", *([f"{path}.html"] if said.html else [])]


def _try(path: str) -> None:
    """OSError now, and not after an hour, if a file cannot be written; it is as it was."""
    there = os.path.exists(path)
    with open(path, "ab"):
        pass
    if not there:
        os.unlink(path)


def _report(said: Values) -> int:
    from cowshed.bench import result as results

    _give(results.load(said.report), said)
    return 0


def compare(engine: Engine, said: Values) -> int:
    from cowshed.bench import result as results
    from cowshed.bench.report import comparing

    a, b = [results.load(path) for path in said["operands"]]
    if said.format == "json":
        import json

        sys.stdout.write(json.dumps(comparing.as_json(a, b), indent=1) + "\n")
    else:
        sys.stdout.write(comparing.render(a, b))
    slower = any(one.verdict == comparing.SLOWER for one in comparing.compare(a, b)[0])
    return 1 if said.strict and slower else 0


def _list() -> int:
    import textwrap

    from cowshed.bench.scenarios import ALL

    for one in ALL:
        print(
            f"{one.name:16}{' '.join(one.workloads):8}{one.title}{'' if one.quick is not None else ' (not in --quick)'}"
        )
        print(textwrap.fill(one.text, 110, initial_indent=" " * 24, subsequent_indent=" " * 24))
    return 0


def _clean(engine: Engine, path: str) -> int:
    cleaned, problems = journal.clean_left(engine.settings.root, path)
    print(f"{cleaned} dead runs cleaned up after")
    for problem in problems:
        log.warn(problem)
    return 1 if problems else 0


def _clean_left(engine: Engine) -> None:
    cleaned, problems = journal.clean_left(engine.settings.root)
    if cleaned:
        log.warn(f"cleaned up after {cleaned} runs that were killed")
    for problem in problems:
        log.warn(problem)


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _number(said: Values, key: str, default: float = 1.0) -> float:
    text = said.get(key)
    try:
        found = default if text is None else float(text)
        if found < 0 or (text is not None and found == 0):
            raise ValueError
    except ValueError:
        raise BadUsage(f"bench: --{key} is a number greater than 0, not {text!r}") from None
    return found


def _version() -> str:
    from cowshed.cli.main import VERSION

    return VERSION


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


class Steps:
    """What is being done: on a terminal in one line that changes, elsewhere only what has been done."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def said(self, text: str) -> None:
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            sys.stderr.write(f"\r\x1b[K{text[: width - 1]}")
            sys.stderr.flush()

    def told(self, text: str) -> None:
        self.close()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
