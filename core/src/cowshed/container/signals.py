"""Signals by name or number."""

from __future__ import annotations

from cowshed.errors import BadUsage

NAMES = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU "
    "URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
).split()


def number(text: str) -> int:
    """KILL, SIGKILL, 9, RTMIN+3. BadUsage."""
    name = text.upper().removeprefix("SIG")
    if name.isdigit() and 1 <= int(name) <= 64:
        return int(name)
    if name in NAMES:
        return NAMES.index(name) + 1
    for start, base, sign in (("RTMIN+", 34, 1), ("RTMAX-", 64, -1)):
        if name.startswith(start) and name[len(start) :].isdigit() and int(name[len(start) :]) <= 30:
            return base + sign * int(name[len(start) :])
    if name in ("RTMIN", "RTMAX"):
        return 34 if name == "RTMIN" else 64
    raise BadUsage(f"{text!r} is no signal", remedy="give a name such as TERM, or a number up to 64")
