"""The agent that decides about system calls with the action SCMP_ACT_NOTIFY (config-linux.md, Seccomp and The Container
Process State; seccomp_unotify(2)): it is sent the descriptor at which they arrive."""

from __future__ import annotations

import _socket
import sys

from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.seccomp import Filter

_PATIENCE = 10.0  # seconds for an agent that does not take what it is sent


class Agent:
    """A connection to the agent of a filter, made while the host's names are still there, for one process."""

    def __init__(self, wanted: Filter) -> None:
        """LaunchError if nobody listens."""
        self._path, self._metadata = wanted.listener, wanted.metadata
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._socket.settimeout(_PATIENCE)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self.close()
            raise self._failed(error) from None

    def tell(self, pid: int, listener: int, state: dict[str, Any]) -> None:
        """Send it the listener of the process pid, with the state of the container, and close the connection.
        LaunchError."""
        document = {"ociVersion": state["ociVersion"], "fds": ["seccompFd"], "pid": pid, "state": state}
        if self._metadata:
            document["metadata"] = self._metadata
        data = dumps(document).encode()
        try:
            passed = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, listener.to_bytes(4, sys.byteorder))
            sent = self._socket.sendmsg([data], [passed])
            self._socket.sendall(data[sent:])
        except OSError as error:
            raise self._failed(error) from None
        finally:
            self.close()

    def close(self) -> None:
        self._socket.close()

    def _failed(self, error: OSError) -> LaunchError:
        text = f"the seccomp agent at {self._path} cannot be told: {error.strerror or error}"
        return LaunchError("seccomp", error.errno or 0, text)
