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
