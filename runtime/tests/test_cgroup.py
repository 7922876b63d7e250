"""Control groups: limits as files (pure), and real groups on version 1, version 2 and both."""

import os
import signal
import uuid
from pathlib import Path

import pytest

from cowshed_linux import bpf, process
from cowshed_runtime.cgroup import devices, layout, limits
from cowshed_runtime.cgroup.files import read
from cowshed_runtime.cgroup.group import Entrance, Group

HYBRID = read("/proc/self/mountinfo")


def only_v2() -> layout.Layout:
    lines = [line for line in HYBRID.splitlines() if " - cgroup2 " in line]
    if not lines:
        pytest.skip("no cgroup2 is mounted")
    return layout.Layout("\n".join(lines))


@pytest.fixture
def group():
    made = Group(f"test-{uuid.uuid4().hex}")
    yield made
    made.remove()


@pytest.fixture
def second():
    """One of version 2 alone."""
    made = Group(f"test-{uuid.uuid4().hex}", within=only_v2())
    yield made
    made.remove()


def test_layouts():
    v1 = "1 1 0:1 / /c/memory rw - cgroup cgroup rw,memory\n"
    v1 += "2 1 0:2 / /c/sp\\040ace rw - cgroup c rw,xattr,name=systemd\n"
    found = layout.Layout(v1 + v1)
    assert found.v1 == [("/c/memory", ("memory",)), ("/c/sp ace", ("name=systemd",))]
    assert (found.find("memory"), found.find("pids"), found.v2) == ("/c/memory", "", "")


def test_version_1_settings():
    resources = {
        "memory": {"limit": 1 << 20, "swap": 2 << 20, "swappiness": 0},
        "cpu": {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0"},
        "pids": {"limit": 10},
        "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]},
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        ],
    }
    assert list(limits.version1(resources)) == [
        ("memory", "memory.limit_in_bytes", "1048576"),
        ("memory", "memory.memsw.limit_in_bytes", "2097152"),
        ("memory", "memory.swappiness", "0"),
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpuset", "cpuset.cpus", "0"),
        ("pids", "pids.max", "10"),
        ("blkio", "blkio.throttle.read_bps_device", "8:0 1000"),
        ("devices", "devices.deny", "a"),
        ("devices", "devices.allow", "c 1:3 rw"),
    ]


def test_version_2_settings():
    resources = {
        "memory": {"limit": 1 << 20, "swap": 3 << 20, "reservation": 1000},
        "cpu": {"quota": 50_000, "shares": 1024, "burst": 5, "idle": 1},
        "pids": {"limit": -1},
        "blockIO": {"weight": 10, "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 7}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "unified": {"memory.high": "12"},
    }
    assert list(limits.version2(resources)) == [
        ("memory", "memory.max", "1048576"),
        ("memory", "memory.swap.max", "2097152"),
        ("memory", "memory.low", "1000"),
        ("cpu", "cpu.weight", "100"),
        ("cpu", "cpu.max", "50000 100000"),
        ("cpu", "cpu.max.burst", "5"),
        ("cpu", "cpu.idle", "1"),
        ("pids", "pids.max", "max"),
        ("io", "io.weight", "default 1"),
        ("io", "io.max", "8:0 wiops=7"),
        ("hugetlb", "hugetlb.2MB.max", "0"),
        ("memory", "memory.high", "12"),
    ]
    assert list(limits.version2({"memory": {"limit": -1, "swap": -1}}))[1][2] == "max"


def test_weights_keep_order_and_ends():
    found = [limits.weight(shares) for shares in (2, 3, 512, 1024, 2048, 262144)]
    assert found == sorted(found)
    assert (found[0], found[3], found[-1]) == (1, 100, 10000)


def test_limits_reach_the_kernel(box):
    box.linux["resources"].update(
        {"memory": {"limit": 64 << 20}, "pids": {"limit": 17}, "cpu": {"quota": 50_000, "period": 100_000}}
    )
    started = box.start("/bin/sleep", "60")
    settings = dict(box.group.settings({k: v for k, v in box.linux["resources"].items() if k != "devices"}))
    assert settings
    for path, value in settings.items():
        assert Path(path).read_text().strip() == value
    box.group.update({"pids": {"limit": 20}, "memory": {"limit": 32 << 20}})
    again = dict(box.group.settings({"pids": {"limit": 20}, "memory": {"limit": 32 << 20}}))
    assert all(Path(path).read_text().strip() == value for path, value in again.items())
    assert started.pid in box.group.processes()


def test_pids_limit_holds(box):
    box.linux["resources"]["pids"] = {"limit": 5}
    done = box.sh("for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait")
    assert "fork" in done.err


def test_memory_limit_kills_and_is_told(box):
    if not layout.host.find("memory"):
        pytest.skip("this host has no memory controller")
    box.linux["resources"]["memory"] = {"limit": 16 << 20, "swap": 16 << 20}
    started = box.start("/bin/sh", "-c", "head -c 200000000 /dev/zero | tail")
    started.wait()
    box.group.remove()
    box.process["args"] = ["/bin/sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=1"]
    started = box.start()
    started.read()
    assert started.status == 137
    assert box.group.oom_killed()


def test_memory_limit_too_low_to_start_says_so(box):
    box.linux["resources"]["memory"] = {"limit": 8192, "swap": 8192}
    error = box.refused()
    assert "memory" in str(error)


def test_kill_and_remove(box):
    started = box.start("/bin/sh", "-c", "sleep 60 & sleep 60 & echo up; wait")
    assert started.line() == "up"
    assert len(box.group.processes()) == 3
    box.group.kill()
    assert started.wait() == 137
    box.group.remove()
    box.group.remove()
    assert not any(os.path.exists(path) for path in box.group.directories())


def test_groups_made_inside_are_removed_too(group):
    group.create({})
    for path in group.directories():
        os.makedirs(f"{path}/a/b")
    group.remove()
    assert not any(os.path.exists(path) for path in group.directories())


def test_an_error_leaves_no_group(group):
    with pytest.raises(OSError, match=r"cpuset|controller"):
        group.create({"cpu": {"cpus": "9999"}})
    assert not any(os.path.exists(path) for path in group.directories())
    with pytest.raises(OSError, match="nonesuch"):
        group.create({"hugepageLimits": [{"pageSize": "nonesuch", "limit": 1}]})


def test_a_name_in_use_is_not_taken_over(group):
    group.create({})
    with pytest.raises(FileExistsError):
        group.create({})
    assert all(os.path.exists(path) for path in group.directories())


# ------------------------------------------------------------ version 2


def test_version_2_only(second):
    second.create({"devices": [{"allow": False, "access": "rwm"}]})
    (path,) = second.directories()
    entrance = Entrance(second)
    assert entrance.tasks == []
    pid, _ = process.clone3(0, exit_signal=17, cgroup=entrance.born)
    if pid == 0:
        while True:
            signal.pause()
    entrance.close()
    assert second.processes() == [pid]
    second.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    second.remove()
    assert not os.path.exists(path)


def test_container_on_version_2_only(second, box):
    box.group = second
    done = box.sh(
        "cat /proc/self/cgroup | grep ^0; ls /sys/fs/cgroup/cgroup.procs; mknod /tmp/k c 1 11; head -c1 /tmp/k"
    )
    assert done.out.split() == ["0::/", "/sys/fs/cgroup/cgroup.procs"], done
    assert "not permitted" in done.err


# ------------------------------------------------------------ device rules as a program

RULES = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"},
    {"allow": True, "type": "c", "major": 136, "minor": -1, "access": "rwm"},
]


def run(program: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """The program's answer, by a small interpreter of the instructions that it may use."""
    import struct

    code = [struct.unpack_from("<BBhi", program, at) for at in range(0, len(program), 8)]
    memory = {0: access << 16 | kind, 4: major, 8: minor}
    registers = dict.fromkeys(range(11), 0)
    at = 0
    while True:
        opcode, pair, offset, value = code[at]
        target, source = pair & 15, pair >> 4
        at += 1
        if opcode == 0x61:
            registers[target] = memory[offset]
        elif opcode == 0xBC:
            registers[target] = registers[source]
        elif opcode == 0x54:
            registers[target] &= value & 0xFFFFFFFF
        elif opcode == 0x74:
            registers[target] >>= value
        elif opcode == 0xB7:
            registers[target] = value
        elif opcode == 0x15:
            at += offset if registers[target] == value else 0
        elif opcode == 0x55:
            at += offset if registers[target] != value else 0
        elif opcode == 0x95:
            return registers[0]
        else:
            raise AssertionError(hex(opcode))


M, R, W, BLOCK, CHAR = 1, 2, 4, 1, 2


def test_device_program_decides_as_version_1_would():
    program = devices.program(RULES)
    assert run(program, CHAR, R | W, 1, 3) == 1
    assert run(program, CHAR, M, 7, 7) == 1
    assert run(program, BLOCK, M, 7, 7) == 0
    assert run(program, CHAR, R, 1, 5) == 1
    assert run(program, CHAR, W, 1, 5) == 0
    assert run(program, CHAR, R | W, 1, 5) == 0
    assert run(program, CHAR, R | W, 136, 9) == 1
    assert run(program, BLOCK, R, 8, 0) == 0
    assert run(devices.program([]), BLOCK, W, 8, 0) == 1
    one_denied = devices.program([{"allow": False, "type": "b", "major": 8, "access": "w"}])
    assert [run(one_denied, BLOCK, access, 8, 1) for access in (R, W, R | W)] == [1, 0, 0]


def test_kernel_takes_the_program():
    for rules in (RULES, [], RULES[:1], [{"allow": True, "access": "rwm"}], list(reversed(RULES))):
        os.close(bpf.load_device_program(devices.program(rules)))


def test_kernel_refuses_a_bad_program_with_a_reason():
    with pytest.raises(OSError, match="verifier"):
        bpf.load_device_program(b"\x95" + b"\0" * 7)  # returns what was never set


def test_device_program_in_a_group(tmp_path, second):
    second.create({"devices": RULES})
    entrance = Entrance(second)
    for number, path in ((3, tmp_path / "null"), (5, tmp_path / "zero"), (8, tmp_path / "random")):
        os.mknod(path, 0o20666, os.makedev(1, number))
    answer = os.pipe()
    pid, _ = process.clone3(0, exit_signal=17, cgroup=entrance.born)
    if pid == 0:
        said = ""
        for file, flags in (("null", os.O_RDWR), ("zero", os.O_RDONLY), ("zero", os.O_RDWR), ("random", os.O_RDONLY)):
            try:
                os.close(os.open(tmp_path / file, flags))
                said += "y"
            except PermissionError:
                said += "n"
        os.write(answer[1], said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(answer[0], 10) == b"yynn"
    entrance.close()
    for fd in answer:
        os.close(fd)
