"""The ways of older kernels, which newer ones take as well."""

import os

import pytest

from cowshed.layers import mounting, older
from cowshed.storage import api
from cowshed_linux import mount

NAME = "0123456789abcdef" * 2


def lowers(top, count, name="layer"):
    made = []
    for number in range(count):
        folder = top / f"{name}{number}"
        folder.mkdir(parents=True)
        (folder / "who").write_text(str(number))
        (folder / f"only{number}").touch()
        made.append(str(folder))
    return made


def overlay(paths, below=(), options=()):
    return older.overlay(api.Overlay((), options=options), paths, below, read_only=True)


def shown(fd, place):
    """The line of the mount table for a mount that is attached for it."""
    mount.attach(fd, str(place))
    try:
        return next(line for line in open_lines("/proc/self/mountinfo") if f" {place} " in line)
    finally:
        mount.unmount(str(place), mount.MNT_DETACH)


def open_lines(path):
    with open(path) as file:
        return file.readlines()


@pytest.mark.parametrize("count", [2, 15])
def test_an_overlay_is_mounted_and_the_table_names_its_layers(tmp_path, count):
    (tmp_path / "at").mkdir()
    paths = lowers(tmp_path / "below", count, NAME)
    fd = overlay(paths, options=(("xino", "off"),))
    try:
        root = f"/proc/self/fd/{fd}"
        with open(f"{root}/who") as file:
            assert file.read() == "0"
        assert len(os.listdir(root)) == count + 1
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir(f"{root}/new")
        line = shown(fd, tmp_path / "at")
        assert all(os.path.basename(path) in line for path in paths)
    finally:
        os.close(fd)


def test_an_overlay_is_written_whatever_its_directories_are_called(tmp_path):
    top = tmp_path / "a,b:c\\d e"
    paths = lowers(top, 3)
    (top / "upper").mkdir()
    (top / "work").mkdir()
    step = api.Overlay(tuple(paths), f"{top}/upper", f"{top}/work")
    fd = older.overlay(step, paths, [], read_only=False)
    try:
        with open(f"/proc/self/fd/{fd}/new", "w") as file:
            file.write("1")
    finally:
        os.close(fd)
    assert (top / "upper/new").read_text() == "1"


def test_more_layers_than_have_room_by_name_are_mounted_by_number(tmp_path):
    paths = lowers(tmp_path, 300, NAME)
    fd = overlay(paths)
    try:
        assert len(os.listdir(f"/proc/self/fd/{fd}")) == 301
    finally:
        os.close(fd)


def test_too_many_layers_are_told_and_no_descriptor_stays(tmp_path):
    paths = lowers(tmp_path, 2, "x") * 500
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"1000 layers do not fit in one page of options; Linux 6\.8 has no such limit"):
        overlay(paths, options=(("lowerdir", "u" * 3000),))
    assert os.listdir("/proc/self/fd") == before


def test_a_refusal_is_told_with_the_options(tmp_path):
    with pytest.raises(OSError, match=r"mount overlay: 2 layers: No such file or directory"):
        overlay([str(tmp_path / "missing"), str(tmp_path)])
    with pytest.raises(OSError, match=r"mount overlay: 2 layers, no_such_option=1: Invalid argument"):
        overlay(lowers(tmp_path, 2), options=(("no_such_option", "1"),))


def test_an_overlay_lies_on_detached_mounts(tmp_path):
    trees = [mount.clone(path) for path in lowers(tmp_path, 2)]
    try:
        fd = overlay([f"/proc/self/fd/{tree}" for tree in trees], trees)
        try:
            assert len(os.listdir(f"/proc/self/fd/{fd}")) == 3
        finally:
            os.close(fd)
    finally:
        for tree in trees:
            os.close(tree)


@pytest.mark.parametrize(
    "said",
    [
        "mount overlay: create: Invalid argument",
        "mount overlay: redirect_dir=nofollow: Invalid argument (kernel: e VFS: Legacy: Cumulative options too large)",
    ],
)
def test_a_plan_falls_back_where_the_kernel_refuses(tmp_path, monkeypatch, said):
    """As Linux 6.1 does: it takes lowerdir+ and says EINVAL when all is told, or when a page is full, at any option."""
    paths = lowers(tmp_path, 2)
    real = mount.file_system

    def file_system(fstype, source, options=(), attributes=0):
        options = list(options)
        if any(name == "lowerdir+" for name, _ in options):
            raise OSError(22, said)
        return real(fstype, source, options, attributes)

    monkeypatch.setattr(mount, "file_system", file_system)
    fd = mounting.detached(api.MountPlan((api.Overlay(tuple(paths)),)))
    try:
        assert len(os.listdir(f"/proc/self/fd/{fd}")) == 3
    finally:
        os.close(fd)


def test_an_overlay_is_found_by_way_of_the_working_directory(tmp_path, monkeypatch):
    """So a user reaches a store below directories that are closed to him."""
    lowers(tmp_path / "below", 2)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    here = "/proc/self/cwd"
    step = api.Overlay((), f"{here}/upper", f"{here}/work")
    fd = older.overlay(step, [f"{here}/below/layer0", f"{here}/below/layer1"], [], read_only=False)
    try:
        assert len(os.listdir(f"/proc/self/fd/{fd}")) == 3
    finally:
        os.close(fd)


def test_many_layers_with_an_upper_one_are_mounted_by_number(tmp_path):
    paths = lowers(tmp_path / "below", 300, NAME)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    step = api.Overlay((), f"{tmp_path}/upper", f"{tmp_path}/work")
    fd = older.overlay(step, paths, [], read_only=False)
    try:
        os.mkdir(f"/proc/self/fd/{fd}/new")
    finally:
        os.close(fd)
    assert os.listdir(tmp_path / "upper") == ["new"]
