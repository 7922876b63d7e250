"""In a private mount namespace: fill the disk that holds a store, read, fail to write, remove. `full_disk.py FOLDER`"""

import os
import subprocess
import sys

from cowshed.errors import NoSpace
from cowshed.state import making
from cowshed.state.store import open_store

folder = sys.argv[1]
image, target = folder + "/disk.img", folder + "/disk"
os.makedirs(target)
subprocess.run(["truncate", "-s", "64M", image], check=True)
subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
subprocess.run(["mount", "-o", "loop", image, target], check=True)
root, run = target + "/store", folder + "/run"


def fill():
    fd = os.open(target + "/filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 20, 4096, 512, 1):
            while True:
                try:
                    os.write(fd, b"x" * size)
                except OSError as error:
                    if error.errno != 28:
                        raise
                    break
    finally:
        os.close(fd)


store = open_store(root, run)
with store.transaction() as tx:
    for n in range(2000):
        tx.execute("insert into meta values (?, ?)", f"key{n}", "v" * 200)
store.close()
assert os.path.getsize(root + "/ballast") == 4 << 20
fill()
assert os.statvfs(root).f_bavail == 0

reader = open_store(root, run, write=False)
assert reader.stale, "the copy was not needed"
assert reader.query("select count(*) from meta where key like 'key%'") == [(2000,)]
reader.close()
assert os.listdir(run) == [], os.listdir(run)

try:
    writer = open_store(root, run)
    with writer.transaction() as tx:
        tx.execute("update meta set value = ? where key like 'key%'", "w" * 200)
except NoSpace as error:
    print("refused:", error)
else:
    raise AssertionError("written on a full disk")
assert os.path.exists(root + "/ballast"), "the ballast is for removals"

remover = open_store(root, run, freeing=True)
with remover.transaction() as tx:
    tx.execute("delete from meta where key like 'key1%'")
assert remover.query("select count(*) from meta where key like 'key%'") == [(889,)]
assert not os.path.exists(root + "/ballast")
remover.close()
assert not os.path.exists(root + "/ballast"), "there is no room for it yet"
os.unlink(target + "/filler")
open_store(root, run, freeing=True).close()
assert os.path.getsize(root + "/ballast") == 4 << 20
making.make_ballast(root)
subprocess.run(["umount", target], check=True)
print("sound")
