"""Rules of hooks (config.md, POSIX-platform Hooks)."""

from __future__ import annotations

from cowshed_runtime.spec.walk import absolute, section, string, variable, whole

_KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_POSITIVE = whole(1, 2**63 - 1)

RULES = section(
    "config.md#posix-platform-hooks",
    *((f"hooks.{kind}[].path!", absolute) for kind in _KINDS),
    *((f"hooks.{kind}[].args[]", string) for kind in _KINDS),
    *((f"hooks.{kind}[].env[]", variable) for kind in _KINDS),
    *((f"hooks.{kind}[].timeout", _POSITIVE) for kind in _KINDS),
)
