"""What a container uses, and notices of want of memory."""

import select
import time

import pytest

from cowshed_runtime.cgroup import layout, oom
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.cgroup.statistics import UNLIMITED, statistics

SECOND = {
    "cpu.stat": "usage_usec 30\nuser_usec 10\nsystem_usec 20\nnr_periods 4\nnr_throttled 3\nthrottled_usec 2\n",
    "cpu.pressure": "some avg10=0.50 avg60=1.00 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=6\n",
    "cpuset.cpus.effective": "0-1,4\n",
    "cpuset.mems.effective": "0\n",
    "memory.current": "4096\n",
    "memory.max": "8192\n",
    "memory.peak": "5000\n",
    "memory.swap.current": "100\n",
    "memory.swap.max": "max\n",
    "memory.stat": "anon 5\nfile 6\n",
    "memory.events": "low 0\nmax 9\noom 1\noom_kill 1\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=9\n",
    "rdma.current": "mlx4_0 hca_handle=2 hca_object=3\n",
    "rdma.max": "mlx4_0 hca_handle=5 hca_object=max\n",
}


def test_version_2(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma\n")
    group = Group("x", "/x", layout.Layout(f"1 1 0:1 / {tmp_path} rw - cgroup2 cgroup2 rw"))
    (tmp_path / "x").mkdir()
    for name, text in SECOND.items():
        (tmp_path / "x" / name).write_text(text)
    found = statistics(group)
    assert found["cpu"] == {
        "usage": {"total": 30_000, "kernel": 20_000, "user": 10_000},
        "throttling": {"periods": 4, "throttledPeriods": 3, "throttledTime": 2000},
        "psi": {
            "some": {"avg10": 0.5, "avg60": 1.0, "avg300": 0.0, "total": 77},
            "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 6},
        },
    }
    assert (found["cpuset"]["cpus"], found["cpuset"]["mems"]) == ([0, 1, 4], [0])
    assert found["memory"] == {
        "cache": 6,
        "raw": {"anon": 5, "file": 6},
        "usage": {"usage": 4096, "limit": 8192, "max": 5000, "failcnt": 9},
        "swap": {"usage": 4196, "limit": UNLIMITED, "failcnt": 0},
    }
    assert found["pids"] == {"current": 3, "limit": 0}
    operations = [(key, entry["op"], entry["value"]) for key, entries in found["blkio"].items() for entry in entries]
    assert operations == [
        ("ioServiceBytesRecursive", "Read", 1), ("ioServiceBytesRecursive", "Write", 2),
        ("ioServiceBytesRecursive", "Discard", 5), ("ioServicedRecursive", "Read", 3),
        ("ioServicedRecursive", "Write", 4), ("ioServicedRecursive", "Discard", 6),
    ]  # fmt: skip
    assert found["rdma"] == {
        "rdma_current": [{"device": "mlx4_0", "hca_handles": 2, "hca_objects": 3}],
        "rdma_limit": [{"device": "mlx4_0", "hca_handles": 5, "hca_objects": UNLIMITED}],
    }
    assert (found["hugetlb"], found["intel_rdt"], found["network_interfaces"]) == ({}, {}, [])


def test_version_1(tmp_path):
    files = {
        "cpuacct.usage": "90\n", "cpuacct.stat": "user 2\nsystem 1\n", "cpuacct.usage_percpu": "40 50\n",
        "cpuacct.usage_all": "cpu user system\n0 1 2\n1 3 4\n", "blkio.throttle.io_serviced_recursive":
        "8:0 Read 5\n8:0 Write 6\nTotal 11\n", "memory.usage_in_bytes": "7\n", "memory.limit_in_bytes": "9\n",
        "memory.stat": "cache 3\ntotal_cache 4\n", "pids.current": "1\n", "pids.max": "10\n",
        "cpu.stat": "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n",
    }  # fmt: skip
    line = f"1 1 0:1 / {tmp_path} rw - cgroup cgroup rw,cpu,cpuacct,blkio,memory,pids"
    (tmp_path / "x").mkdir()
    for name, text in files.items():
        (tmp_path / "x" / name).write_text(text)
    found = statistics(Group("x", "/x", layout.Layout(line)))
    assert found["cpu"]["usage"] == {
        "total": 90, "kernel": 10_000_000, "user": 20_000_000, "percpu": [40, 50],
        "percpu_user": [1, 3], "percpu_kernel": [2, 4],
    }  # fmt: skip
    assert found["cpu"]["throttling"] == {"periods": 1, "throttledPeriods": 2, "throttledTime": 3}
    assert [entry["op"] for entry in found["blkio"]["ioServicedRecursive"]] == ["Read", "Write"]
    assert (found["memory"]["cache"], found["memory"]["usage"]["limit"]) == (4, 9)
    assert found["pids"] == {"current": 1, "limit": 10}


def test_a_real_container(box):
    first = box.start("/bin/sh", "-c", "x=0; while [ $x -lt 20000 ]; do x=$((x+1)); done; echo done; sleep 60")
    assert first.line() == "done"
    found = statistics(box.group)
    assert found["cpu"]["usage"]["total"] > 0
    assert not box.group.find("memory") or found["memory"]["usage"]["usage"] > 0
    assert not box.group.find("pids") or found["pids"]["current"] == 1


def test_a_group_that_has_gone(box):
    assert statistics(box.group)["pids"] in ({}, {"current": 0, "limit": 0})


def test_a_kill_for_want_of_memory_is_noticed(box):
    if not layout.host.find("memory"):
        pytest.skip("this host has no memory controller")
    box.linux["resources"]["memory"] = {"limit": 16 << 20, "swap": 16 << 20}
    first = box.start("/bin/sh", "-c", "echo up; dd if=/dev/zero of=/dev/null bs=100M count=1; sleep 60")
    assert first.line() == "up"
    notice = oom.Notice(box.group)
    poll = select.poll()
    poll.register(notice.fd, notice.mask)
    end = time.monotonic() + 60
    while notice.kills() == 0:  # killed before there was anybody to tell, or, on version 1, after the only notice
        poll.poll(50)
        assert time.monotonic() < end
    assert notice.kills() == 1
    assert box.group.oom_killed()
    box.group.remove()
    assert poll.poll(60_000)
    with pytest.raises(FileNotFoundError):
        notice.kills()
    notice.close()


def test_no_notices_without_the_controller():
    with pytest.raises(FileNotFoundError, match="no memory"):
        oom.Notice(Group("x", within=layout.Layout("")))
