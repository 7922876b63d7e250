"""Much output: byte for byte, and what it costs. Processor time is measured, not the clock, which others share."""

import hashlib
import os

import pytest

SIZE = 200 << 20


@pytest.fixture(scope="module")
def wordy(shop):
    """A container that has written 200 MiB to an attached command, and that command: (name, rusage)."""
    script = "dd if=/dev/zero bs=65536 count=3200 2>/dev/null"
    with open(os.devnull, "w") as nobody:
        command = shop.spawn("run", "--name", "wordy", shop.image, "sh", "-c", script, stdout=nobody)
    _, status, used = os.wait4(command.pid, 0)
    command.returncode = os.waitstatus_to_exitcode(status)
    assert command.returncode == 0
    yield "wordy", used
    shop.ok("rm", "wordy")


def test_an_attached_command_costs_little(wordy):
    _, used = wordy
    assert used.ru_utime + used.ru_stime < 0.5  # 0.1 when this was written: 400 MB/s need less than 0.5


def test_logs_of_it_are_whole_and_cost_little(shop, wordy):
    name, _ = wordy
    reader, writer = os.pipe()
    command = shop.spawn("logs", name, stdout=writer)
    os.close(writer)
    digest, size = hashlib.sha256(), 0
    while block := os.read(reader, 1 << 20):
        digest.update(block)
        size += len(block)
    os.close(reader)
    _, status, used = os.wait4(command.pid, 0)
    command.returncode = os.waitstatus_to_exitcode(status)
    assert (command.returncode, size) == (0, SIZE)
    assert digest.digest() == hashlib.sha256(bytes(SIZE)).digest()
    assert used.ru_utime + used.ru_stime < 0.5
