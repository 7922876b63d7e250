"""Validation of an OCI configuration (runtime-spec 1.3, config.md and config-linux.md) before any side effect.

Each area has a module with RULES, a table: where a value stands, what it must be, which section of the specification
says so. What takes two values to judge is the area's function `together`. Unknown properties are ignored, as the
specification wants; known ones that this runtime does not honour are refused, so that nobody runs with less than was
asked for.
"""

from __future__ import annotations

from cowshed_runtime.errors import SpecError
from cowshed_runtime.spec import hooks, mounts, namespaces, process, resources, seccomp, vm, walk
from cowshed_runtime.spec.walk import Problem, mapping, section, string, strings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _version(value: Any) -> str:
    """Semantic Versioning 2.0.0: three numbers, then perhaps what comes before the release, and about its build."""
    if text := string(value):
        return text
    core, plus, build = value.partition("+")
    core, dash, before = core.partition("-")
    numbers = core.split(".")
    right = len(numbers) == 3 and all(map(_is_number, numbers))
    for said, words in ((dash, before), (plus, build)):
        right = right and not (said and not all(map(_is_identifier, words.split("."))))
    if not right:
        return f"{value!r} is no version as in Semantic Versioning"
    return "" if numbers[0] == "1" else f"version {value} is not 1.x"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and (text == "0" or text[0] != "0")


def _is_identifier(text: str) -> bool:
    return text.isascii() and text.replace("-", "a").isalnum()


def _annotations(value: Any) -> str:
    return strings(value) or ("a key must not be empty" if "" in value else "")


RULES = (
    *section("config.md#specification-version", ("ociVersion!", _version)),
    *section("config.md#process", ("process!", mapping)),
    *((f"process.{place}", check, name) for place, check, name in process.RULES),
    *section("config.md#annotations", ("annotations", _annotations)),
    *vm.RULES,
    *mounts.RULES,
    *namespaces.RULES,
    *resources.RULES,
    *process.LINUX,
    *seccomp.RULES,
    *hooks.RULES,
)
_TREE, _PROCESS_TREE = walk.tree(RULES), walk.tree(process.RULES)
_UNDER_RESOURCES = "linux.resources."


def validate(config: Any) -> list[Problem]:
    """Every breach of the specification, and everything asked for that this runtime does not do."""
    found: list[Problem] = []
    walk.problems(config, _TREE, "", found)
    return found or [
        *process.together(config["process"]),
        *namespaces.together(config),
        *mounts.together(config),
        *vm.together(config),
        *process.linux_together(config["linux"]),
        *seccomp.together(config["linux"]),
    ]


def validate_process(work: Any) -> list[Problem]:
    """The same for a process object alone, as for exec."""
    found: list[Problem] = []
    walk.problems(work, _PROCESS_TREE, "", found)
    return found or list(process.together(work, ""))


def validate_resources(resources: Any) -> list[Problem]:
    """The same for linux.resources alone, as for update."""
    rules = [(place[len(_UNDER_RESOURCES) :], check, name) for place, check, name in RULES
             if place.startswith(_UNDER_RESOURCES)]  # fmt: skip
    found: list[Problem] = []
    walk.problems(resources, walk.tree(tuple(rules)), "", found)
    return found


def check(config: Any) -> None:
    """SpecError with every problem in its text."""
    problems = validate(config)
    if problems:
        raise SpecError("config.json: " + "; ".join(map(str, problems)))
