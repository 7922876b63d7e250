"""features: what this runtime can do (features.md, features-linux.md).

Each word of the specification is put to the rules that configurations are held against, so that what is said here is
what is done.
"""

from __future__ import annotations

import sys

from cowshed_linux.capabilities import NUMBERS
from cowshed_linux.seccomp import FLAGS, knows_flag
from cowshed_runtime import spec
from cowshed_runtime.cgroup.ownership import DELEGATE
from cowshed_runtime.cgroup.systemd import PREFIX, SUBGROUP
from cowshed_runtime.command.main import SPECIFICATION, VERSION
from cowshed_runtime.criu import CONFIG_ANNOTATION
from cowshed_runtime.fastjson import pretty
from cowshed_runtime.hooks import STDERR, STDOUT
from cowshed_runtime.launcher import INIT_ANNOTATION
from cowshed_runtime.options import Options
from cowshed_runtime.seccomp import BPF_DATA
from cowshed_runtime.settings import KEEP_GROUPS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cowshed_runtime.command.parser import Values

_HOOKS = "prestart createRuntime createContainer startContainer poststart poststop".split()
_ATTRIBUTES = (
    "atime dev diratime exec noatime nodev nodiratime noexec norelatime nostrictatime nosuid nosymfollow relatime ro rw"
    " strictatime suid symfollow idmap private shared slave unbindable"
).split()
_MOUNT_OPTIONS = (
    "acl async bind defaults dirsync iversion lazytime loud mand noacl noiversion nolazytime nomand rbind remount"
    " silent sync tmpcopyup copy-symlink src-nofollow dest-nofollow"
).split()
_NAMESPACES = "cgroup ipc mount network pid time user uts".split()
_ACTIONS = "ALLOW ERRNO KILL KILL_PROCESS KILL_THREAD LOG NOTIFY TRACE TRAP".split()
_OPERATORS = "EQ GE GT LE LT MASKED_EQ NE".split()
_ARCHITECTURES = (
    "AARCH64 ARM LOONGARCH64 M68K MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PARISC PARISC64 PPC PPC64 PPC64LE"
    " RISCV64 S390 S390X SH SHEB X32 X86 X86_64"
).split()
_FLAGS = "LOG SPEC_ALLOW TSYNC WAIT_KILLABLE_RECV".split()
_MODES = "BIND DEFAULT INTERLEAVE LOCAL PREFERRED PREFERRED_MANY WEIGHTED_INTERLEAVE".split()
_MODE_FLAGS = "NUMA_BALANCING RELATIVE_NODES STATIC_NODES".split()
_MAPPINGS = [{"containerID": 0, "hostID": 0, "size": 1}]


def features(flags: Values, said: Values) -> int:
    sys.stdout.write(pretty(document()) + "\n")
    return 0


def document() -> dict[str, Any]:
    """The Features structure."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPECIFICATION,
        "hooks": _which(_HOOKS, lambda name: {"hooks": {name: [{"path": "/bin/true"}]}}),
        "mountOptions": _mount_options(),
        "linux": {
            "namespaces": _which(_NAMESPACES, lambda name: {"linux": _namespace(name)}),
            "capabilities": list(NUMBERS),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": _rdma()},
            "seccomp": {
                "enabled": True,
                "actions": _seccomp(_ACTIONS, "SCMP_ACT_", _doing),
                "operators": _seccomp(_OPERATORS, "SCMP_CMP_", _comparing),
                "archs": _seccomp(_ARCHITECTURES, "SCMP_ARCH_", lambda name: {"architectures": [name]}),
                "supportedFlags": [name for name, flag in FLAGS.items() if knows_flag(flag)],
                "knownFlags": _seccomp(_FLAGS, "SECCOMP_FILTER_FLAG_", lambda name: {"flags": [name]}),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": _accepted({"process": {"selinuxLabel": "a:b:c"}})},
            "intelRdt": {
                "enabled": _accepted({"linux": {"intelRdt": {"closID": "a"}}}),
                "schemata": _accepted({"linux": {"intelRdt": {"closID": "a", "schemata": ["L3:0=f"]}}}),
                "monitoring": _accepted({"linux": {"intelRdt": {"closID": "a", "enableMonitoring": True}}}),
            },
            "memoryPolicy": {
                "modes": _which([f"MPOL_{name}" for name in _MODES], lambda name: {"linux": _policy(name)}),
                "flags": _which(
                    [f"MPOL_F_{name}" for name in _MODE_FLAGS], lambda name: {"linux": _policy("MPOL_BIND", name)}
                ),
            },
            "mountExtensions": {"idmap": {"enabled": _accepted({"mounts": [_idmapped()]})}},
            "netDevices": {"enabled": _accepted({"linux": {**_namespace("network"), "netDevices": {"eth0": {}}}})},
        },
        "annotations": {"org.cowshed.runtime.version": VERSION},
        "potentiallyUnsafeConfigAnnotations": [
            INIT_ANNOTATION,
            STDOUT,
            STDERR,
            KEEP_GROUPS,
            BPF_DATA,
            DELEGATE,
            CONFIG_ANNOTATION,
            SUBGROUP,
            PREFIX,
        ],
    }


def _accepted(change: dict[str, Any]) -> bool:
    """Whether a configuration with this in it is one that this runtime keeps to."""
    work = {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}, **change.get("process", {})}
    linux = {"namespaces": [{"type": "mount"}], **change.get("linux", {})}
    return not spec.validate(
        {"ociVersion": SPECIFICATION, "root": {"path": "rootfs"}, **change, "process": work, "linux": linux}
    )


def _which(words: list[str], change: Callable[[str], dict[str, Any]]) -> list[str]:
    return [word for word in words if _accepted(change(word))]


def _mount_options() -> list[str]:
    """Those that are ours, and not handed on to a file system that may not know them."""
    words = sorted({*_MOUNT_OPTIONS, *_ATTRIBUTES, *(f"r{word}" for word in _ATTRIBUTES)})

    def change(word: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"destination": "/a", "type": "bind", "source": "/", "options": ["bind", word]}
        if word in ("idmap", "ridmap"):
            entry.update(uidMappings=_MAPPINGS, gidMappings=_MAPPINGS)
        return {"mounts": [entry]}

    return [word for word in _which(words, change) if not Options([word]).data]


def _idmapped() -> dict[str, Any]:
    return {
        "destination": "/a", "type": "bind", "source": "/", "options": ["bind"],
        "uidMappings": _MAPPINGS, "gidMappings": _MAPPINGS,
    }  # fmt: skip


def _namespace(name: str) -> dict[str, Any]:
    made: dict[str, Any] = {"namespaces": [{"type": kind} for kind in sorted({"mount", name})]}
    if name == "user":
        made.update(uidMappings=_MAPPINGS, gidMappings=_MAPPINGS)
    return made


def _seccomp(words: list[str], prefix: str, change: Callable[[str], dict[str, Any]]) -> list[str]:
    def profile(name: str) -> dict[str, Any]:
        return {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", **change(name)}}}

    return _which([f"{prefix}{word}" for word in words], profile)


def _doing(name: str) -> dict[str, Any]:
    return {"syscalls": [{"names": ["mkdir"], "action": name}], "listenerPath": "/run/agent"}


def _comparing(name: str) -> dict[str, Any]:
    test = {"index": 0, "value": 1, "valueTwo": 1, "op": name}
    return {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [test]}]}


def _policy(mode: str, *flags: str) -> dict[str, Any]:
    nodes = {} if mode in ("MPOL_DEFAULT", "MPOL_LOCAL") else {"nodes": "0"}
    return {"memoryPolicy": {"mode": mode, "flags": list(flags), **nodes}}


def _rdma() -> bool:
    return _accepted({"linux": {"resources": {"rdma": {"mlx5_0": {"hcaHandles": 1}}}}})
