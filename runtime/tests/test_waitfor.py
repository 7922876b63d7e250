"""Standing beside a process, without one that is a container."""

import subprocess
import sys

import pytest

# The signal goes to another thread than the one that waits, and so interrupts nothing: as one that comes just before.
BESIDE = """
import os, signal, threading, time
from cowshed_linux import process
from cowshed_runtime.command import waitfor

def tell():
    while not callable(signal.getsignal(signal.SIGUSR1)):
        time.sleep(0.01)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

waitfor.hold()
terminal = -1
if {terminal}:
    terminal, _ = os.openpty()
pid = os.fork()
if pid == 0:
    process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    while True:
        signal.pause()
threading.Thread(target=tell).start()
print(waitfor.wait(pid, terminal))
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_a_signal_that_interrupts_nothing_is_passed_on(terminal):
    done = subprocess.run(
        [sys.executable, "-c", BESIDE.format(terminal=terminal)], stdin=subprocess.PIPE, capture_output=True, timeout=30
    )
    assert (done.stdout, done.stderr, done.returncode) == (b"138\n", b"", 0)
