"""Names of datasets, and where a directory lies."""

import pytest

from cowshed.storage.errors import BadOption
from cowshed_driver_zfs import names

ID = "0123456789abcdef" * 2
# recorded: Linux 6.1, OpenZFS 2.1.11; the third is the pool `a pool`, mounted at `/s/a t`
MOUNTINFO = r"""22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
44 43 0:32 / /s/at rw,relatime - zfs tank rw,xattr,noacl
45 43 0:33 / /s/a\040t rw,relatime - zfs a\040pool/d rw,xattr,noacl
46 43 0:34 / /s/at/.zfs/snapshot/c ro,relatime - zfs tank@c ro,xattr,noacl
47 43 254:80 / /work ro,relatime - ext4 /dev/vdf ro
"""


@pytest.mark.parametrize(
    ("device", "dataset"), [("0:32", "tank"), ("0:33", "a pool/d"), ("0:34", "tank@c"), ("254:80", None), ("9:9", None)]
)
def test_the_dataset_of_a_directory_is_found_by_its_device(device, dataset):
    assert names.mounted_dataset(MOUNTINFO, device) == dataset


@pytest.mark.parametrize("name", ["tank", "tank/a", "tank/a b/c-d_e.f:g", "p0/" + "x" * (names.LONGEST - 3)])
def test_names_that_a_dataset_can_have(name):
    assert names.check_dataset(name) == name


@pytest.mark.parametrize(
    "name", ["", "/tank", "tank/", "tank//a", "tank@c", "tank#b", "1tank", "-o", "tank\n", "tank/é", "p" * 200]
)
def test_names_that_a_dataset_cannot_have_are_refused_with_a_remedy(name):
    with pytest.raises(BadOption) as raised:
        names.check_dataset(name)
    assert raised.value.remedy
    assert "\n" not in str(raised.value)


def test_the_longest_name_of_a_store_fits_in_what_the_kernel_takes():
    store = names.store("p" * names.LONGEST, ID)
    temporary_snapshot = f"{store}/committed.{ID}@zfs-diff-4294967295-0123456789abcdef"
    assert len(temporary_snapshot) == 255


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        (f"active.{ID}", ("active", ID)),
        (f"committed.{ID}", ("committed", ID)),
        (f"trash.{ID}", ("trash", ID)),
        (f"trash.{ID}.12", ("trash", ID)),
        (f"temp.{ID}", ("temp", ID)),
        ("empty", None),
        ("mine", None),
        (f"active.{ID}.1", None),
        (f"active.{ID}/x", None),
        ("active.ABCDEF", None),
    ],
)
def test_what_a_dataset_is_is_told_by_its_name(name, parsed):
    assert names.parse(name) == parsed


@pytest.mark.parametrize(
    ("text", "version"),
    [("zfs-2.1.11-1+deb12u1\nzfs-kmod-2.1.11-1\n", (2, 1, 11)), ("2.3.9-0+deb13u1\n", (2, 3, 9)), ("none", ())],
)
def test_versions(text, version):
    assert names.version(text) == version


def test_a_pool_is_the_first_part():
    assert [names.pool(name) for name in ("tank", "tank/a/b", "tank@c")] == ["tank"] * 3


def test_nobody_has_a_store_mounted_that_does_not_exist():
    assert names.holders("no-such-pool/cowshed-0") == []
