"""The parts of a guest that are made without booting one."""

import io
import lzma
import os
import select
import signal
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cowshed_vm import ext4, guest, initrd, kernel, programs, trees
from cowshed_vm.cache import Cache
from cowshed_vm.errors import NotHere, VmError

TOP = Path(__file__).parents[3]


def module(*fields):
    """The least of an ELF file that has a .modinfo section."""
    info = b"".join(f"{field}".encode() + b"\0" for field in fields)
    names = b"\0.modinfo\0.shstrtab\0"
    head = bytearray(64)
    body = info + names
    sections = [(0, 0, 0, 0), (1, 1, 64, len(info)), (10, 3, 64 + len(info), len(names))]
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, 0, 0, 0, 0) for name, kind, at, size in sections
    )
    struct.pack_into("<Q", head, 0x28, 64 + len(body))
    struct.pack_into("<HHH", head, 0x3A, 64, 3, 2)
    return bytes(head) + body + table


def test_modules_come_in_the_order_in_which_they_can_be_loaded(tmp_path):
    (tmp_path / "fs").mkdir()
    (tmp_path / "fs/ext4.ko").write_bytes(
        module("license=GPL", "depends=jbd2,mb-cache", "softdep=pre: crc32c post: late")
    )
    (tmp_path / "jbd2.ko.xz").write_bytes(lzma.compress(module("depends=")))
    (tmp_path / "mb-cache.ko").write_bytes(module("depends=jbd2"))
    (tmp_path / "crc32c.ko").write_bytes(module())
    (tmp_path / "late.ko").write_bytes(module("depends=ext4"))
    found = initrd.with_dependencies(("ext4", "built_in"), tmp_path)
    assert list(found) == ["jbd2", "mb_cache", "crc32c", "ext4"]
    assert found["jbd2"] == module("depends=")


def test_modules_that_need_each_other_end(tmp_path):
    (tmp_path / "a.ko").write_bytes(module("depends=b"))
    (tmp_path / "b.ko").write_bytes(module("depends=a"))
    assert sorted(initrd.with_dependencies(("a",), tmp_path)) == ["a", "b"]


def test_an_unknown_compression_is_told(tmp_path):
    (tmp_path / "ext4.ko.zst").write_bytes(b"")
    with pytest.raises(VmError, match=r"ext4\.ko\.zst"):
        initrd.with_dependencies(("ext4",), tmp_path)


def test_the_initial_file_system_is_an_archive_that_busybox_reads(tmp_path):
    (tmp_path / "ext4.ko").write_bytes(module())
    initrd.write(tmp_path / "initrd", tmp_path, Path(programs.BUSYBOX))
    with open(tmp_path / "initrd", "rb") as archive:
        said = subprocess.run([programs.BUSYBOX, "cpio", "-it"], stdin=archive, capture_output=True, text=True).stdout
    names = set(said.splitlines())
    assert {"init", "stage2", "order", "modules/ext4.ko", "bin/busybox", "dev/console"} <= names


def test_an_image_holds_the_tree(tmp_path):
    (tmp_path / "tree/d").mkdir(parents=True)
    (tmp_path / "tree/d/f").write_bytes(b"x" * 10_000)
    ext4.image_of(tmp_path / "tree", tmp_path / "image")
    out = programs.run("debugfs", "-R", "cat /d/f", tmp_path / "image")
    assert out.count("x") == 10_000


def image(release):
    head = bytearray(0x800)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x300)
    text = f"{release} (somebody) #1\0".encode()
    head[0x500 : 0x500 + len(text)] = text
    return bytes(head)


def test_a_kernel_says_its_release(tmp_path):
    (tmp_path / "bzImage").write_bytes(image("6.1.99-aufs"))
    assert kernel.release_of(tmp_path / "bzImage") == "6.1.99-aufs"
    (tmp_path / "bzImage").write_bytes(bytes(4096))
    with pytest.raises(VmError, match="no kernel for this machine"):
        kernel.release_of(tmp_path / "bzImage")


def test_a_kernel_at_a_path_is_made_ready_once_and_again_when_it_changes(tmp_path):
    tree = tmp_path / "mine"
    (tree / "lib/modules/6.1.99-aufs/kernel").mkdir(parents=True)
    (tree / "bzImage").write_bytes(image("6.1.99-aufs"))
    (tree / "lib/modules/6.1.99-aufs/kernel/aufs.ko").write_bytes(module())
    store = Cache(tmp_path / "cache")
    one = kernel.get(store, None, str(tree))
    assert one.release == "6.1.99-aufs"
    assert kernel.get(store, None, str(tree)) == one
    assert "aufs.ko" in programs.run("debugfs", "-R", "ls /kernel", one.modules)
    os.utime(tree / "bzImage", (1, 1))
    assert kernel.get(store, None, str(tree)).image != one.image
    with pytest.raises(VmError, match=r"a series as 6\.1, a \.deb or a directory"):
        kernel.get(store, None, str(tmp_path / "missing"))


def test_a_directory_without_a_kernel_is_told_and_counts_for_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    store = Cache(tmp_path / "cache")
    with pytest.raises(VmError, match="no kernel in"):
        kernel.get(store, None, str(tmp_path / "empty"))
    assert not (tmp_path / "cache/kernels").exists()


def test_missing_packages_are_named_together():
    with pytest.raises(NotHere, match=r"apt-get install --no-install-recommends one two$"):
        programs.require({"no-such-program": "two", "/no/such/file": "one", "sh": "dash"})


def test_a_failing_program_is_one_line(tmp_path):
    with pytest.raises(VmError, match=r"^sh -c .* failed: second$"):
        programs.run("sh", "-c", "echo first >&2; echo second >&2; exit 3")
    with pytest.raises(VmError, match=rf"failed: exit status 3, see {tmp_path}/log$"):
        programs.run("sh", "-c", "echo first; exit 3", log=tmp_path / "log")
    assert (tmp_path / "log").read_text() == "first\n"


def test_a_program_that_is_given_up_ends_with_all_that_it_started(tmp_path):
    script = f"import sys; sys.path.insert(0, {str(TOP / 'tests/vm')!r}); from cowshed_vm import programs\n"
    script += "with programs.signals_raise(): programs.run('sh', '-c', 'sleep 1000 & echo $! > pid; wait')\n"
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as process:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert process.poll() is None
        started = int((tmp_path / "pid").read_text())
        fd = os.pidfd_open(started)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    with os.fdopen(fd) as file:
        assert select.select([file], [], [], 30)[0]


def repository(folder):
    folder.mkdir()
    subprocess.run(["git", "init", "-q", folder], check=True)
    (folder / ".gitignore").write_text("/.venv/\n__pycache__/\n")
    (folder / "a.py").write_text("A = 1\n")
    (folder / "ignored").mkdir()
    (folder / "ignored/.gitignore").write_text("*\n")
    return folder


def test_the_source_disk_has_what_git_has_and_what_python_makes_of_it(tmp_path):
    tree, store = repository(tmp_path / "tree"), Cache(tmp_path / "cache")
    one = trees.source(store, tree)
    assert trees.source(store, tree) == one
    listed = programs.run("debugfs", "-R", "ls -p /", one)
    assert "/a.py/" in listed
    assert "/.venv/" in listed
    assert "/ignored/" not in listed
    assert ".cpython-" in programs.run("debugfs", "-R", "ls -p /__pycache__", one)
    (tree / "a.py").write_text("A = 23\n")
    two = trees.source(store, tree)
    assert two != one
    assert programs.run("debugfs", "-R", "cat /a.py", two) == "A = 23\n"


def test_an_environment_of_another_python_is_refused(tmp_path):
    (tmp_path / "bin").mkdir()
    with pytest.raises(VmError, match=r"is missing: PYTHON="):
        trees.environment(Cache(tmp_path / "cache"), tmp_path)
    (tmp_path / "bin/python").symlink_to("/bin/sh")
    with pytest.raises(VmError, match=r"was made by .*: PYTHON=/usr/bin/python3 make setup"):
        trees.environment(Cache(tmp_path / "cache"), tmp_path)


def test_a_report_that_is_no_archive_is_none(tmp_path):
    (tmp_path / "exchange").write_bytes(bytes(20_480))
    assert guest._read_results(tmp_path / "exchange", tmp_path / "out") is None
    with tarfile.open(tmp_path / "exchange", "w") as archive:
        member = tarfile.TarInfo("./status")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"7\n"))
    assert guest._read_results(tmp_path / "exchange", tmp_path / "out") == 7
    assert os.listdir(tmp_path / "out") == ["status"]


def test_the_list_of_packages_in_the_makefile_is_what_the_harness_asks_for():
    line = next(line for line in (TOP / "Makefile").read_text().splitlines() if line.startswith("VM_PACKAGES"))
    listed = set(line.partition(":=")[2].split())
    wanted = set((programs.BUILD | programs.COMPILE | programs.RUN).values())
    assert listed == wanted - {"apt", "dpkg", "util-linux"}  # essential


def guests(*words):
    command = [sys.executable, f"{TOP}/tests/vm/guests", *words]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_what_is_not_run_is_said_in_a_line_for_the_list_of_skips():
    said = guests("overlay", "btrfs", "--not-run", "because").stdout
    assert (
        said == "SKIPPED [guest] tests/vm: the suite on overlay, Linux 6.1; the suite on btrfs, Linux 6.12: because\n"
    )
    whole = guests("--not-run", "because").stdout.splitlines()
    assert all(line.startswith("SKIPPED [guest] tests/vm: the suite on ") for line in whole)


def test_an_unknown_plan_is_refused():
    done = guests("zsf")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("vm: no plan zsf: there are ")
