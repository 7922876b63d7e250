"""Containers under a profile of AppArmor, on a kernel that runs it."""

import subprocess

import pytest

pytestmark = pytest.mark.guest
NAME = "cowshed-test"
PROFILE = f"""
profile {NAME} flags=(attach_disconnected,mediate_deleted) {{
    file,
    capability,
    signal,
    deny /srv/one r,
    deny /srv/three w,
}}
"""
UNDER = ("--security-opt", f"apparmor={NAME}")
TRIED = ("sh", "-c", "cat three; cat one; echo more >> three; cat /proc/self/attr/current")


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / NAME
    path.write_text(PROFILE)
    subprocess.run(["apparmor_parser", "-K", "-r", path], check=True, timeout=600)
    yield NAME
    subprocess.run(["apparmor_parser", "-R", path], check=True, timeout=600)


def denied(done):
    told = done.stderr.decode().splitlines()
    assert done.stdout.decode() == f"three\n{NAME} (enforce)\n", told
    assert len(told) == 2, told
    assert all("Permission denied" in line for line in told), told
    assert "one" in told[0]
    assert "three" in told[1]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--init",),
        ("--privileged",),
        ("--user", "7:7", "--cap-drop", "all"),
        ("--security-opt", "no-new-privileges"),
    ],
    ids=lambda words: " ".join(words) or "as it is",
)
def test_a_container_is_denied_what_its_profile_denies(shop, profile, more):
    denied(shop("run", "--rm", *UNDER, *more, shop.image, *TRIED))
    # Nothing else denies it.
    done = shop("run", "--rm", *more, shop.image, "sh", "-c", "cat one; cat /proc/self/attr/current")
    assert done.stdout == b"one\nunconfined\n", done.stderr


def test_a_process_that_joins_a_container_is_under_its_profile(shop, profile):
    shop.ok("run", "-d", "--name", "box", *UNDER, shop.image, "sleep", "1000")
    denied(shop("exec", "box", *TRIED))
    assert shop.ok("inspect", "--format", "{{.AppArmorProfile}}", "box") == f"{NAME}\n"
    shop.ok("rm", "-f", "box")


def test_a_container_whose_proc_is_a_directory_of_its_image_is_confined_all_the_same(shop, profile, tmp_path):
    """CVE-2019-16884: the profile was written into a file of a volume that lay on /proc."""
    attributes = tmp_path / "self/attr/apparmor"
    attributes.mkdir(parents=True)
    (attributes / "exec").write_text("")
    (attributes.parent / "exec").write_text("")
    done = shop("run", "--rm", *UNDER, "-v", f"{tmp_path}:/proc", shop.image, "sh", "-c", "cat /srv/one || echo denied")
    assert done.stdout == b"denied\n" or b"/proc" in done.stderr, (done.stdout, done.stderr)
    assert (attributes / "exec").read_text() == (attributes.parent / "exec").read_text() == ""


def test_a_profile_that_is_not_loaded_is_told_and_nothing_is_left(shop):
    done = shop("run", "--rm", "--security-opt", "apparmor=no-such-profile", shop.image, "true")
    assert done.returncode == 125
    assert b"no-such-profile: it is not loaded (apparmor_parser -a FILE loads one)" in done.stderr
    assert shop.names() == []
