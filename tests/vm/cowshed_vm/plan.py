"""What `make test` runs in guests: what the machine's own kernel need not have.

Python takes ten to twenty times as long there, so a guest runs what depends on its kernel, not what has passed outside.
"""

from __future__ import annotations

import os
from typing import NamedTuple

# Several pytest runs in one guest; the first status that is not 0 counts. The modules are those that a host has loaded
# on which these drivers are used, if the kernel has them.
HEAD = """status=0
[ -z "$COWSHED_GUEST" ] || modprobe -qa dm_thin_pool zfs aufs
run() { .venv/bin/pytest -q "$@"; code=$?; [ $code = 0 ] || [ $status != 0 ] || status=$code; }
suite() { driver=$1; shift; run --pyargs cowshed_conformance --driver $driver --report-dir /results/$driver "$@"; }
"""
# Of the suite on a driver, unless all of it is wanted: what differs most between back ends.
CHOSEN = '-k "test_discovery or test_stores or test_life or test_usage"'
# Of the full level: a power cut, a disk that fails, a reboot.
FAULTS = '"test_disks or X03 or X04 or X14"'
# A label needs a kernel that runs SELinux, and a policy that knows it.
LABELS = """
    tests/vm/selinux-policy > /tmp/policy.cil && secilc -M true -c 33 -o /tmp/policy -f /tmp/contexts /tmp/policy.cil &&
        cat /tmp/policy > /sys/fs/selinux/load || exit 1
    suite overlay -k "M08 or (H01 and selinux)"
    suite devicemapper -k "M08 or (H01 and selinux)"
    run -m guest runtime/tests/test_labels.py -k selinux
"""
# Debian's kernels start AppArmor, unless told otherwise.
PROFILES = """
    run -m guest tests/e2e/test_apparmor.py runtime/tests/test_labels.py -k "not selinux"
"""
QUOTA = """
    run drivers/overlay/tests tests/e2e/test_storage_opt.py
    for kind in ext4 xfs; do
        suite overlay --backing $kind-quota -k 'test_Q or test_H01' --report-dir /results/overlay-quota.$kind
    done
"""
# Of tests/drivers, on what each driver there can have: a script takes a quarter of a minute in a guest.
MEANING = """
    COWSHED_BACKINGS="ext4 zpool" run tests/drivers -k "again or attributes or names or moves or special or usage"
    run tests/e2e/test_export.py -k "same_tree and (devicemapper or zfs)"
"""
# Of the runtime's tests, those of which the kernel decides: that a defence can be taken away is no matter of it.
_RUNTIME = (
    "cgroup command_groups cves freezer launch mounts namespaces netdevices place process resctrl rootless seccomp"
    " statistics user_namespaces"
)
GROUPS = f"""
    run {" ".join(f"runtime/tests/test_{name}.py" for name in _RUNTIME.split())} \\
        -k "not without_its_defence and not systemd"
    run tests/e2e/test_run.py tests/e2e/test_options.py -k "test_limits or (test_create_start and overlay)"
"""
# A systemd that manages a group of the guest, and one of a plain user below it.
SYSTEMD = """
    tests/support/under-systemd .venv/bin/pytest -q runtime/tests/test_systemd.py runtime/tests/test_rootless.py \\
        -k real_systemd || status=$?
"""
OPTIONS = {
    "btrfs": "--driver-option quota=simple",  # which Linux 6.12 has
    "zfs": "--backing zpool",  # else all other kinds are made and refused before it
}


class Plan(NamedTuple):
    name: str
    kernel: str  # "": on this machine, once guests are built
    what: str  # for the line that says that it was not run
    script: str
    timeout: float = 1800  # seconds
    append: str = ""  # kernel parameters

    def command(self) -> str:
        return f"{HEAD}{self.script}exit $status\n"


def plans(*, whole: bool = False) -> list[Plan]:
    """whole: all of the suite that a driver must pass (an hour for each), not what `make test` has time for."""
    drivers = (("devicemapper", "6.1"), ("zfs", "6.1"), ("btrfs", "6.12"), ("overlay", "6.1"))
    found = [
        *(_driver(name, kernel, whole=whole) for name, kernel in drivers),
        Plan("control-groups", "6.1", "containers with control groups v2", GROUPS),
        Plan("systemd", "6.1", "containers as scopes of systemd, as root and as a plain user", SYSTEMD),
        Plan("quota", "6.12", "size limits by project quota on ext4 and xfs", QUOTA),
        Plan("one-meaning", "6.1", "the same scripts on all drivers of Linux 6.1", MEANING),
        Plan("selinux", "6.1", "labels of SELinux", LABELS, append="lsm=landlock,lockdown,yama,selinux,bpf"),
        Plan("apparmor", "6.1", "containers under a profile of AppArmor", PROFILES),
        Plan("harness", "", "the tests that boot guests", "COWSHED_BOOT=6.12 run tests/vm/tests/test_boot.py\n"),
    ]
    own = os.environ.get("COWSHED_VM_KERNEL")
    return [*found, _driver("aufs", own, whole=whole)] if own else found


def _driver(name: str, kernel: str, *, whole: bool) -> Plan:
    """The suite on a driver, the tests of its own that are marked for the guest, if there are any (pytest: 5), and
    containers on it."""
    options = OPTIONS.get(name, "")
    script = f"""
        suite {name} {options} --level core {"" if whole else CHOSEN}
        suite {name} {options} -k {FAULTS} --report-dir /results/{name}.faults
        .venv/bin/pytest -q -m guest drivers/{name}; code=$?
        case $code in 0 | 5) ;; *) status=$code ;; esac
    """
    if name in ("devicemapper", "zfs"):  # the others run outside as well
        script += f"        run tests/e2e/test_drivers.py -k '{name} and (made or told or two)'\n"
    if whole or name == "aufs":  # the image of a Debian, four minutes
        script += f"        run tests/e2e/test_debian.py -k 'wherever and {name} and not fuse'\n"
    return Plan(name, kernel, f"the suite on {name}, Linux {kernel}", script, timeout=7200 if whole else 1800)
