"""Small trees for tests of changes and archives: made, changed at random, looked at, laid over each other."""

import contextlib
import os
import shutil
import stat

from hypothesis import strategies as st

from cowshed.layers import archive, changes
from cowshed.layers.apply import apply
from cowshed.layers.mounting import detached
from cowshed.storage import api

NAMES = ["a", "a-b", "b", "c", "d"]
PRIVATE = ("trusted.overlay.", "security.selinux")


def look(top):
    """All that an archive says of a tree: path -> kind, attributes and contents."""
    seen = {}

    def one(path, name):
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        what = b""
        if kind == stat.S_IFREG:
            with open(path, "rb") as f:
                what = f.read()
        elif kind == stat.S_IFLNK:
            what = os.fsencode(os.readlink(path))
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            what = str(status.st_rdev).encode()
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
            if not key.startswith(PRIVATE)
        }
        seen[name] = (kind, status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns, what, attributes)
        if kind == stat.S_IFDIR:
            for each in os.listdir(path):
                one(f"{path}/{each}", f"{name}/{each}" if name else each)

    one(top, "")
    return seen


def groups(top):
    """The names that share a file."""
    found = {}
    for folder, _, files in os.walk(top):
        for name in files:
            path = f"{folder}/{name}"
            found.setdefault(os.lstat(path).st_ino, set()).add(os.path.relpath(path, top))
    return sorted(sorted(names) for names in found.values() if len(names) > 1)


def with_capabilities(old, **changes):
    names = [name for name in api.Capabilities.__annotations__ if not name.startswith("_")]
    return api.Capabilities(**{**{name: getattr(old, name) for name in names}, **changes})


@contextlib.contextmanager
def opened(*paths):
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in paths]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def overlaid(lower, folder, **options):
    """An overlay mount above lower: (path of the merged tree, descriptor of the upper directory)."""
    for name in ("upper", "work"):
        os.mkdir(f"{folder}/{name}")
    status = os.stat(lower)
    os.chmod(f"{folder}/upper", status.st_mode & 0o7777)
    os.chown(f"{folder}/upper", status.st_uid, status.st_gid)
    for name in os.listxattr(lower):
        os.setxattr(f"{folder}/upper", name, os.getxattr(lower, name))
    os.utime(f"{folder}/upper", ns=(status.st_atime_ns, status.st_mtime_ns))
    said = {"redirect_dir": "nofollow", "metacopy": "off", "index": "off", "xino": "off", **options}
    step = api.Overlay((str(lower),), f"{folder}/upper", f"{folder}/work", options=tuple(said.items()))
    fd = detached(api.MountPlan((step,)))
    try:
        with opened(f"{folder}/upper") as (upper,):
            yield f"/proc/self/fd/{fd}", fd, upper
    finally:
        os.close(fd)


def said(difference):
    return [(os.fsdecode(c.path), c.kind.value) for c in difference.changes]


def naive(lower, upper):
    with opened(lower, upper) as (low, up):
        return changes.of_trees(low, up)


def packed(difference, root, **options):
    with opened(root) as (fd,):
        return b"".join(archive.stream(difference, fd, **options))


def unpacked(data, root):
    with opened(root) as (fd,):
        return apply([data], fd)


# ---------------------------------------------------------------- changed at random

PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "write",
                "mkdir",
                "remove",
                "rename",
                "chmod",
                "chown",
                "utime",
                "xattr",
                "symlink",
                "link",
                "same",
                "fifo",
            ]
        ),
        PATHS,
        PATHS,
        st.integers(0, 3),
    ),
    max_size=14,
)


def perform(top, operations):
    for what, one, other, number in operations:
        path, second = f"{top}/{one}", f"{top}/{other}"
        try:
            if what in ("write", "same") and not stat.S_ISREG(
                os.stat(path).st_mode if os.path.exists(path) else 0o100000
            ):
                continue  # a pipe would wait for its other end
            if what == "write":
                with open(path, "w") as f:
                    f.write("x" * number)
            elif what == "mkdir":
                os.makedirs(path)
            elif what == "remove":
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
            elif what == "rename":
                os.rename(path, second)
            elif what == "chmod":
                os.chmod(path, 0o700 + number)
            elif what == "chown":
                os.lchown(path, number, number)
            elif what == "utime":
                os.utime(path, ns=(0, number - 1), follow_symlinks=False)
            elif what == "xattr":
                os.setxattr(path, "user.x", b"x" * number)
            elif what == "symlink":
                os.symlink("b" * number or ".", path)
            elif what == "link":
                os.link(path, second, follow_symlinks=False)
            elif what == "same":
                with open(path, "r+"):
                    pass
            elif what == "fifo":
                os.mkfifo(path)
        except OSError:
            continue
