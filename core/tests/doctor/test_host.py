"""Checks of the host, on hosts that are described here: what this machine cannot be made into."""

import builtins
import io
import os
import resource

import pytest

from cowshed.doctor import host
from cowshed.doctor.patient import Severity
from cowshed_runtime.cgroup import layout as groups

MIB, GIB = 1 << 20, 1 << 30


def told(check):
    return {finding.code: finding for finding in check(None) if finding.severity is not Severity.NOTE}


@pytest.mark.parametrize(
    ("total", "free", "severity"),
    [
        (100 * GIB, 50 * GIB, None), (100 * GIB, 3 * GIB, None), (100 * GIB, GIB, Severity.WARNING),
        (100 * GIB, 50 * MIB, Severity.ERROR), (100 * MIB, 50 * MIB, None), (100 * MIB, 9 * MIB, Severity.WARNING),
        (100 * MIB, MIB // 2, Severity.ERROR), (100 * MIB, 0, Severity.ERROR), (20, 0, Severity.ERROR),
    ],
)  # fmt: skip
def test_how_scarce_room_is(total, free, severity):
    assert host.scarcity(total, free) is severity


def test_kernels_by_number(monkeypatch):
    assert host._numbers("6.1.0-17-amd64") == (6, 1)
    assert host._numbers("6.18.44-fc-v669") == (6, 18)
    assert host._numbers("7.0-rc1") == (7, 0)
    old = os.uname_result(("Linux", "host", "5.10.0-26-amd64", "", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: old)
    assert told(host.versions)["versions.old-kernel"].remedy == "boot Linux 6.1 or newer"


@pytest.fixture
def says(monkeypatch):
    """Files of the kernel's that say something else here."""
    real, files = builtins.open, {}

    def opened(path, *words, **more):
        return io.StringIO(files[path]) if path in files else real(path, *words, **more)

    monkeypatch.setattr(builtins, "open", opened)
    return files


def test_namespaces_that_are_switched_off(says):
    assert told(host.kernel) == {}
    says["/proc/sys/user/max_pid_namespaces"] = "0\n"
    (finding,) = told(host.kernel).values()
    assert (finding.code, finding.remedy) == (
        "kernel.no-namespaces-left", "sysctl user.max_pid_namespaces=10000",
    )  # fmt: skip


def test_the_library_of_filters_is_missing(monkeypatch):
    def missing():
        raise OSError(2, "libseccomp.so.2 is not installed (Debian: libseccomp2)")

    monkeypatch.setattr(host.seccomp, "version", missing)
    (finding,) = told(host.kernel).values()
    assert (finding.code, finding.remedy) == ("kernel.no-libseccomp", "install libseccomp2")
    assert "libseccomp" not in next(host.versions(None)).text


def test_limits_of_the_whole_host(says):
    says.update(
        {
            "/proc/sys/fs/mount-max": "1\n", "/proc/sys/fs/file-nr": "95\t0\t100\n", "/proc/sys/fs/file-max": "100\n",
            "/proc/loadavg": "0.1 0.1 0.1 1/990 5\n", "/proc/sys/kernel/threads-max": "1000\n",
            "/proc/sys/kernel/pid_max": "4194304\n",
        }
    )  # fmt: skip
    found = [finding for finding in host.limits(None) if finding.code == "limits.host"]
    assert [finding.remedy for finding in found] == [
        "sysctl fs.mount-max=2", "sysctl fs.file-max=200", "sysctl kernel.threads-max=2000",
    ]  # fmt: skip


def test_limits_of_processes(monkeypatch):
    real = resource.getrlimit
    low = {resource.RLIMIT_NOFILE: (64, 256), resource.RLIMIT_FSIZE: (1, 1 << 20)}
    monkeypatch.setattr(resource, "getrlimit", lambda which: low.get(which) or real(which))
    found = told(host.limits)
    assert found["limits.open-files"].text == "a process may open 256 files at most (RLIMIT_NOFILE)"
    assert found["limits.process"].text == "the file size of processes is limited (RLIMIT_FSIZE)"


def layout(tmp_path, *lines):
    return groups.Layout("\n".join(line.replace("AT", str(tmp_path)) for line in lines))


def test_control_groups_that_are_not_there_or_lack_something(monkeypatch, tmp_path):
    monkeypatch.setattr(groups, "host", groups.Layout(""))
    assert set(told(host.control_groups)) == {"cgroups.none"}
    (tmp_path / "cgroup.controllers").write_text("cpu io pids\n")
    two = layout(tmp_path, "30 23 0:26 / AT rw - cgroup2 cgroup2 rw")
    monkeypatch.setattr(groups, "host", two)
    (finding,) = told(host.control_groups).values()
    assert (finding.text, finding.consequence) == ("there is no memory controller", "--memory is refused")
    assert finding.remedy == "boot with cgroup_enable=memory"
    one = layout(tmp_path, "30 23 0:26 / AT rw - cgroup cgroup rw,cpu,memory,pids")
    monkeypatch.setattr(groups, "host", one)
    assert told(host.control_groups) == {}
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path) and real(path, mode))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert set(told(host.control_groups)) == {"cgroups.read-only"}
