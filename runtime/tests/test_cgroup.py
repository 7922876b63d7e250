"""Control groups: limits as files (pure), and real groups on version 1, version 2 and both."""

import os
import random
import signal
import time
import uuid
from pathlib import Path

import pytest

from cowshed_linux import bpf, process
from cowshed_runtime.cgroup import devices, freezer, layout, version1, version2
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


def rows(plans, resources, files=None):
    """All that is written, on a kernel that has every file, or these with what stands in them."""
    now = (lambda file: "") if files is None else files.get
    return [(name, *row) for name, plan in plans.items() for row in plan(resources, now)]


def test_version_1_settings():
    resources = {
        "memory": {"limit": 1 << 20, "swap": 2 << 20, "swappiness": 0, "useHierarchy": True, "kernel": 5},
        "cpu": {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0", "realtimeRuntime": 7, "burst": 9},
        "pids": {"limit": 0},
        "blockIO": {
            "weight": 10, "leafWeight": 11, "weightDevice": [{"major": 8, "minor": 1, "weight": 12, "leafWeight": 13}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 500}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "mlx4_0": {"hcaObjects": 1}, "rxe3": {}},
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        ],
    }  # fmt: skip
    assert rows(version1.CONTROLLERS, resources) == [
        ("memory", "memory.use_hierarchy", "1"),
        ("memory", "memory.limit_in_bytes", "1048576"),
        ("memory", "memory.memsw.limit_in_bytes", "2097152"),
        ("memory", "memory.kmem.limit_in_bytes", "5"),
        ("memory", "memory.swappiness", "0"),
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.rt_runtime_us", "7"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_burst_us", "9"),
        ("cpuset", "cpuset.cpus", "0"),
        ("pids", "pids.max", "0"),
        ("blkio", "blkio.bfq.weight", "10"),
        ("blkio", "blkio.leaf_weight", "11"),
        ("blkio", "blkio.bfq.weight_device", "8:1 12"),
        ("blkio", "blkio.leaf_weight_device", "8:1 13"),
        ("blkio", "blkio.throttle.read_bps_device", "8:0 1000"),
        ("hugetlb", "hugetlb.2MB.rsvd.limit_in_bytes", "0"),
        ("hugetlb", "hugetlb.2MB.limit_in_bytes", "0"),
        ("net_cls", "net_cls.classid", "1048577"),
        ("net_prio", "net_prio.ifpriomap", "eth0 500"),
        ("rdma", "rdma.max", "mlx5_1 hca_handle=3 hca_object=10000"),
        ("rdma", "rdma.max", "mlx4_0 hca_object=1"),
        ("devices", "devices.deny", "a"),
        ("devices", "devices.allow", "c 1:3 rw"),
    ]


def test_version_1_on_kernels_that_name_less():
    """Without reservations of huge pages, without swap, with the weights of the scheduler before BFQ."""
    resources = {
        "memory": {"limit": -1, "useHierarchy": True, "disableOOMKiller": True}, "blockIO": {"weight": 10},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}], "cpu": {"idle": 1, "shares": 3}, "pids": {"limit": -1},
    }  # fmt: skip
    assert rows(version1.CONTROLLERS, resources, {"blkio.weight": "500"}) == [
        ("memory", "memory.limit_in_bytes", "-1"),
        ("memory", "memory.oom_control", "1"),
        ("cpu", "cpu.idle", "1"),
        ("pids", "pids.max", "max"),
        ("blkio", "blkio.weight", "10"),
        ("hugetlb", "hugetlb.2MB.limit_in_bytes", "1"),
    ]


def test_version_2_settings():
    resources = {
        "memory": {"limit": 1 << 20, "swap": 3 << 20, "reservation": 1000, "useHierarchy": True},
        "cpu": {"quota": 50_000, "period": 20_000, "shares": 1024, "burst": 5, "idle": 0, "mems": "0"},
        "pids": {"limit": 0},
        "blockIO": {
            "weight": 10, "weightDevice": [{"major": 8, "minor": 0, "weight": 1000}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 7}, {"major": 8, "minor": 1, "rate": 0}],
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "rdma": {"mlx5_1": {"hcaHandles": 0}},
    }  # fmt: skip
    found = rows(version2.CONTROLLERS, resources, {"memory.swap.max": "max", "hugetlb.2MB.rsvd.max": "max"})
    assert found == [
        ("memory", "memory.max", "1048576"),
        ("memory", "memory.swap.max", "2097152"),
        ("memory", "memory.low", "1000"),
        ("cpu", "cpu.idle", "0"),
        ("cpu", "cpu.weight", "100"),
        ("cpu", "cpu.max", "50000 20000"),
        ("cpu", "cpu.max.burst", "5"),
        ("cpuset", "cpuset.mems", "0"),
        ("pids", "pids.max", "0"),
        ("io", "io.weight", "default 1"),
        ("io", "io.weight", "8:0 10000"),
        ("io", "io.max", "8:0 wiops=7"),
        ("io", "io.max", "8:1 wiops=max"),
        ("hugetlb", "hugetlb.2MB.rsvd.max", "0"),
        ("hugetlb", "hugetlb.2MB.max", "0"),
        ("rdma", "rdma.max", "mlx5_1 hca_handle=0"),
    ]


def second_rows(resources, **files):
    return [
        row[1:] for row in rows(version2.CONTROLLERS, resources, {k.replace("_", "."): v for k, v in files.items()})
    ]


@pytest.mark.parametrize(
    ("resources", "files", "wanted"),
    [
        ({"memory": {"limit": -1}}, {"memory_swap_max": "0"}, [("memory.max", "max"), ("memory.swap.max", "max")]),
        ({"memory": {"limit": 9, "swap": 9}}, {"memory_swap_max": ""}, [("memory.max", "9"), ("memory.swap.max", "0")]),
        ({"memory": {"swap": 9}}, {"memory_swap_max": "", "memory_max": "4\n"}, [("memory.swap.max", "5")]),
        ({"memory": {"swap": -1}}, {"memory_swap_max": ""}, [("memory.swap.max", "max")]),
        ({"memory": {"limit": 9, "swap": 10}}, {}, [("memory.max", "9")]),
        ({"memory": {"limit": 9, "checkBeforeUpdate": True}}, {"memory_current": "9\n"}, [("memory.max", "9")]),
        ({"cpu": {"quota": 1000}}, {"cpu_max": "max 50000"}, [("cpu.max", "1000")]),
        ({"cpu": {"quota": -1}}, {"cpu_max": "5 50000"}, [("cpu.max", "max")]),
        ({"cpu": {"period": 7000}}, {"cpu_max": "5 50000"}, [("cpu.max", "5 7000")]),
        ({"cpu": {"period": 7000}}, {}, [("cpu.max", "max 7000")]),
        ({"cpu": {"idle": 1, "shares": 5}}, {}, [("cpu.idle", "1")]),
        ({"blockIO": {"weight": 77}}, {"io_bfq_weight": ""}, [("io.bfq.weight", "default 77")]),
    ],
)  # fmt: skip
def test_version_2_takes_what_stands_into_account(resources, files, wanted):
    assert second_rows(resources, **files) == wanted


@pytest.mark.parametrize(
    ("resources", "files", "said"),
    [
        ({"memory": {"swap": 9}}, {"memory_swap_max": "", "memory_max": "max"}, "needs memory.limit"),
        ({"memory": {"limit": 10, "swap": 9}}, {"memory_swap_max": ""}, "less than the 10"),
        ({"memory": {"limit": 9, "checkBeforeUpdate": True}}, {"memory_current": "10\n"}, "less than the 10 in use"),
        ({"memory": {"swappiness": 5}}, {}, "memory.swappiness: cgroup version 2"),
        ({"memory": {"useHierarchy": False}}, {}, "memory.useHierarchy"),
        ({"cpu": {"realtimeRuntime": 5}}, {}, "cpu.realtimeRuntime"),
        ({"blockIO": {"leafWeight": 50}}, {}, "blockIO.leafWeight"),
        ({"blockIO": {"weightDevice": [{"major": 1, "minor": 1, "leafWeight": 50}]}}, {}, "leafWeight"),
    ],
)
def test_what_version_2_does_not_have_is_refused(resources, files, said):
    with pytest.raises(OSError, match=said):
        second_rows(resources, **files)


def test_files_of_version_2_are_named_as_they_are():
    given = {"memory.high": "12", "io.max": "8:0 rbps=1\n8:1 rbps=2\n", "some.thing": ""}
    assert list(version2.unified({"unified": given})) == [
        ("memory.high", "12"),
        ("io.max", "8:0 rbps=1"),
        ("io.max", "8:1 rbps=2"),
        ("some.thing", ""),
    ]
    with pytest.raises(OSError, match="no file"):
        list(version2.unified({"unified": {"../cowshed/memory.max": "1"}}))


def test_weights_keep_order_and_ends():
    found = [version2.weight(shares) for shares in (2, 3, 512, 1024, 2048, 262144)]
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


@pytest.fixture
def elsewhere():
    """A group at a path that somebody gave."""
    made = Group("x", f"/cowshed-test/{uuid.uuid4().hex}/below")
    yield made
    made.remove()
    for path in made.directories():
        for above in (os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
            try:
                os.rmdir(above)
            except OSError:
                continue


def member(group):
    """A process in the group that sleeps."""
    entrance = Entrance(group)
    pid, _ = process.clone3(0, exit_signal=17, cgroup=entrance.born)
    if pid == 0:
        entrance.enter()
        while True:
            signal.pause()
    entrance.close()
    deadline = time.monotonic() + 30
    while pid not in group.processes():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return pid


def test_a_given_path_is_used_when_it_is_there_and_empty(elsewhere):
    elsewhere.create({})
    elsewhere.create({})
    pid = member(elsewhere)
    with pytest.raises(OSError, match=f"in use by process {pid}"):
        elsewhere.create({})
    assert elsewhere.processes() == [pid]
    elsewhere.remove()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9


def test_a_group_with_processes_below_it_is_in_use(elsewhere):
    deeper = Group("y", f"{elsewhere.path}/deeper")
    deeper.create({})
    pid = member(deeper)
    assert elsewhere.processes() == [pid]
    with pytest.raises(OSError, match="in use"):
        elsewhere.create({})
    elsewhere.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9


@pytest.mark.parametrize("place", ["itself", "above"])
def test_a_frozen_group_is_refused_at_once(box, elsewhere, place):
    elsewhere.create({})
    stopped = elsewhere if place == "itself" else Group("above", os.path.dirname(elsewhere.path))
    freezer.freeze(stopped)
    try:
        box.group = elsewhere
        error = box.refused(gone=False)
        assert "frozen" in str(error)
    finally:
        freezer.thaw(stopped)
    assert box.run("/bin/true").status == 0


def test_what_is_frozen_can_be_removed(group):
    group.create({})
    pid = member(group)
    freezer.freeze(group)
    group.remove()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9


def test_ancestors_that_have_no_processors_are_given_some(elsewhere):
    cpuset = layout.host.find("cpuset")
    if not cpuset or cpuset == layout.host.v2:
        pytest.skip("cpuset is of version 2 here, where a new group has those of its parent")
    os.makedirs(cpuset + os.path.dirname(elsewhere.path))
    elsewhere.create({})
    assert read(f"{cpuset}{elsewhere.path}/cpuset.mems") == read(f"{cpuset}/cpuset.mems")


def test_a_limit_of_no_processes_still_starts_one(box):
    """The limit is on what is forked from then on (runtime-spec 1.3, pids.limit)."""
    box.linux["resources"]["pids"] = {"limit": 0}
    done = box.sh("echo alone; ls; echo never")
    assert done.out == "alone\n"
    assert "fork" in done.err


def test_default_devices_work_with_rules_that_deny_all(box):
    box.linux["resources"]["devices"] = [{"allow": False, "access": "rwm"}]
    done = box.sh("head -c1 /dev/zero | wc -c; mknod /tmp/kmsg c 1 11 && head -c1 /tmp/kmsg")
    assert done.out.strip() == "1"
    assert "not permitted" in done.err


def test_device_rules_can_be_changed_while_it_runs(box):
    first = box.start("/bin/sleep", "60")
    # There is no such device: whoever may open it is told so.
    assert "not permitted" in box.exec(first, "/bin/sh", "-c", "mknod /tmp/x c 200 1; head -c1 /tmp/x").err
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 200, "minor": 1, "access": "r"}]
    box.group.update({"devices": rules})
    assert "No such device" in box.exec(first, "/bin/head", "-c1", "/tmp/x").err
    assert box.exec(first, "/bin/sh", "-c", "head -c1 /dev/zero | wc -c").out.strip() == "1"


def test_more_and_less_of_limits_that_bound_each_other(group):
    """In any order of writing, one of them is on the wrong side of the other for a moment."""
    if not group.layout.find("memory") or not group.layout.find("cpu"):
        pytest.skip("this host has no memory or no cpu controller")
    group.create({"memory": {"limit": 64 << 20, "swap": 64 << 20}, "cpu": {"quota": 50_000, "burst": 40_000}})
    for limit, quota, burst in ((256 << 20, 90_000, 80_000), (32 << 20, 20_000, 10_000)):
        wanted = {"memory": {"limit": limit, "swap": limit}, "cpu": {"quota": quota, "burst": burst}}
        group.update(wanted)
        file = "memory.limit_in_bytes" if group.layout.v1 else "memory.max"
        assert read(f"{group.find('memory')}/{file}").strip() == str(limit)
        assert str(quota) in read(f"{group.find('cpu')}/{'cpu.cfs_quota_us' if group.layout.v1 else 'cpu.max'}")


def test_files_of_a_version_that_is_not_there(group):
    lacking = Group(group.name, within=layout.Layout("1 1 0:1 / /nowhere rw - cgroup cgroup rw,memory"))
    with pytest.raises(OSError, match="no cgroup version 2"):
        lacking.settings({"unified": {"memory.high": "1"}})
    with pytest.raises(OSError, match="no rdma cgroup controller"):
        lacking.settings({"rdma": {"mlx5_1": {"hcaHandles": 1}}})


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


def test_controllers_are_handed_down_to_any_depth():
    within = only_v2()
    deep = Group("x", f"/cowshed-test-{uuid.uuid4().hex}/a/b", within=within)
    try:
        deep.create({})
        top = read(f"{within.v2}/cgroup.subtree_control").split()
        assert read(f"{within.v2}{deep.path}/cgroup.controllers").split() == top
        with pytest.raises(OSError, match="no nonesuch controller"):
            deep.update({"unified": {"nonesuch.max": "1"}})
    finally:
        Group("x", deep.path.removesuffix("/a/b"), within=within).remove()


def test_device_program_is_replaced_and_not_stacked(second):
    second.create({"devices": RULES[:1]})
    folder = os.open(second.layout.v2 + second.path, os.O_RDONLY)
    try:
        (before,) = bpf._attached(folder)
        second.update({"devices": RULES})
        (after,) = bpf._attached(folder)
        assert before != after
    finally:
        os.close(folder)


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


ALL = [("block-*", "rwm"), ("char-*", "rwm")]


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ([], ALL),
        ([{"allow": True, "access": "rwm"}], ALL),
        ([{"allow": False}], []),
        (RULES, [("/dev/char/1:3", "rwm"), ("/dev/char/1:5", "r"), ("char-*", "m"), ("char-136", "rwm")]),
        ([*RULES, {"allow": False, "type": "c", "major": 1, "access": "w"}],
         [("/dev/char/1:3", "rm"), ("/dev/char/1:5", "r"), ("char-*", "m"), ("char-136", "rwm")]),
        ([*RULES, {"allow": True}], ALL),
        ([{"allow": False, "type": "b"}], [("char-*", "rwm")]),
        ([{"allow": False, "type": "u", "major": 1}], None),
        ([*RULES, {"allow": False, "type": "c", "major": 136, "minor": 7}], None),
        ([*RULES, {"allow": True, "type": "c", "minor": 7}], None),
    ],
)  # fmt: skip
def test_device_rules_as_systemd_has_them(rules, wanted):
    """systemd.resource-control(5), DeviceAllow: a list of what is allowed."""
    assert devices.allowed(rules) == wanted


def test_what_systemd_is_told_of_devices_is_what_the_program_decides():
    """By 1,000 lists of rules: both have a say, and neither may deny what the other alone would allow."""
    chance, told = random.Random(6), 0
    for _ in range(1000):
        rules = [{"allow": False}] if chance.random() < 0.7 else []
        rules += [
            {"allow": chance.random() < 0.6, "type": chance.choice("abc"), "major": chance.choice([-1, 1, 2]),
             "minor": chance.choice([-1, 3, 4]), "access": chance.choice(["r", "w", "m", "rw", "rwm"])}
            for _ in range(chance.randrange(5))
        ]  # fmt: skip
        listed = devices.allowed(rules)
        if listed is None:
            continue
        told += 1
        program = devices.program(rules)
        for kind, word in ((BLOCK, "block"), (CHAR, "char")):
            for major, minor in ((1, 3), (1, 4), (2, 3), (9, 9)):
                names = (f"{word}-*", f"{word}-{major}", f"/dev/{word}/{major}:{minor}")
                for access in range(1, 8):
                    asked = {c for bit, c in ((M, "m"), (R, "r"), (W, "w")) if access & bit}
                    one = any(name in names and asked <= set(mask) for name, mask in listed)
                    assert one == bool(run(program, kind, access, major, minor)), (rules, word, major, minor, asked)
    assert told > 300


def test_kernel_takes_the_program():
    for rules in (RULES, [], RULES[:1], [{"allow": True, "access": "rwm"}], list(reversed(RULES))):
        os.close(bpf.load_device_program(devices.program(rules)))


def test_kernel_refuses_a_bad_program_with_a_reason():
    with pytest.raises(OSError, match="verifier"):
        bpf.load_device_program(b"\x95" + b"\0" * 7)  # returns what was never set


def test_device_program_in_a_group(tmp_path, second):
    rules = [{"allow": False, "access": "rwm"}]
    rules += [{"allow": True, "type": "c", "major": 200, "minor": n, "access": a} for n, a in ((1, "rwm"), (2, "r"))]
    second.create({"devices": rules})
    entrance = Entrance(second)
    for number in (1, 2, 3):
        os.mknod(tmp_path / str(number), 0o20666, os.makedev(200, number))
    answer = os.pipe()
    pid, _ = process.clone3(0, exit_signal=17, cgroup=entrance.born)
    if pid == 0:
        said = ""
        for file, flags in (("1", os.O_RDWR), ("2", os.O_RDONLY), ("2", os.O_RDWR), ("3", os.O_RDONLY)):
            try:
                os.open(tmp_path / file, flags)
            except OSError as error:
                said += "n" if error.errno == 1 else "y"  # ENXIO: allowed, but there is no such device
        os.write(answer[1], said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(answer[0], 10) == b"yynn"
    entrance.close()
    for fd in answer:
        os.close(fd)
