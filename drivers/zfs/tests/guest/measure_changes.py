"""What finding the changes of 40 files in a big tree costs, natively and by the walk: FILES PLACE [TURNS] in the guest.

PLACE in /dev/shm spares the guest's disk, and takes its memory."""

import os
import stat
import sys
import time

from cowshed.layers import changes
from cowshed.storage import options
from cowshed_conformance import backing, steps
from cowshed_conformance.harness import Store
from cowshed_conformance.target import Target
from cowshed_driver_zfs import plugin


def timed(label, function):
    before, start = os.times(), time.monotonic()
    result = function()
    after, wall = os.times(), time.monotonic() - start
    cpu = sum(after[:4]) - sum(before[:4])
    print(f"{label}: {wall:.2f} s, {cpu:.2f} s of CPU", flush=True)
    return result, cpu


def fill(root, count):
    for first in range(0, count, 200):
        folder = f"{root}/{first // 20000}/{first // 200}"
        os.makedirs(folder)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        for n in range(first, min(first + 200, count)):
            os.mknod(str(n), stat.S_IFREG | 0o644, dir_fd=fd)  # one call for a file
        os.close(fd)


def main():
    count, folder, turns = int(sys.argv[1]), sys.argv[2], int((sys.argv[3:] or ["2"])[0])
    with backing.file_system("zpool", folder, 2 << 30) as system:
        store = Store(Target("zfs", plugin, options.check(plugin, {}), {}, True, 1), f"{system.path}/store")
        base = store.new()
        with store.mount(base) as root:
            timed(f"make {count} files", lambda: fill(root, count))
        base = store.commit(base)
        top = store.new(base)
        with store.mount(top) as root:
            for n in range(0, count, count // 40):
                steps.do(root, steps.append(f"{n // 20000}/{n // 200}/{n}", b"+"))
        with store.tree(base, read_only=True) as lower, store.tree(top, read_only=True) as upper:
            for turn in range(turns):
                named, tool = timed("changes()", lambda: list(store.driver.changes(base, top)))
                quick, compared = timed(
                    "what it names, compared", lambda named=named: changes.of_candidates(lower, upper, named)
                )
                slow, walked = timed("the walk", lambda: changes.of_trees(lower, upper))
                paths = [[c.path for c in found.changes] for found in (quick, slow)]
                assert paths[0] == paths[1], "not the same"
                print(
                    f"turn {turn}: {len(paths[0])} changes, the walk is {walked / (tool + compared):.1f} times dearer"
                )
        store.discard()


if __name__ == "__main__":
    main()
