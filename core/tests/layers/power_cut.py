"""S2, S3 and S10 for real: what of a store is there after the power was cut. `power_cut.py FOLDER FILESYSTEM`

To be run in a private mount namespace. The disk is a loop device. Power is cut by copying the file behind it, which has
what the file system had sent to its disk by then; the copy is mounted, as after a reboot, and looked at.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import work

from cowshed.image.blobs import BlobStore
from cowshed.state import layers as rows
from cowshed_linux import process

MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"], "btrfs": ["mkfs.btrfs", "-q", "-f"]}
folder, kind = Path(sys.argv[1]), sys.argv[2]
disk, cut, place = folder / "disk.img", folder / "cut.img", folder / "mounted"
place.mkdir()
subprocess.run(["truncate", "-s", "320M", disk], check=True)
subprocess.run([*MAKE[kind], disk], check=True, stdout=subprocess.DEVNULL)
subprocess.run(["mount", "-o", "loop" + (",commit=300" if kind != "xfs" else ""), disk, place], check=True)
root = str(place / "store")

layers = work.opened(root, "overlay")
blobs = BlobStore(root)
blobs.open_for_sync()
data = os.urandom(1 << 20)
with blobs.create() as new:
    new.write(data)
    digest = new.publish()
blobs.sync()
durable = work.pull(layers)
container = work.create(layers, durable)
work.commit(layers, durable)
not_durable = work.pull(layers, tuple("sha256:" + letter * 64 for letter in "123"), "d", "none")
expected = {row.number for row in rows.list_all(layers.store, "overlay")}
subprocess.run(["cp", "--sparse=always", disk, cut], check=True)  # the power is cut
layers.store.close()
layers.driver.close()
blobs.close()
subprocess.run(["umount", place], check=True)
subprocess.run(["mount", "-o", "loop", cut, place], check=True)
boot = process.boot_id()
process.boot_id = lambda: "another boot"

layers = work.opened(root, "overlay")
assert {row.number for row in rows.list_all(layers.store, "overlay")} == expected, "rows are lost"


def content(layer, name):
    with layers.mounted(layer, read_only=True) as tree:
        return Path(f"/proc/self/fd/{tree}/{name}").read_bytes()


for chain, diff in zip(durable.chain_ids, durable.diff_ids, strict=True):
    layer = layers.by_chain_id(chain)
    assert layer is not None, "a durable layer is not trusted"
    assert content(layer, diff[7:9]) == chain.encode() * 1000, "S2: a durable layer is cut"
assert content(layers.load(container.number), "aa"), "S3: the container's layer is gone"
assert hashlib.sha256(Path(root, "blobs/sha256", digest[7:]).read_bytes()).hexdigest() == digest[7:], "S10: blob"
suspects = [finding.layer for finding in layers.check() if finding.code == "suspect"]
assert len(suspects) == 3, suspects
lost = 0
for row in rows.list_all(layers.store, "overlay"):
    if row.id in suspects:
        path = Path(root, "drivers/overlay/committed", row.id, "upper", row.diff_id[7:9])
        lost += not path.exists() or path.read_bytes() != row.chain_id.encode() * 1000
assert layers.by_chain_id(not_durable.chain_ids[0]) is None, "a suspect layer is trusted"
again = work.pull(layers, not_durable.diff_ids, "d")
for chain, diff in zip(again.chain_ids, again.diff_ids, strict=True):
    assert content(layers.by_chain_id(chain), diff[7:9]) == chain.encode() * 1000
layers.remove_unreferenced()
layers.purge(10)
assert not (left := list(layers.check())), left
layers.store.close()
layers.driver.close()
subprocess.run(["umount", place], check=True)
print(f"sound; of 3 layers without durability {lost} were cut")
