"""Profiles: what the default one lets through, and compiling, keeping and loading filters."""

import os

import pytest

from cowshed_runtime import defaults, seccomp


def allowed(profile):
    names = set()
    for rule in profile["syscalls"]:
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args"):
            names.update(rule["names"])
    return names


def test_default_profile_follows_the_capabilities():
    usual = allowed(seccomp.default_profile(list(defaults.CAPABILITIES)))
    assert {"read", "execve", "futex", "chroot", "openat2", "statx"} <= usual
    assert not usual & {
        "mount", "bpf", "keyctl", "add_key", "request_key", "kexec_load", "init_module", "io_uring_setup", "reboot",
        "userfaultfd", "setns", "unshare", "clone", "open_by_handle_at", "swapon", "settimeofday",
        "move_pages", "pivot_root", "nfsservctl", "perf_event_open", "open_tree",
    }  # fmt: skip
    more = allowed(seccomp.default_profile([*defaults.CAPABILITIES, "CAP_SYS_ADMIN"]))
    assert {"mount", "setns", "unshare", "clone", "bpf"} <= more


def run_call(program: bytes, number: int, *arguments: int) -> tuple[int, int]:
    """The result and errno of a system call in a child under the program; (-1, signal * 1000) if it was killed."""
    from cowshed_linux import seccomp as kernel
    from cowshed_linux.libc import C, ffi

    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kernel.no_new_privileges()
            kernel.load(program)
            ffi.errno = 0
            result = C.syscall(number, *[ffi.cast("long", n) for n in arguments])
            os.write(write_end, f"{result} {ffi.errno}".encode())
        finally:
            os._exit(0)
    os.close(write_end)
    said = os.read(read_end, 100)
    os.close(read_end)
    _, status = os.waitpid(pid, 0)
    if not said:
        return -1, 1000 * os.WTERMSIG(status)
    result, number = said.split()
    return int(result), int(number)


@pytest.fixture
def default(tmp_path):
    if os.uname().machine != "x86_64":
        pytest.skip("system call numbers of x86_64")
    return seccomp.program(seccomp.default_profile(list(defaults.CAPABILITIES)), str(tmp_path))


def test_filter_in_the_kernel(default):
    assert run_call(default, 39)[0] > 0  # getpid
    assert run_call(default, 165) == (-1, 1)  # mount: EPERM
    assert run_call(default, 435) == (-1, 38)  # clone3: ENOSYS, so that libraries fall back
    assert run_call(default, 56, 0x10000000) == (-1, 1)  # clone with a user namespace
    assert run_call(default, 272, 0x10000000) == (-1, 1)  # unshare
    assert run_call(default, 135, 0xFFFFFFFF)[0] == 0  # personality, asking
    assert run_call(default, 135, 0x0040000) == (-1, 1)  # ADDR_NO_RANDOMIZE
    assert run_call(default, 41, 40, 1, 0) == (-1, 1)  # socket(AF_VSOCK)
    assert run_call(default, 250, 0, 0, 0) == (-1, 1)  # keyctl


def test_program_is_kept_and_a_spoilt_one_replaced(tmp_path):
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}
    first = seccomp.program(profile, str(tmp_path))
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    for spoilt in (b"", b"\0" * len(whole), whole[:-8]):
        kept.write_bytes(spoilt)
        assert seccomp.program(profile, str(tmp_path)) == first
        assert kept.read_bytes() == whole
    other = {**profile, "defaultErrnoRet": 5}
    seccomp.program(other, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_full_profile_with_every_action(tmp_path):
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
            {"names": ["getppid"], "action": "SCMP_ACT_KILL_PROCESS"},
            {
                "names": ["getpgid"],
                "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": 5, "op": "SCMP_CMP_GT"}],
            },
            {"names": ["no_such_call"], "action": "SCMP_ACT_ERRNO"},
        ],
    }
    program = seccomp.program(profile, str(tmp_path))
    assert run_call(program, 83, 0, 0) == (-1, 77)
    assert run_call(program, 110) == (-1, 31_000)  # SIGSYS
    assert run_call(program, 121, 0)[0] > 0
    assert run_call(program, 121, 6) == (-1, 1)


def test_unknown_action_is_an_error(tmp_path):
    with pytest.raises(KeyError):
        seccomp.program({"defaultAction": "SCMP_ACT_WISH"}, str(tmp_path))


def test_container_under_the_default_profile(box):
    box.filtered = True
    done = box.sh("grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp || echo refused")
    assert done.out.split() == ["Seccomp:", "2", "refused"]


def test_filter_with_no_new_privileges_and_a_plain_user(box):
    box.filtered = True
    box.process["noNewPrivileges"] = True
    box.process["user"] = {"uid": 99, "gid": 99}
    box.process["capabilities"] = {"bounding": []}
    assert box.sh("grep Seccomp: /proc/self/status").out.split() == ["Seccomp:", "2"]


def test_a_profile_that_allows_no_change_of_identity(box):
    """The filter is the last thing but one: a narrow profile need not allow what the runtime itself does before."""
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["setresuid", "setgroups", "setresgid", "fchdir"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    box.linux["seccomp"] = profile
    box.process["user"] = {"uid": 7, "gid": 7}
    assert box.run("/bin/echo", "through").out == "through\n"


@pytest.mark.parametrize("request_", [0x401C5820, 0x40086602, 0x40046602])
def test_a_file_of_a_limited_container_stays_in_its_project(tmp_path, request_):
    if os.uname().machine != "x86_64":
        pytest.skip("system call numbers of x86_64")
    names = list(defaults.CAPABILITIES)
    kept = seccomp.program(seccomp.default_profile(names, keep_projects=True), str(tmp_path))
    ioctl, nowhere, ebadf, eperm = 16, 999, 9, 1
    assert run_call(kept, ioctl, nowhere, request_, 0) == (-1, eperm)
    assert run_call(kept, ioctl, nowhere, request_ | 0xABCD << 32, 0) == (-1, eperm)  # the kernel looks at 32 bits
    for other in [request_ ^ 1 << bit for bit in range(32)] + [0, 0x5401, 0xFFFFFFFF]:
        assert run_call(kept, ioctl, nowhere, other, 0) == (-1, ebadf), hex(other)
    usual = seccomp.program(seccomp.default_profile(names), str(tmp_path))
    assert run_call(usual, ioctl, nowhere, request_, 0) == (-1, ebadf)


# --- profiles of a configuration: rules, flags, agents, raw filters

AGENT_ANSWER = 0x5A  # the result that the agent gives to the call


def test_the_library_is_not_loaded_for_a_filter_that_is_kept(tmp_path, monkeypatch):
    from cowshed_linux import seccomp as kernel

    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}
    first = seccomp.program(profile, str(tmp_path))

    def refuse():
        raise AssertionError("libseccomp is loaded")

    monkeypatch.setattr(kernel, "_load", refuse)
    assert seccomp.program({**profile, "flags": [], "listenerPath": "/x"}, str(tmp_path)) == first


def test_a_filter_of_another_file_of_the_library_is_made_anew(tmp_path, monkeypatch):
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}
    first = seccomp.program(profile, str(tmp_path))
    (kept,) = tmp_path.iterdir()
    made = []
    monkeypatch.setattr(seccomp, "_compile", lambda profile: made.append(profile) or first)
    assert seccomp.program(profile, str(tmp_path)) == first
    assert not made
    real = seccomp._library
    monkeypatch.setattr(seccomp, "_library", lambda path: real(path).replace(b"-", b"-1", 1))  # another size
    assert seccomp.program(profile, str(tmp_path)) == first
    assert seccomp.program(profile, str(tmp_path)) == first
    assert len(made) == 1, "once, and then it is kept again"
    monkeypatch.setattr(seccomp, "_library", real)
    assert kept.read_bytes() != b""
    assert seccomp.program(profile, str(tmp_path)) == first
    assert len(made) == 2


@pytest.mark.parametrize(
    ("op", "value", "second", "hits", "misses"),
    [
        ("NE", 5, 0, [4, 6], [5]),
        ("LT", 5, 0, [4], [5, 6]),
        ("LE", 5, 0, [4, 5], [6]),
        ("EQ", 5, 0, [5], [4]),
        ("GE", 5, 0, [5, 6], [4]),
        ("GT", 5, 0, [6], [5]),
        ("MASKED_EQ", 0xF0, 0x10, [0x1F, 0x10], [0x20]),
        ("EQ", 2**63 + 1, 0, [2**63 + 1], [1]),
    ],
)
def test_every_operator(tmp_path, op, value, second, hits, misses):
    if os.uname().machine != "x86_64":
        pytest.skip("system call numbers of x86_64")
    test = {"index": 1, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{op}"}
    rule = {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99, "args": [test]}
    made = seccomp.program({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}, str(tmp_path))
    signed = [n - 2**64 if n >= 2**63 else n for n in (*hits, *misses)]
    results = [run_call(made, 140, 0, n)[1] == 99 for n in signed]
    assert results == [True] * len(hits) + [False] * len(misses)


def test_two_tests_of_one_argument_are_alternatives(tmp_path):
    if os.uname().machine != "x86_64":
        pytest.skip("system call numbers of x86_64")
    tests = [{"index": 1, "value": value, "op": "SCMP_CMP_EQ"} for value in (3, 4)]
    rule = {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99, "args": tests}
    made = seccomp.program({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}, str(tmp_path))
    assert [run_call(made, 140, 0, n)[1] == 99 for n in (2, 3, 4, 5)] == [False, True, True, False]


def test_the_default_action_and_its_error(tmp_path):
    if os.uname().machine != "x86_64":
        pytest.skip("system call numbers of x86_64")
    allowed_ = {"names": ["exit_group", "write", "munmap", "mmap", "brk", "close"], "action": "SCMP_ACT_ALLOW"}
    for default, number, seen in (
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38}, 110, (-1, 38)),
        ({"defaultAction": "SCMP_ACT_ERRNO"}, 110, (-1, 1)),
        ({"defaultAction": "SCMP_ACT_KILL"}, 110, (-1, 31_000)),
        ({"defaultAction": "SCMP_ACT_KILL_THREAD"}, 110, (-1, 31_000)),
        ({"defaultAction": "SCMP_ACT_KILL_PROCESS"}, 110, (-1, 31_000)),
        ({"defaultAction": "SCMP_ACT_TRAP"}, 110, (-1, 31_000)),
        ({"defaultAction": "SCMP_ACT_TRACE", "defaultErrnoRet": 7}, 110, (-1, 38)),  # nobody traces: ENOSYS
    ):
        made = seccomp.program({**default, "syscalls": [allowed_]}, str(tmp_path))
        assert run_call(made, number) == seen, default
    made = seccomp.program({"defaultAction": "SCMP_ACT_LOG", "syscalls": []}, str(tmp_path))
    assert run_call(made, 110)[0] > 0


def test_another_architecture_is_let_in_if_it_is_named(tmp_path):
    if os.uname().machine != "x86_64":
        pytest.skip("x86_64, and its sub-architecture x86")
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9}],
    }
    sizes = [
        len(seccomp.program({**profile, "architectures": [f"SCMP_ARCH_{name}" for name in names]}, str(tmp_path)))
        for names in ((), ("X86_64",), ("X86_64", "X86", "X32"))
    ]
    assert sizes[1] < sizes[0] == sizes[2]


FAULTS = [
    ({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}, "defaultErrnoRet: SCMP_ACT_ALLOW returns none"),
    ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}, "4095 at most"),
    ({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}, "cannot be the default"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"]}, "architectures[0]: must be one of"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_X"]}, "flags[0]: must be one of"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}, "needs a listenerPath"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "relative"}, "absolute"),
]
RULE_FAULTS = [
    ({"names": [], "action": "SCMP_ACT_ERRNO"}, "must name system calls"),
    ({"names": ["mkdir"], "action": "SCMP_ACT_WISH"}, "action: must be one of"),
    ({"names": ["mkdir"], "action": "SCMP_ACT_KILL", "errnoRet": 3}, "SCMP_ACT_KILL returns none"),
    ({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}, "listenerPath: is missing"),
    ({"names": ["write"], "action": "SCMP_ACT_NOTIFY"}, "cannot be for write"),
    (
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]},
        "index",
    ),
    ({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 1, "op": "EQ"}]}, "op"),
    (
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": -1, "op": "SCMP_CMP_EQ"}]},
        "value",
    ),
]


@pytest.mark.parametrize(
    ("profile", "wrong"),
    [*FAULTS, *(({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}, wrong) for rule, wrong in RULE_FAULTS)],
)
def test_rules_of_profiles(box, profile, wrong):
    box.linux["seccomp"] = profile
    error = box.refused()
    assert error.stage == "spec"
    assert "linux.seccomp." in str(error)
    assert wrong in str(error)


@pytest.mark.parametrize("name", ["TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"])
def test_flags(box, name):
    """They are in force, if the kernel has them: a bit that it does not have is an error of its own."""
    from cowshed_linux import seccomp as kernel

    flag = f"SECCOMP_FILTER_FLAG_{name}"
    assert kernel.knows_flag(kernel.FLAGS[flag])
    assert not kernel.knows_flag(1 << 20)
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW", "flags": [flag],
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}],
    }  # fmt: skip
    (box.rootfs / "bin/mkdir").symlink_to("busybox")
    done = box.sh("grep Seccomp: /proc/self/status; mkdir /tmp/x")
    assert done.out.split() == ["Seccomp:", "2"]
    assert "quota" in done.err


def test_a_raw_filter_by_an_annotation(box):
    import base64

    rule = {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}
    raw = seccomp.program({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}, str(box.cache))
    box.config["annotations"] = {seccomp.BPF_DATA: base64.b64encode(raw).decode()}
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_KILL"}  # not used
    (box.rootfs / "bin/mkdir").symlink_to("busybox")
    assert "quota" in box.sh("mkdir /tmp/x").err
    for bad in ("no base64!", base64.b64encode(raw[:-1]).decode(), "AAAA"):
        box.config["annotations"][seccomp.BPF_DATA] = bad
        assert box.refused().stage == "seccomp"
    box.config["annotations"][seccomp.BPF_DATA] = base64.b64encode(b"\xff" * 8).decode()
    assert "Invalid argument" in str(box.refused())


class Agent:
    """A socket at which one container process state arrives."""

    def __init__(self, path):
        import socket

        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(60)
        self.socket.bind(self.path)
        self.socket.listen(4)

    def state(self):
        import json
        import socket

        connection, _ = self.socket.accept()
        with connection:
            data, fds, _, _ = socket.recv_fds(connection, 1 << 16, 4)
            while more := connection.recv(1 << 16):
                data += more
        assert len(fds) == 1
        return json.loads(data), fds[0]

    def answer(self, listener):
        """Answer the next notification: the call is not made, its result is AGENT_ANSWER. The number of the call."""
        import fcntl
        import select
        import struct

        assert select.select([listener], [], [], 30)[0], "no call arrived"
        request = fcntl.ioctl(listener, 0xC0502100, bytes(80))  # SECCOMP_IOCTL_NOTIF_RECV
        number, _, _, call = struct.unpack_from("=QIIi", request)
        answer = struct.pack("=QqiI", number, AGENT_ANSWER, 0, 0)
        fcntl.ioctl(listener, 0xC0182101, answer)  # SECCOMP_IOCTL_NOTIF_SEND
        return call


NOTIFYING = {
    "defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "for the agent",
    "syscalls": [{"names": ["ioprio_get"], "action": "SCMP_ACT_NOTIFY"}],
    "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC"],
}  # fmt: skip


@pytest.fixture
def agent(box):
    made = Agent(box.folder / "agent")
    yield made
    made.socket.close()


@pytest.mark.parametrize(("no_new_privileges", "fetched"), [(False, True), (True, True), (False, False)])
def test_an_agent_decides(box, agent, monkeypatch, no_new_privileges, fetched):
    import threading

    from cowshed_linux import process

    def refuse(pidfd, fd):
        raise PermissionError(1, "Operation not permitted")

    if not fetched:  # as to a launcher that is not root
        monkeypatch.setattr(process, "pidfd_getfd", refuse)

    (box.rootfs / "bin/ionice").symlink_to("busybox")
    box.process["noNewPrivileges"] = no_new_privileges
    box.process["user"] = {"uid": 5, "gid": 5}
    box.linux["seccomp"] = {**NOTIFYING, "listenerPath": agent.path}
    box.config["annotations"] = {"some": "thing"}
    seen = []

    def serve():
        for _ in range(2):
            state, listener = agent.state()
            try:
                seen.append((state, agent.answer(listener)))
            finally:
                os.close(listener)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        first = box.start("/bin/sh", "-c", "ionice; sleep 60")
        assert first.line() == f"none: prio {AGENT_ANSWER}"
        second = box.exec_start(first, "/bin/ionice", cwd="/")
        assert second.read()[0].strip() == f"none: prio {AGENT_ANSWER}"
    finally:
        thread.join(60)
    assert not thread.is_alive()
    (started, _), (joined, _) = seen
    assert started == {
        "ociVersion": box.config["ociVersion"], "fds": ["seccompFd"], "pid": first.pid, "metadata": "for the agent",
        "state": {
            "ociVersion": box.config["ociVersion"], "id": box.group.name, "status": "creating", "pid": first.pid,
            "bundle": str(box.folder), "annotations": {"some": "thing"},
        },
    }  # fmt: skip
    assert joined["pid"] == second.pid
    assert joined["state"]["pid"] == first.pid
    assert joined["state"]["status"] == "running"


def test_without_an_agent_nothing_is_started(box):
    box.linux["seccomp"] = {**NOTIFYING, "listenerPath": str(box.folder / "nobody")}
    error = box.refused()
    assert error.stage == "seccomp"
    assert "nobody cannot be told: No such file" in str(error)


def test_an_agent_is_not_asked_for_without_notifications(box):
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": str(box.folder / "nobody")}
    assert box.run("/bin/echo", "there").out == "there\n"
