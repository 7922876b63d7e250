"""What a layer changed: from overlay's own directory and by comparing trees, on real mounts; and the law that what is
found, packed and applied again gives the same tree."""

import importlib.util
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from cowshed.layers import changes
from cowshed.storage.api import Change, ChangeKind, Whiteout
from cowshed.storage.kit.trees import copy_tree, remove_tree

spec = importlib.util.spec_from_file_location("layers_trees", Path(__file__).parent / "trees.py")
trees = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trees)

OLD = 1_500_000_000_000_000_123
PREFIX = "trusted.overlay."


@pytest.fixture
def base(tmp_path):
    """A lower tree with one of everything."""
    top = tmp_path / "base"
    (top / "etc/deep/er").mkdir(parents=True)
    (top / "etc/one").write_text("one")
    (top / "etc/two").write_text("two")
    (top / "etc/deep/er/leaf").write_text("leaf")
    (top / "a").mkdir()
    (top / "a/inside").write_text("x")
    (top / "a-b").write_text("y")
    (top / "link").symlink_to("etc/one")
    os.mkfifo(top / "fifo")
    os.link(top / "etc/one", top / "hard")
    for folder, names, files in os.walk(top):
        for name in (*names, *files):
            os.utime(f"{folder}/{name}", ns=(OLD, OLD), follow_symlinks=False)
    os.utime(top, ns=(OLD, OLD))
    return str(top)


class Case:
    """A change made in an overlay and in a copy: all ways must tell the same, and the archive must bring it about."""

    def __init__(self, base, folder):
        self.base, self.folder = base, folder

    def __call__(self, work, **options):
        where = tempfile.mkdtemp(dir=self.folder)
        with trees.overlaid(self.base, where, **options) as (merged, fd, upper), trees.opened(self.base) as (lower,):
            work(Path(merged))
            native = changes.of_diff_tree(lower, upper, Whiteout.CHAR, PREFIX)
            walked = changes.of_trees(lower, fd)
            assert trees.said(native) == trees.said(walked)
            named = [Change(os.fsencode(path), ChangeKind.CANDIDATE) for path, _ in trees.said(walked)]
            assert trees.said(changes.of_candidates(lower, fd, named)) == trees.said(walked)
            data = trees.packed(native, f"{where}/upper", private=PREFIX)
            assert trees.packed(walked, f"{merged}/.") == data, "one archive, however it was found"
            target = f"{where}/applied"
            copy_tree(self.base, target)
            trees.unpacked(data, target)
            wanted = {k: v for k, v in trees.look(f"{merged}/.").items() if v[0] != stat.S_IFSOCK}
            assert trees.look(target) == wanted
            self.data, self.applied = data, target
            return dict(trees.said(native))


@pytest.fixture
def case(base, tmp_path):
    folder = tmp_path / "cases"
    folder.mkdir()
    return Case(base, str(folder))


def keeping_times(path):
    """Undo what a change inside did to a directory's time."""
    os.utime(path, ns=(OLD, OLD))


def test_nothing(case):
    assert case(lambda top: None) == {}
    assert case.data == bytes(1024)


def test_touched_and_left_as_it_was_is_no_change(case):
    def work(top):
        (top / "etc/one").read_text()
        with open(top / "etc/two", "r+"):
            pass
        os.chmod(top / "etc/deep", os.stat(top / "etc/deep").st_mode & 0o7777)
        os.utime(top / "a-b", ns=(1, OLD))

    assert case(work) == {}


def test_add_modify_delete(case):
    def work(top):
        (top / "etc/new").write_text("n")
        (top / "etc/one").write_text("other")
        (top / "etc/two").unlink()
        keeping_times(top / "etc")

    assert case(work) == {"etc/new": "A", "etc/one": "C", "etc/two": "D"}


def test_other_bytes_with_the_same_size_and_time(case):
    def work(top):
        (top / "etc/two").write_text("owt")
        os.utime(top / "etc/two", ns=(OLD, OLD))

    assert case(work) == {"etc/two": "C"}


@pytest.mark.parametrize(
    "work",
    [
        lambda p: os.utime(p, ns=(OLD, OLD + 1)),
        lambda p: os.chmod(p, 0o4711),
        lambda p: os.chown(p, 7, 9),
        lambda p: os.setxattr(p, "user.note", b"\0\xff=\n"),
        lambda p: os.setxattr(p, "trusted.note", b"x"),
        lambda p: os.setxattr(
            p, "system.posix_acl_access",
            bytes.fromhex("0200000001000600ffffffff020004000700000004000400ffffffff10000400ffffffff20000000ffffffff"),
        ),
    ],
    ids=["mtime", "mode", "owner", "user-xattr", "trusted-xattr", "acl"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["etc/one", "etc/deep", ""])
def test_only_an_attribute(case, work, path):
    assert case(lambda top: work(top / path)) == {path: "C"}


def test_an_attribute_that_went(case, base):
    os.setxattr(f"{base}/a", "user.note", b"x")
    os.setxattr(f"{base}/a-b", "user.note", b"x")

    def work(top):
        os.removexattr(top / "a", "user.note")
        os.removexattr(top / "a-b", "user.note")

    assert case(work) == {"a": "C", "a-b": "C"}


def test_what_a_directory_gives_to_its_children_does_not_spoil_theirs(case, base):
    """A default access list of a lower directory: what is added below it has its own."""
    os.setxattr(
        f"{base}/a", "system.posix_acl_default",
        bytes.fromhex("0200000001000700ffffffff020007000700000004000500ffffffff10000700ffffffff20000500ffffffff"),
    )  # fmt: skip

    def work(top):
        for name in ("plain", "with"):
            (top / "a" / name).write_text("")
            (top / "a" / f"{name}-folder").mkdir()
        for path in (top / "a/plain", top / "a/plain-folder"):
            for key in os.listxattr(path):
                if key.startswith("system."):
                    os.removexattr(path, key)
            os.chmod(path, 0o644)
        keeping_times(top / "a")

    assert set(case(work)) == {"a/plain", "a/plain-folder", "a/with", "a/with-folder"}


def test_a_nested_deletion_is_one_whiteout(case):
    def work(top):
        shutil.rmtree(top / "etc")
        keeping_times(top)

    assert case(work) == {"etc": "D"}


def test_names_that_share_a_beginning(case):
    def work(top):
        shutil.rmtree(top / "a")
        keeping_times(top)

    assert case(work) == {"a": "D"}


def test_a_replaced_directory_is_opaque_below(case):
    def work(top):
        shutil.rmtree(top / "etc")
        (top / "etc/deep").mkdir(parents=True)
        (top / "etc/one").write_text("new")

    assert case(work) == {"": "C", "etc": "C", "etc/deep": "C", "etc/deep/er": "D", "etc/one": "C", "etc/two": "D"}


@pytest.mark.parametrize("new", ["file", "folder", "symlink", "fifo", "device", "socket"])
@pytest.mark.parametrize("old", ["etc", "etc/one", "link", "fifo"])
def test_one_kind_becomes_another(case, old, new):
    def work(top):
        path = top / old
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        if new == "file":
            path.write_text("file")
        elif new == "folder":
            path.mkdir()
            (path / "below").write_text("")
        elif new == "symlink":
            path.symlink_to("anywhere")
        elif new == "fifo":
            os.mkfifo(path)
        elif new == "device":
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        else:
            with socket.socket(socket.AF_UNIX) as s:
                s.bind(str(path))

    found = case(work)
    assert found[old] == ("D" if new == "socket" else "C")
    assert ("etc/deep" in found) == (old == "etc" and new == "folder")


def test_empty_ones(case):
    def work(top):
        (top / "empty").write_bytes(b"")
        (top / "folder").mkdir()
        keeping_times(top)

    assert case(work) == {"empty": "A", "folder": "A"}


def test_hard_links_that_are_added_go_with_all_their_names(case):
    def work(top):
        os.link(top / "etc/two", top / "etc/twin")
        keeping_times(top / "etc")

    assert case(work) == {"etc/twin": "A"}
    assert ["etc/twin", "etc/two"] in trees.groups(case.applied)


def test_hard_links_in_the_layer_and_one_name_gone(case):
    def work(top):
        (top / "first").write_text("f")
        os.link(top / "first", top / "second")
        (top / "hard").unlink()
        keeping_times(top)

    assert case(work) == {"first": "A", "second": "A", "hard": "D"}
    assert trees.groups(case.applied) == [["first", "second"]]


def test_hard_links_of_a_full_copy(base, tmp_path):
    """Where nothing breaks links: a change through one name is a change of all, and a third name brings the others."""
    changed = str(tmp_path / "changed")
    copy_tree(base, changed)
    Path(changed, "hard").write_text("through one name")
    os.link(f"{changed}/hard", f"{changed}/third")
    os.link(f"{changed}/etc/two", f"{changed}/twin")
    found = trees.naive(base, changed)
    assert {p: k for p, k in trees.said(found) if p} == {"etc/one": "C", "hard": "C", "third": "A", "twin": "A"}
    assert [c.path for c in found.linked] == [b"etc/two"]
    target = str(tmp_path / "applied")
    copy_tree(base, target)
    trees.unpacked(trees.packed(found, changed), target)
    assert trees.look(target) == trees.look(changed)
    assert trees.groups(target) == trees.groups(changed)


def test_renamed_swapped_and_cycled(case):
    def work(top):
        # overlay gives EXDEV for directories of below; mv(1) copies then
        shutil.copytree(top / "etc", top / "moved", symlinks=True)
        shutil.rmtree(top / "etc")
        (top / "a-b").rename(top / "t")
        (top / "hard").rename(top / "a-b")
        (top / "t").rename(top / "hard")

    assert {k: v for k, v in case(work).items() if "/" not in k and k} == {
        "etc": "D", "moved": "A", "a-b": "C", "hard": "C",
    }  # fmt: skip


def test_strange_names_and_depths(case):
    def work(top):
        (top / "new\nline").write_text("")
        os.close(os.open(os.fsencode(top) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
        (top / ("n" * 255)).write_text("long")
        (top / "s").symlink_to("t" * 1000)
        here = top / "etc"
        for _ in range(20):
            here = here / ("d" * 30)
            here.mkdir()
        (here / "end").write_text("end")
        os.link(here / "end", here / "other-end")
        (top / ".wh").write_text("no whiteout")

    assert len(case(work)) > 25


def test_a_tree_deeper_than_paths_can_be(base, tmp_path):
    changed = tmp_path / "changed"
    copy_tree(base, str(changed))
    fd = os.open(changed, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("dddd", dir_fd=fd)
        below = os.open("dddd", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    try:
        found = trees.naive(base, str(changed))
        assert len(found.changes) == 1501
        assert len(trees.packed(found, str(changed))) > 1500 * 512
    finally:
        assert remove_tree(str(changed))


def test_parents_of_a_change_are_in_the_archive_and_are_no_changes(case):
    def work(top):
        (top / "etc/deep/er/leaf").write_text("other")

    assert case(work) == {"etc/deep/er/leaf": "C"}
    import io
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(case.data)) as archive:
        assert archive.getnames() == [".", "etc", "etc/deep", "etc/deep/er", "etc/deep/er/leaf"]


@pytest.mark.parametrize("options", [{"redirect_dir": "on"}, {"redirect_dir": "on", "metacopy": "on"}])
def test_a_redirected_upper_directory_says_that_it_is_no_diff(base, tmp_path, options):
    where = tmp_path / "o"
    where.mkdir()
    with trees.overlaid(base, str(where), **options) as (merged, fd, upper), trees.opened(base) as (lower,):
        if "metacopy" in options:
            os.chmod(f"{merged}/etc/one", 0o600)
        else:
            os.rename(f"{merged}/etc", f"{merged}/moved")
        with pytest.raises(changes.NotPlain):
            changes.of_diff_tree(lower, upper, Whiteout.CHAR, PREFIX)
        found = changes.of_trees(lower, fd)
        target = str(tmp_path / "applied")
        copy_tree(base, target)
        trees.unpacked(trees.packed(found, f"{merged}/."), target)
        assert trees.look(target) == trees.look(f"{merged}/.")


def test_whiteouts_of_other_styles(base, tmp_path):
    """The same change as aufs and as overlay's whiteouts in attributes keep it."""
    aufs, attributes = tmp_path / "aufs", tmp_path / "attributes"
    for top in (aufs, attributes):
        shutil.copytree(f"{base}/etc", top / "etc", ignore=lambda *_: ["one", "two", "deep"])
        (top / "a").mkdir()
        (top / "a/new").write_text("")
    (aufs / "etc/.wh.two").write_text("")
    (aufs / "a/.wh..wh..opq").write_text("")
    (aufs / ".wh..wh.plnk").mkdir()
    (attributes / "etc/two").write_text("")
    os.setxattr(attributes / "etc/two", "trusted.overlay.whiteout", b"")
    os.setxattr(attributes / "etc", "trusted.overlay.opaque", b"x")
    os.setxattr(attributes / "a", "trusted.overlay.opaque", b"y")
    for top in (aufs, attributes):
        for path in (top / "etc", top / "a"):
            keeping_times(path)
        os.utime(top, ns=(OLD, OLD))
    for top, style in ((aufs, Whiteout.AUFS), (attributes, Whiteout.XATTR)):
        with trees.opened(base, top) as (lower, upper):
            found = changes.of_diff_tree(lower, upper, style, PREFIX)
        assert trees.said(found) == [("a/inside", "D"), ("a/new", "A"), ("etc/two", "D")]
        data = trees.packed(found, str(top), private=PREFIX)
        assert b".wh..wh." not in data
        assert b"overlay" not in data


def test_against_nothing_everything_is_added(base):
    with trees.opened(base) as (upper,):
        found = changes.of_trees(None, upper)
        assert {kind for _, kind in trees.said(found)} == {"A"}
        assert len(found.changes) == len(trees.look(base))
        assert trees.said(changes.of_candidates(None, upper, [Change(b"", ChangeKind.CANDIDATE, True)])) == trees.said(
            found
        )


# ---------------------------------------------------------------- at random


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=trees.OPERATIONS, after=trees.OPERATIONS)
def test_both_ways_tell_the_same_and_applying_it_gives_the_same_tree(before, after):
    with tempfile.TemporaryDirectory() as folder:
        base = f"{folder}/base"
        os.mkdir(base)
        trees.perform(base, before)
        case = Case(base, folder)
        found = case(lambda top: trees.perform(top, after))
        # and the third way: candidates, of which too many are named
        with trees.opened(base, case.applied) as (lower, upper):
            naive = changes.of_trees(lower, upper)
            assert dict(trees.said(naive)) == found
            paths = {p.encode() for p in (*trees.look(base), *trees.look(case.applied))}
            every = [Change(path, ChangeKind.CANDIDATE) for path in sorted(paths, reverse=True)]
            assert trees.said(changes.of_candidates(lower, upper, every)) == trees.said(naive)
            exact = [Change(os.fsencode(path), ChangeKind.CANDIDATE) for path in found]
            assert trees.said(changes.of_candidates(lower, upper, exact)) == trees.said(naive)
            whole = [Change(b"", ChangeKind.CANDIDATE, subtree=True)]
            assert trees.said(changes.of_candidates(lower, upper, whole)) == trees.said(naive)
            one_name = one_name_of_each(naive)
            completed = changes.of_candidates(lower, upper, one_name)
            assert trees.said(completed) == trees.said(naive), "a file's other names, which no candidate tells"
            assert [c.path for c in completed.linked] == [c.path for c in naive.linked]


def one_name_of_each(difference):
    """What a driver tells that knows one name of a file only."""
    seen, told = set(), []
    for changed in difference.changes:
        status = changed.status
        if status is not None and not stat.S_ISDIR(status.st_mode):
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
        told.append(Change(changed.path, ChangeKind.CANDIDATE))
    return told


# ---------------------------------------------------------------- places of mounts


def test_what_was_made_for_mounts_is_no_change(case, base, tmp_path):
    changed = tmp_path / "changed"
    copy_tree(base, str(changed))
    (changed / "proc").mkdir()
    (changed / "etc/hosts").write_text("")
    (changed / "made/for/volume").mkdir(parents=True)
    (changed / "full").mkdir()
    (changed / "full/of").write_text("things")
    (changed / "etc/written").write_text("")
    (changed / "etc/written").write_text("x")
    (changed / "a/point").mkdir()
    (changed / "a/other").write_text("")
    places = [b"proc", b"etc/hosts", b"made/for/volume", b"full", b"etc/written", b"a/point", b"nowhere", b"a", b""]
    found = changes.without(trees.naive(base, str(changed)), places)
    assert dict(trees.said(found)) == {
        "": "C", "a": "C", "a/other": "A", "etc": "C", "etc/written": "A", "full": "A", "full/of": "A",
    }  # fmt: skip


def test_only_for_mounts_leaves_nothing(base, tmp_path):
    changed = tmp_path / "changed"
    copy_tree(base, str(changed))
    (changed / "dev").mkdir()
    (changed / "etc/hosts").write_text("")
    found = trees.naive(base, str(changed))
    assert changes.without(found, [b"dev", b"etc/hosts"]).changes == []
    os.chmod(changed / "etc", 0o700)
    found = trees.naive(base, str(changed))
    assert trees.said(changes.without(found, [b"dev", b"etc/hosts"])) == [("", "C"), ("etc", "C")]
