"""Where file systems lie on a device."""

from types import SimpleNamespace

from cowshed.bench import scratch

MIB = 1 << 20


def test_smaller_file_systems_begin_where_slices_do(monkeypatch):
    began = []
    monkeypatch.setattr(scratch.loops, "attach", lambda fd, **more: began.append((fd, more["start"], more["size"])))
    device = SimpleNamespace(fd=7, stride=512 * MIB, slices=3)
    place = scratch.Scratch(SimpleNamespace(folder="/none"), 0, device)
    assert place.size == 512 * MIB
    place._attach("/none/1", 320 * MIB, 2, named=False)
    assert began == [(7, 1024 * MIB, 320 * MIB)]


def test_marks_are_at_both_ends_and_where_btrfs_has_its_second_superblock():
    assert list(scratch._marks(10 * MIB, 512 * MIB)) == [(10 * MIB, MIB), (74 * MIB, MIB), (521 * MIB, MIB)]
    assert list(scratch._marks(0, MIB // 2)) == [(0, MIB // 2)]
