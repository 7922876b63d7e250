"""Logging in to a registry and out of it: credentials are tried, then kept where docker and podman find them too."""

from __future__ import annotations

import base64
import json
import os

from cowshed.errors import AuthError, BadUsage
from cowshed.registry import credentials
from cowshed.registry.endpoints import itself
from cowshed.registry.place import Place
from cowshed.registry.reach import AS_CONFIGURED
from cowshed_linux import files, locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from cowshed.registry.credentials import Credentials
    from cowshed.registry.reach import Reach

_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


def account_of(text: str) -> str:
    """HOST[:PORT] of what a user or a file calls a registry: an address, or a path below it. BadUsage."""
    from cowshed.image.reference import is_host

    host = text.partition("://")[2] or text
    host = host.partition("/")[0].lower()
    if not is_host(host):
        raise BadUsage(f"{text[:100]!r} is no registry", remedy="write HOST[:PORT]")
    return "docker.io" if host in _HUB else host


def check(account: str, settings: Mapping[str, Any], known: Credentials, reach: Reach = AS_CONFIGURED) -> bool:
    """Try credentials. reach: what the command says beside the settings. Whether the registry has asked for them at
    all. AuthError if they are refused, RegistryError."""
    place = Place(itself(account, settings, reach.with_credentials(known)), "", actions="")
    try:
        place.ask(f"{place.endpoint.url}/v2/{place.endpoint.prefix}", what="").close()
        return bool(place.authorizer.header())
    finally:
        place.transport.close()


def store(account: str, known: Credentials, path: str = "") -> str:
    """Keep credentials; where they are: a path, or the helper that has them.

    path: the file, by default the first that `credentials.files` names. A helper that it names for the registry, or for
    all, is given them instead. AuthError.
    """
    path = path or credentials.files()[0]
    server = credentials.server_of(account)
    helper = _helper(credentials.read(path), account)
    if helper:
        said = {"ServerURL": server, "Username": known.user or "<token>",
                "Secret": known.password or known.identity_token}  # fmt: skip
        credentials.ask_helper(helper, "store", json.dumps(said).encode())

    def change(config: dict[str, Any]) -> None:
        auths = config.get("auths")
        auths = config["auths"] = auths if isinstance(auths, dict) else {}
        for key in credentials.keys_of(account):
            auths.pop(key, None)
        auths[server] = {} if helper else _entry(known)

    _rewrite(path, change)
    return f"docker-credential-{helper}" if helper else path


def erase(account: str, path: str = "") -> bool:
    """Forget the credentials of a registry, in all files, or in the one of `path`. Whether there were any."""
    found = False
    for each in [path] if path else credentials.files():
        config = credentials.read(each)
        if not config:
            continue
        if helper := _helper(config, account):
            credentials.ask_helper(helper, "erase", credentials.server_of(account).encode())
        there = credentials.table(config, "auths")
        if any(key in there for key in credentials.keys_of(account)):
            found = True
            _rewrite(each, lambda config: _forget(config, account))
    return found


def known_accounts(path: str = "") -> list[str]:
    """The registries that a file has credentials for."""
    found = []
    for each in [path] if path else credentials.files():
        for key in credentials.table(credentials.read(each), "auths"):
            try:
                found.append(account_of(key))
            except BadUsage:
                continue  # whatever else wrote it there
    return list(dict.fromkeys(found))


def _forget(config: dict[str, Any], account: str) -> None:
    for key in credentials.keys_of(account):
        config["auths"].pop(key, None)


def _helper(config: dict[str, Any], account: str) -> str:
    helpers = credentials.table(config, "credHelpers")
    named = next((helpers[key] for key in credentials.keys_of(account) if helpers.get(key)), config.get("credsStore"))
    return str(named or "")


def _entry(known: Credentials) -> dict[str, str]:
    pair = base64.b64encode(f"{known.user}:{known.password}".encode()).decode()
    return {"auth": pair, **({"identitytoken": known.identity_token} if known.identity_token else {})}


def _rewrite(path: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a file as a whole, for its owner alone to read; what else stands in it stays. Two who do that at once
    wait for each other, and a crash leaves the old file."""
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            locks.lock_file(fd)
            config = credentials.read(path)
            change(config)
            files.write_atomically(path, json.dumps(config, indent="\t").encode() + b"\n", mode=0o600)
        finally:
            os.close(fd)
    except OSError as error:
        raise AuthError(f"the credentials cannot be kept in {path}: {error.strerror}") from None
