"""--creds, --authfile, --tls-verify and --cert-dir: how a command reaches the registry that it names."""

from __future__ import annotations

import os
import sys

from cowshed.errors import BadUsage
from cowshed.registry.reach import AS_CONFIGURED, Reach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cowshed.cli.parser import Values
    from cowshed.registry.credentials import Credentials


def reach(said: Values, side: str = "", *, registries: Iterable[str] = ()) -> Reach:
    """What the options say. side: "src" or "dest" of a command that has both; those without a side count for both.
    registries: all that the command will ask, if it may be more than one: credentials are for one. BadUsage."""
    prefix = f"{side}_" if side else ""
    creds = said.get(f"{prefix}creds")
    authfile, folder = (said.get(f"{prefix}{key}") or said.get(key) or "" for key in ("authfile", "cert_dir"))
    verify = said.get(f"{prefix}tls_verify", said.get("tls_verify"))
    if creds is None and not authfile and not folder and verify is None:
        return AS_CONFIGURED
    if creds is not None and said.get(f"{prefix}authfile"):
        raise BadUsage("--creds and --authfile exclude each other")
    if creds is not None:
        authfile = ""  # which is then meant for the other side
    if creds is not None and len(set(registries)) > 1:
        raise BadUsage("--creds is for one registry, and several are named", remedy="one command for each")
    if folder and not os.path.isdir(folder):
        raise BadUsage(f"--cert-dir {folder} is no directory")
    return Reach(
        _credentials(creds) if creds is not None else None, authfile, verify, folder and os.path.abspath(folder)
    )


def _credentials(text: str) -> Credentials:
    from cowshed.registry.credentials import Credentials

    user, colon, password = text.partition(":")
    if not user:
        raise BadUsage("--creds has no user name", remedy="write USER[:PASSWORD]")
    if not colon:
        if not sys.stdin.isatty():
            raise BadUsage("--creds has no password, and there is no terminal to ask for it",
                           remedy="write USER:PASSWORD, or use --authfile")  # fmt: skip
        from getpass import getpass

        password = getpass("Password: ", sys.stderr)
    return Credentials(user, password)
