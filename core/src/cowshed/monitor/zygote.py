"""The process that monitors are forked from: everything imported, one thread, its heap frozen.

One per store and version of this code; it goes when it has been idle for a minute and no monitor of its is alive.
Killing it harms no container.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import _socket
import gc
import os
import select

from cowshed.monitor import monitor, starting
from cowshed_linux import process, seccomp

_IDLE = 60_000


def main(path: str, ready: int) -> None:
    """Serve requests at the socket path; write one byte to ready when it listens."""
    os.setsid()
    os.chdir("/")
    process.close_range(3, ready - 1)
    process.close_range(ready + 1)
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    os.umask(0o177)
    listener.bind(path)
    os.umask(0o022)
    listener.listen(128)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    poll = select.poll()
    number = listener.fileno()
    poll.register(number, select.POLLIN)
    try:
        seccomp.version()  # loads the library, which else each launch would
    except OSError:
        pass  # it is not installed; whoever needs it is told
    gc.collect()
    gc.freeze()
    gc.disable()
    os.write(ready, b"x")
    os.close(ready)
    leaving = False
    while True:
        if not leaving and not poll.poll(_IDLE):
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                leaving = True
                try:
                    os.unlink(path)  # from here on a new one is made at this path
                except FileNotFoundError:
                    pass
            else:
                continue
        if leaving and not poll.poll(100):
            return  # who had connected before that has been served
        fd, _ = listener._accept()  # type: ignore[attr-defined]  # of _socket
        try:
            child = os.fork()
        except OSError as error:
            connection = _socket.socket(fileno=fd)
            starting.refuse(connection, starting.said(error))
            connection.close()
            continue
        if child == 0:
            os.close(number)
            try:
                monitor.serve(fd)
            finally:
                os._exit(1)
        os.close(fd)
