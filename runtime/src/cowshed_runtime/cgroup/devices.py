"""The device rules of a container as a program for cgroup version 2, which has no files for them, and as the list that
systemd keeps. Pure.

The program sees `struct bpf_cgroup_dev_ctx` (linux/bpf.h): access in the upper and kind in the lower half of the first
word, then major and minor; it answers 1 (allow) or 0.
"""

from __future__ import annotations

from _struct import Struct

from cowshed_runtime.defaults import device_rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    _Devices = tuple[str, int, int, int]  # kind, major and minor number or _ANY, accesses

_BLOCK, _CHARACTER = 1, 2
_ACCESS = {"m": 1, "r": 2, "w": 4}
_EVERYTHING, _ANY = 7, -1
_instruction = Struct("@BBhi").pack
# opcodes: class | size or operation | source (Documentation/bpf/standardization/instruction-set.rst)
_LOAD, _MOV32, _AND32_IMMEDIATE, _SHIFT32 = 0x61, 0xBC, 0x54, 0x74
_MOV_IMMEDIATE, _IF_EQUAL, _IF_DIFFERENT, _EXIT = 0xB7, 0x15, 0x55, 0x95
_CONTEXT, _RESULT, _KIND, _WANTED, _MAJOR, _MINOR, _SCRATCH = 1, 0, 2, 3, 4, 5, 6


def completed(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rules of a configuration, and those for the default devices, which every container is supplied with; no rules
    stay none, which allows all."""
    return [*rules, *(rule for rule in device_rules() if rule not in rules)] if rules else []


def program(rules: Sequence[dict[str, Any]]) -> bytes:
    """The instructions for OCI linux.resources.devices. The last rule that matches decides, as if each were written to
    version 1's devices.allow and devices.deny in turn; nothing matching means yes, as in a new version 1 group."""
    out = [
        _instruction(_LOAD, _KIND | _CONTEXT << 4, 0, 0),
        _instruction(_AND32_IMMEDIATE, _KIND, 0, 0xFFFF),
        _instruction(_LOAD, _WANTED | _CONTEXT << 4, 0, 0),
        _instruction(_SHIFT32, _WANTED, 0, 16),
        _instruction(_LOAD, _MAJOR | _CONTEXT << 4, 4, 0),
        _instruction(_LOAD, _MINOR | _CONTEXT << 4, 8, 0),
    ]
    for rule in reversed(rules):
        block = _block(rule)
        out += block
        if len(block) == 2:
            return b"".join(out)  # it decides always: the verifier refuses code that is never reached
    out += [_instruction(_MOV_IMMEDIATE, _RESULT, 0, 1), _instruction(_EXIT, 0, 0, 0)]
    return b"".join(out)


def _block(rule: dict[str, Any]) -> list[bytes]:
    allow = 1 if rule["allow"] else 0
    mask = _mask(rule)
    tests: list[tuple[int, int, int]] = []  # opcode of the jump past this rule, register, value
    kind = rule.get("type") or "a"
    if kind in ("b", "c", "u"):
        tests.append((_IF_DIFFERENT, _KIND, _BLOCK if kind == "b" else _CHARACTER))
    numbers = (_MAJOR, rule.get("major")), (_MINOR, rule.get("minor"))
    tests += [(_IF_DIFFERENT, register, n) for register, n in numbers if n is not None and n >= 0]
    head: list[bytes] = []
    if mask != _EVERYTHING:
        # Allowed if nothing beyond the rule is wanted; denied if anything of the rule is.
        head.append(_instruction(_MOV32, _SCRATCH | _WANTED << 4, 0, 0))
        head.append(_instruction(_AND32_IMMEDIATE, _SCRATCH, 0, ~mask & _EVERYTHING if allow else mask))
        tests.insert(0, (_IF_DIFFERENT if allow else _IF_EQUAL, _SCRATCH, 0))
    end = [_instruction(_MOV_IMMEDIATE, _RESULT, 0, allow), _instruction(_EXIT, 0, 0, 0)]
    jumps = [
        _instruction(code, register, len(tests) - at - 1 + len(end), value)
        for at, (code, register, value) in enumerate(tests)
    ]
    return [*head, *jumps, *end]


def _mask(rule: dict[str, Any]) -> int:
    mask = 0
    for letter in rule.get("access") or "rwm":
        mask |= _ACCESS[letter]
    return mask


def allowed(rules: Sequence[dict[str, Any]]) -> list[tuple[str, str]] | None:
    """The rules as DeviceAllow of systemd.resource-control(5), which denies all that it does not name; None where it
    has no words for what they allow: all but some devices, or one minor number of every major one."""
    left: list[_Devices] = [(kind, _ANY, _ANY, _EVERYTHING) for kind in "cb"]
    for rule in rules:
        numbers = [_ANY if rule.get(key) is None or rule[key] < 0 else int(rule[key]) for key in ("major", "minor")]
        mask = _mask(rule)
        named = (rule.get("type") or "a").replace("u", "c")
        for kind in "cb" if named == "a" else named:
            one: _Devices = (kind, numbers[0], numbers[1], mask)
            if rule["allow"]:
                left = [*(entry for entry in left if not _covers(one, entry)), one]
            elif (less := _without(left, one)) is not None:
                left = less
            else:
                return None
    if any(major == _ANY != minor for _, major, minor, _ in left):
        return None
    return sorted({(_name(*entry[:3]), "".join(c for c in "rwm" if _ACCESS[c] & entry[3])) for entry in left})


def _covers(one: _Devices, other: _Devices) -> bool:
    same = all(mine in (_ANY, its) for mine, its in zip(one[1:3], other[1:3], strict=True))
    return one[0] == other[0] and same and not other[3] & ~one[3]


def _without(left: list[_Devices], one: _Devices) -> list[_Devices] | None:
    """What is left without one; None if less than all devices of an entry would be."""
    kind, major, minor, mask = one
    found = []
    for entry in left:
        its_kind, its_major, its_minor, its_mask = entry
        meet = all(_ANY in pair or pair[0] == pair[1] for pair in ((major, its_major), (minor, its_minor)))
        if its_kind != kind or not its_mask & mask or not meet:
            found.append(entry)
        elif not _covers((kind, major, minor, _EVERYTHING), entry):
            return None
        elif its_mask & ~mask:
            found.append((its_kind, its_major, its_minor, its_mask & ~mask))
    return found


def _name(kind: str, major: int, minor: int) -> str:
    words = {"c": "char", "b": "block"}[kind]
    if major == _ANY:
        return f"{words}-*"
    return f"{words}-{major}" if minor == _ANY else f"/dev/{words}/{major}:{minor}"
