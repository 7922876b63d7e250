"""Configurations for containers by seed: what people ask for, and with every second one something that nobody should.

The same seed makes the same configuration. Nothing in them could harm the host if it were let through: programs and
hooks are harmless, and settings of the host would be given the value that they have.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

CAPABILITIES = [
    f"CAP_{name}" for name in "CHOWN KILL SETUID SETGID NET_RAW MKNOD SYS_PTRACE SYS_CHROOT NET_ADMIN".split()
]
HOSTILE_TEXTS = (
    "", "\0", "a\0b", "\ud800", "\udcff", "..", "../../../../etc", "/", "//", "/.", "/proc", "/proc/self/root",
    "/proc/self/fd/3", "/dev/null", "/out", "/out/x", "/loop", "/loop/x", "/deep/../../x", "\n", " ", "%n%s", "-rf",
    "é" * 300, "/proc/1/root",
    "a" * 5000, "/" + "a/" * 3000, "x" * 70_000, "SCMP_ACT_ALLOW", "CAP_", "RLIMIT_", "=", "a=b", "true", "0", "-1",
)  # fmt: skip
HOSTILE_NUMBERS = (
    -1, 0, 1, -(2**31), 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30,
    -(2**64),
    0.5, -0.0, 1e300, True,
)  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = {}
    for number in range(depth):
        value = [value] if number % 2 else {"linux": value}
    return value


class Maker:
    def __init__(self, seed: int, folder: Path) -> None:
        self.random, self.folder = random.Random(seed), folder
        self.chance = self.random.random

    def some(self, words: Any, most: int = 4) -> list[Any]:
        return self.random.sample(list(words), self.random.randint(0, min(most, len(words))))

    def one(self, words: Any) -> Any:
        return self.random.choice(list(words))

    def configuration(self, base: dict[str, Any]) -> dict[str, Any]:
        """base, which is changed: what a container gets by default. Its program is `sleep`."""
        config = base
        for part in (
            self._process,
            self._rights,
            self._mounts,
            self._linux,
            self._resources,
            self._seccomp,
            self._hooks,
        ):
            part(config)
        if self.chance() < 0.4:
            for _ in range(self.one((1, 1, 1, 2, 5))):
                self._spoil(config)
        return config

    def _process(self, config: dict[str, Any]) -> None:
        work = config["process"]
        work["args"] = ["/bin/sleep", "1000"]
        if self.chance() < 0.5:
            work["user"] = {"uid": self.one((0, 1, 1000, 65534, 2**31)), "gid": self.one((0, 5, 1000))}
            if self.chance() < 0.5:
                work["user"]["additionalGids"] = self.some((1, 2, 3, 70000))
            if self.chance() < 0.3:
                work["user"]["umask"] = self.one((0, 0o77, 0o777))
        work["cwd"] = self.one(("/", "/", "/tmp", "/tmp", "/made/here", "/link/below", "/link", "/loop"))
        if self.chance() < 0.4:
            kinds = self.some(("CPU", "FSIZE", "CORE", "NOFILE", "STACK", "NPROC", "MSGQUEUE"), 3)
            work["rlimits"] = [
                {
                    "type": f"RLIMIT_{kind}",
                    "soft": (soft := self.one((100, 1000, 1 << 20))),
                    "hard": soft * self.one((1, 2)),
                }
                for kind in kinds
            ]
        if self.chance() < 0.3:
            work["oomScoreAdj"] = self.one((0, 100, 1000))
        if self.chance() < 0.2:
            config["hostname"] = self.one(("h", "a.b.c", "x" * 64, "x" * 65))
        elif self.chance() < 0.7:
            del config["hostname"]  # which needs a namespace

    def _rights(self, config: dict[str, Any]) -> None:
        work = config["process"]
        work["noNewPrivileges"] = self.chance() < 0.5
        if self.chance() < 0.6:
            work["capabilities"] = {
                kind: self.some(CAPABILITIES, 9)
                for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")
                if self.chance() < 0.8
            }  # fmt: skip
        elif self.chance() < 0.2:
            work.pop("capabilities")

    def _mounts(self, config: dict[str, Any]) -> None:
        words = (
            "ro",
            "rw",
            "nosuid",
            "nodev",
            "noexec",
            "exec",
            "relatime",
            "noatime",
            "rro",
            "rnosuid",
            "rprivate",
            "rslave",
        )
        for _ in range(self.one((0, 0, 1, 2, 4))):
            entry: dict[str, Any] = {"destination": self.one((
                *("/tmp", "/new/folder", "/etc", "/link", "/dev/shm", "/new/folder/below", "rel/ative", "//tmp/.") * 3,
                "/loop/x", "/out/made", "/proc/self/attr", "/to-proc", "/sys/fs/cgroup", "/etc/file"))}  # fmt: skip
            entry["options"] = self.some(words)
            if self.chance() < 0.5:
                source = self.one(("volume", "volume", "volume", "volume/file", "missing"))
                entry.update(type="bind", source=str(self.folder / source))
                entry["options"].append(self.one(("bind", "rbind")))
            else:
                entry.update(type=self.one(("tmpfs", "tmpfs", "mqueue", "proc", "tmpfs", "tmpfs")), source="x")
                if self.chance() < 0.3:
                    entry["options"].append(self.one(("size=64k", "mode=700", "tmpcopyup", "nr_inodes=10", "size=x")))
            config["mounts"].append(entry)
        if self.chance() < 0.15:
            config["mounts"] = self.some(config["mounts"], 20)
        config["root"]["readonly"] = self.chance() < 0.3

    def _linux(self, config: dict[str, Any]) -> None:
        linux = config["linux"]
        if self.chance() < 0.3:
            kinds = self.some(("pid", "ipc", "uts", "network", "cgroup", "time"), 6)
            linux["namespaces"] = [{"type": kind} for kind in [*kinds, *(["mount"] if self.chance() < 0.95 else [])]]
        if self.chance() < 0.1:
            paths = ("/proc/self/ns/net", "/proc/self/ns/ipc", "/proc/self/ns/uts", "/etc/passwd", "/nowhere")
            linux["namespaces"].append({"type": self.one(("network", "ipc", "uts")), "path": self.one(paths)})
        if self.chance() < 0.15:
            linux["namespaces"].append({"type": "user"})
            mapping = [{"containerID": 0, "hostID": self.one((0, 100_000)), "size": self.one((1, 65536, 65536, 2**32))}]
            linux["uidMappings"], linux["gidMappings"] = mapping, mapping
            if self.chance() < 0.8:
                config["process"]["user"] = {"uid": 0, "gid": 0}
        paths = (
            "/tmp",
            "/etc/file",
            "/proc/keys",
            "/proc/sys",
            "/sys/firmware",
            "/missing",
            "/link",
            "/loop/x",
            "/bin/ls",
        )
        if self.chance() < 0.4:
            linux["maskedPaths"] = self.some(paths)
        if self.chance() < 0.4:
            linux["readonlyPaths"] = self.some(paths)
        if self.chance() < 0.2:
            linux["rootfsPropagation"] = self.one(("private", "slave", "rshared", "unbindable", "rprivate"))
        if self.chance() < 0.2:
            linux["devices"] = [{"path": self.one(("/dev/x", "/new/dev", "/out/dev", "/dev/null", "/dev/pts/0")),
                                 "type": self.one("ccccbpu"), "major": 1, "minor": self.one((3, 5, 7))}]  # fmt: skip
        if self.chance() < 0.2:
            key = self.one(
                ("kernel/msgmax", "net/ipv4/ip_forward", "kernel/msgmnb", "kernel/core_pattern", "net/../kernel/x", "x")
            )
            here = Path("/proc/sys") / key
            value = here.read_text().strip() if here.exists() else "1"
            linux["sysctl"] = {key.replace("/", self.one("./")): value}

    def _resources(self, config: dict[str, Any]) -> None:
        resources = config["linux"]["resources"]
        if self.chance() < 0.3:
            resources["pids"] = {"limit": self.one((5, 100, -1))}
        if self.chance() < 0.3:
            resources["memory"] = {"limit": self.one((64 << 20, 1 << 30, 1 << 30, -1, 4096))}
        if self.chance() < 0.2:
            resources["cpu"] = {"shares": self.one((2, 512)), "quota": self.one((5000, 50_000)), "period": 100_000}
        if self.chance() < 0.1:
            resources["hugepageLimits"] = [{"pageSize": self.one(("2MB", "2MB", "3MB", "../x")), "limit": 0}]
        if self.chance() < 0.04:
            resources["unified"] = {self.one(("pids.max", "memory.max", "../../x", "cgroup.kill")): "max"}

    def _seccomp(self, config: dict[str, Any]) -> None:
        if self.chance() < 0.4:
            action = self.one(("SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP", "SCMP_ACT_LOG"))
            names = self.some(("mkdir", "chmod", "reboot", "keyctl", "no_such_call", "unshare"), 6) or ["acct"]
            config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW",
                                          "syscalls": [{"names": names, "action": action}]}  # fmt: skip

    def _hooks(self, config: dict[str, Any]) -> None:
        if self.chance() < 0.15:
            config["hooks"] = {
                kind: [{"path": f"{self.folder}/{self.one(('hook', 'hook', 'bad-hook', 'missing'))}",
                        "timeout": self.one((1, 2**40))}]
                for kind in self.some(("prestart", "createRuntime", "createContainer", "poststart"), 2)
            }  # fmt: skip
            if self.chance() < 0.2:
                config["hooks"]["startContainer"] = [{"path": self.one(("/bin/true", "/bin/false", "/missing"))}]

    def _hostile(self) -> Any:
        kind = self.chance()
        if kind < 0.45:
            return self.one(HOSTILE_TEXTS)
        if kind < 0.8:
            return self.one(HOSTILE_NUMBERS)
        return self.one((None, [], {}, [None], {"": ""}, [[]], nested(50), nested(400), ["x"] * 3000, {"\0": 1}))

    def _spoil(self, config: dict[str, Any]) -> None:
        """Put something else in a place that is found by walking down at random, or add or take something away."""
        at: Any = config
        for _ in range(20):
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = self.one(keys)
            if isinstance(at[key], (dict, list)) and at[key] and self.chance() < 0.8:
                at = at[key]
                continue
            way = self.chance()
            if way < 0.7:
                at[key] = self._hostile()
            elif way < 0.8:
                del at[key]
            elif isinstance(at, list):
                at.append(at[key])
            else:
                at[self.one(HOSTILE_TEXTS)] = self._hostile()
            return


def configuration(seed: int, folder: Path, base: dict[str, Any]) -> dict[str, Any]:
    """folder holds what it may bind: `volume`, `volume/file`, and programs `hook` and `bad-hook`."""
    return Maker(seed, folder).configuration(base)
