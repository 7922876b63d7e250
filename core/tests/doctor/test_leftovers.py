"""What remedies say to do with what is left, and stores behind links."""

from types import SimpleNamespace

import pytest

from cowshed.doctor import leftovers
from cowshed.storage.kit import projects
from cowshed_linux import mounts


@pytest.fixture
def points(monkeypatch):
    found = []
    monkeypatch.setattr(mounts, "table", lambda: [SimpleNamespace(point=point) for point in found])
    return found


def test_a_tree_is_removed_after_what_is_mounted_in_it_and_names_are_quoted(points):
    assert leftovers.removal("/run/a b") == "rm -r --one-file-system '/run/a b'"
    points += ["/run", "/run/a b/$x", "/run/a b/$x/y", "/run/a bc"]
    assert leftovers.removal("/run/a b") == (
        "umount '/run/a b/$x/y' && umount '/run/a b/$x' && rm -r --one-file-system '/run/a b'"
    )


def test_mounts_of_a_store_behind_a_link_are_found(points, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    points += [f"{tmp_path}/real/root/drivers/copy/a b", f"{tmp_path}/real/run/x", f"{tmp_path}/real/other"]
    patient = SimpleNamespace(
        root=f"{tmp_path}/link/root", settings=SimpleNamespace(run_root=f"{tmp_path}/link/run"), store=None,
        used=lambda: ["copy"],
    )  # fmt: skip
    assert [finding.remedy for finding in leftovers.mounts(patient)] == [
        f"umount '{tmp_path}/real/root/drivers/copy/a b'", f"umount {tmp_path}/real/run/x",
    ]  # fmt: skip


def test_the_mount_of_a_place_behind_a_link_is_found(tmp_path):
    (tmp_path / "link").symlink_to("/proc")
    assert projects._mount(f"{tmp_path}/link")[1] == "/proc"
