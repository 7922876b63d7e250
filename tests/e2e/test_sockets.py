"""Control sockets (CVE-2020-15257): one in the abstract namespace is reached from every container with the host's
network, and one that others may write to by every user."""

import os
import stat
from pathlib import Path


def test_cve_2020_15257_control_sockets_have_paths_that_root_alone_may_use(pulled):
    pulled.ok("run", "-d", "--name", "box", pulled.image, "sleep", "1000")
    sockets = [path for path in pulled.run_root.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    assert sockets
    for path in sockets:
        assert not path.lstat().st_mode & 0o077, path
    inodes = set()
    for pid in pulled.processes():
        for fd in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    assert inodes
    mine = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    names = [words[7] for words in mine if words[6] in inodes and len(words) > 7]
    assert names
    assert not [name for name in names if name.startswith("@")]
