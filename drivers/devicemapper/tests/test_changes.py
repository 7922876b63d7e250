"""What two ext4 differ in, told from their blocks: against the walk of both trees. Images stand in for thin devices."""

import contextlib
import os
import random
import shutil
import subprocess

import pytest

from cowshed.layers import changes as engine
from cowshed_conformance import randoms, steps
from cowshed_driver_devicemapper import changes, ext4, filesystems

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="file systems are mounted")
BLOCK = 64 << 10  # of the pool
QUOTA = bool(os.environ.get("COWSHED_GUEST"))  # which kernel a host has is not known
TIMES = int(os.environ.get("COWSHED_RANDOM_TREES", "12"))


@contextlib.contextmanager
def mounted(image, at, *, options="loop"):
    os.makedirs(at, exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", "-o", options, image, at], check=True)
    try:
        yield f"{at}/root"
    finally:
        subprocess.run(["umount", at], check=True)


class Pair:
    """An image and one made from it."""

    def __init__(self, folder, *, size=48 << 20, quota=QUOTA):
        self.folder, self.lower, self.upper = folder, f"{folder}/lower", f"{folder}/upper"
        with open(self.lower, "wb") as file:
            file.truncate(size)
        words = filesystems.mkfs("ext4", self.lower, "5" * 32, size, quota=quota, zeroed=True)
        subprocess.run(words, check=True)
        with self.change("lower") as root:
            os.mkdir(root)

    @contextlib.contextmanager
    def change(self, which, *, atime="relatime"):
        image = getattr(self, which)
        if which == "upper" and not os.path.exists(image):
            shutil.copyfile(self.lower, image)
        with mounted(image, f"{self.folder}/at", options=f"loop,{atime}") as root:
            yield root

    def ranges(self):
        with open(self.lower, "rb") as one, open(self.upper, "rb") as other:
            size = os.path.getsize(self.upper)
            return [(at, BLOCK) for at in range(0, size, BLOCK) if one.read(BLOCK) != other.read(BLOCK)]

    def differing(self):
        with open(self.lower, "rb") as one, open(self.upper, "rb") as other:
            return ext4.differing(ext4.FileSystem(one.fileno()), ext4.FileSystem(other.fileno()), self.ranges())

    def told(self):
        """(changes by the driver's candidates, changes by the walk, the candidates)"""
        inodes = self.differing()
        with (
            mounted(self.lower, f"{self.folder}/one", options="loop,ro") as one,
            mounted(self.upper, f"{self.folder}/two", options="loop,ro") as two,
        ):
            candidates = changes.named(one, two, inodes)
            below, now = (os.open(root, os.O_RDONLY | os.O_DIRECTORY) for root in (one, two))
            try:
                quick, walk = engine.of_candidates(below, now, candidates), engine.of_trees(below, now)
            finally:
                os.close(below)
                os.close(now)
        texts = [[(c.path, c.kind.value) for c in found.changes] for found in (quick, walk)]
        links = [[c.path for c in found.linked] for found in (quick, walk)]
        return (texts[0], links[0]), (texts[1], links[1]), candidates


@pytest.fixture
def pair(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    yield Pair(str(tmp_path))
    # Lazily: a loop device lets go of its file a moment after it was unmounted.
    subprocess.run(["umount", "-l", tmp_path], check=True)


def test_what_is_told_leads_to_what_the_walk_finds(pair):
    seed = random.randrange(1 << 32)
    for n in range(TIMES):
        chance = random.Random(seed + n)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pair.upper)
        with pair.change("lower") as root:
            randoms.change(root, chance, 25)
        with pair.change("upper") as root:
            randoms.change(root, chance, 12)
        quick, walk, _ = pair.told()
        assert quick == walk, f"seed {seed + n}"


def test_nothing_is_changed_by_mounting_and_reading(pair):
    with pair.change("lower") as root:
        steps.do(root, steps.directory("d"), steps.file("d/a", b"1" * 9000))
    with pair.change("upper", atime="strictatime") as root:
        assert steps.read(root, "d/a") == b"1" * 9000
        os.listdir(f"{root}/d")
    assert pair.ranges(), "mounting writes nothing any more: this test shows nothing"
    assert pair.differing() == {}


def behind_its_back(pair, content, other):
    """Write into the newer image what no file system has written: as after a clock that was set back."""
    with pair.change("upper"):
        pass
    with open(pair.upper, "r+b") as image:
        data = image.read()
        assert content in data
        image.seek(0)
        image.write(data.replace(content, other))  # the journal has some of it too


def test_other_content_without_another_inode_is_not_overlooked(pair):
    content = os.urandom(3000)
    with pair.change("lower") as root:
        steps.do(root, steps.file("a", content), steps.file("b", b"1"))
    behind_its_back(pair, content, content[::-1])
    with pytest.raises(ext4.Unclear, match="no inode that does has it"):
        pair.differing()


def test_other_names_or_attributes_without_another_inode_are_not_overlooked(pair):
    value = os.urandom(1000)
    with pair.change("lower") as root:
        steps.do(root, steps.file("a"), steps.set_xattr("a", "user.x", value), steps.file("somewhat-odd-a", b"1"))
    for content, other in ((value, value[::-1]), (b"somewhat-odd-a", b"somewhat-odd-b")):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pair.upper)
        behind_its_back(pair, content, other)
        with pytest.raises(ext4.Unclear):
            pair.differing()


def test_attributes_that_files_share_are_no_riddle(pair):
    value = os.urandom(1000)
    with pair.change("lower") as root:
        for name in "abc":
            steps.do(root, steps.file(name), steps.set_xattr(name, "user.x", value))
    with pair.change("upper") as root:
        os.removexattr(f"{root}/a", "user.x")
        steps.do(root, steps.file("d"), steps.set_xattr("d", "user.x", value))
    quick, walk, told = pair.told()
    assert quick == walk
    assert {change.path for change in told} == {b"", b"a", b"d"}


def test_a_file_in_many_pieces_is_followed_through_its_tree(pair):
    with pair.change("lower") as root:
        steps.do(root, steps.file("big"), steps.file("other", b"1"))
        with open(f"{root}/big", "wb") as file:
            for n in range(1500):  # more extents than a block names
                os.pwrite(file.fileno(), b"x" * 4096, n * 12288)
    with pair.change("upper") as root, open(f"{root}/big", "r+b") as file:
        os.pwrite(file.fileno(), b"y", 700 * 12288)
    quick, walk, told = pair.told()
    assert quick == walk
    assert [change.path for change in told] == [b"big"]


def test_what_lies_beside_a_change_is_not_told(pair):
    """Blocks of the pool are larger than those of files: neighbours share them."""
    with pair.change("lower") as root:
        steps.do(root, steps.directories("d/e"), *(steps.file(f"d/f{n}", os.urandom(5000)) for n in range(40)))
        steps.do(root, steps.file("d/e/deep", b"1"))
    with pair.change("upper") as root:
        steps.do(root, steps.append("d/f7", b"+"), steps.append("d/e/deep", b"2"), steps.rename("d/f9", "d/e/g"))
    quick, walk, told = pair.told()
    assert quick == walk
    assert {change.path for change in told} == {b"d", b"d/f7", b"d/f9", b"d/e", b"d/e/deep", b"d/e/g"}


def test_a_moved_tree_and_a_name_of_its_files_elsewhere(pair):
    with pair.change("lower") as root:
        steps.do(root, steps.directories("t/sub"), steps.file("t/sub/a", b"1"), steps.directory("o"))
        steps.do(root, steps.link("t/sub/a", "o/l"), steps.file("t/sub/b", b"1"))
    with pair.change("upper") as root:
        steps.do(root, steps.move_directory("t", "u"), steps.append("u/sub/a", b"2"), steps.directory("t"))
    quick, walk, _ = pair.told()
    assert quick == walk


def test_an_inode_that_is_of_another_kind_now(pair):
    with pair.change("lower") as root:
        steps.do(root, steps.file("f"), steps.directory("d"), steps.file("d/in"), steps.symlink("x", "l"))
        before = {name: os.lstat(f"{root}/{name}").st_ino for name in "fdl"}
    with pair.change("upper") as root:
        steps.do(root, steps.remove("f"), steps.remove_all("d"), steps.remove("l"))
        steps.do(root, steps.directory("f"), steps.file("f/in"), steps.directory("l"), steps.file("l/in"))
        steps.do(root, steps.file("d"))
        after = {name: os.lstat(f"{root}/{name}").st_ino for name in "fdl"}
    assert {name for name in "fdl" if before[name] == after[name]} >= {"f"}, "no number was used again"
    quick, walk, _ = pair.told()
    assert quick == walk


def another_one(image):
    """tune2fs changes an identity only after a check, unless the mount fell into the second of the mkfs."""
    subprocess.run(["e2fsck", "-fy", image], check=False)
    subprocess.run(["tune2fs", "-O", "^dir_nlink", "-U", "random", image], check=True)


@pytest.mark.parametrize(
    "change",
    [
        another_one,
        lambda image: subprocess.run(["resize2fs", "-f", image, "64M"], check=True),
        lambda image: subprocess.run(["debugfs", "-w", "-R", "feature needs_recovery", image], check=True),
    ],
    ids=["another one", "grown", "not at rest"],
)
def test_what_is_not_alike_or_not_at_rest_is_not_compared(pair, change):
    with pair.change("upper"):
        pass
    change(pair.upper)
    with pytest.raises(ext4.Unclear):
        pair.differing()


def test_no_file_system_is_told_as_such(tmp_path):
    for size, content in ((8192, b""), (100, b"x")):
        with open(f"{tmp_path}/f", "wb") as file:
            file.write(content)
            file.truncate(size)
        with open(f"{tmp_path}/f", "rb") as file, pytest.raises(ext4.Unclear):
            ext4.FileSystem(file.fileno())
