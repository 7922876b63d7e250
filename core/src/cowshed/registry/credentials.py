"""Credentials as docker and podman keep them: JSON with `auths`, `credHelpers` and `credsStore`.

The file that $REGISTRY_AUTH_FILE names, or $DOCKER_CONFIG/config.json, is the only one, if one of them is set. Else
docker's ~/.docker/config.json is read, then podman's in the run directory and in the user's configuration. Helpers
speak docker-credential-helpers' protocol: `docker-credential-NAME get|store|erase`, JSON on standard input and output.
"""

from __future__ import annotations

import base64
import binascii
import json
import os

from cowshed.errors import AuthError
from cowshed.storage.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io")
_LIMIT = 1 << 20
_HELPER_SECONDS = 30
_NOT_FOUND = b"credentials not found"


@record(frozen=True)
class Credentials:
    """A user with a password, or an identity token that a token server turns into access tokens."""

    user: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)


def files() -> list[str]:
    """The files that may hold credentials, the first one asked first; `login` writes to the first."""
    if path := os.environ.get("REGISTRY_AUTH_FILE"):
        return [path]
    if folder := os.environ.get("DOCKER_CONFIG"):
        return [f"{folder}/config.json"]
    run = os.environ.get("XDG_RUNTIME_DIR")
    user = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [
        os.path.expanduser("~/.docker/config.json"),
        f"{run}/containers/auth.json" if run else f"/run/containers/{os.geteuid()}/auth.json",
        f"{user}/containers/auth.json",
    ]


def find(account: str, repository: str, path: str = "") -> Credentials | None:
    """What is filed for a registry: under the longest prefix of account/repository, else under the account. path: of
    the only file to look into, instead of the usual ones.

    None if nothing is. AuthError if the file or a helper cannot be used: going on without them would look like a
    refusal by the registry.
    """
    if path and not os.path.exists(path):
        raise AuthError(f"there is no file of credentials {path}", remedy=f"cowshed login --authfile {path}")
    for each in [path] if path else files():
        config = read(each)
        auths, helpers = table(config, "auths"), table(config, "credHelpers")
        for key in _keys(account, repository):
            if helpers.get(key):
                return _from_helper(str(helpers[key]), key)
            entry = auths.get(key)
            if isinstance(entry, dict):
                found = _from_entry(entry, key, each)
                if found is not None:
                    return found
        if config.get("credsStore"):
            found = _from_helper(str(config["credsStore"]), server_of(account))
            if found is not None:
                return found
    return None


def read(path: str) -> dict[str, Any]:
    """A file of credentials; {} if it is not there. AuthError."""
    try:
        with open(path, "rb") as file:
            data = file.read(_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise AuthError(f"the credentials in {path} cannot be read: {error.strerror}") from None
    try:
        config = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise AuthError(f"the credentials in {path} cannot be read: {error}", remedy="mend or remove it") from None
    if not isinstance(config, dict):
        raise AuthError(f"the credentials in {path} cannot be read: it is no JSON object", remedy="mend or remove it")
    return config


def server_of(account: str) -> str:
    """What a registry is called in the files and by helpers."""
    return _HUB_KEYS[0] if account == "docker.io" else account


def keys_of(account: str) -> list[str]:
    """All that a registry itself may be filed under, without the repositories below it."""
    keys = [account, f"https://{account}", f"https://{account}/v1/", f"https://{account}/v2/", f"http://{account}"]
    return keys + list(_HUB_KEYS) if account == "docker.io" else keys


def table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _keys(account: str, repository: str) -> list[str]:
    parts = repository.split("/")
    keys = [f"{account}/{'/'.join(parts[:n])}" for n in range(len(parts), 0, -1)]
    return keys + keys_of(account)


def _from_entry(entry: dict[str, Any], key: str, path: str) -> Credentials | None:
    token = str(entry.get("identitytoken") or "")
    if entry.get("auth"):
        try:
            user, colon, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            user = colon = password = ""
        if not colon:
            raise AuthError(f"the credentials of {key} in {path} are damaged", remedy="log in again")
        return Credentials(user, password.rstrip("\0"), token)
    if entry.get("username"):
        return Credentials(str(entry["username"]), str(entry.get("password") or ""), token)
    return Credentials("", "", token) if token else None


def _from_helper(helper: str, server: str) -> Credentials | None:
    said = ask_helper(helper, "get", server.encode())
    if said is None:
        return None
    try:
        value = json.loads(said)
        user, secret = str(value["Username"]), str(value["Secret"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise AuthError(f"the credential helper docker-credential-{helper} answers no credentials") from None
    return Credentials("", "", secret) if user == "<token>" else Credentials(user, secret)


def ask_helper(helper: str, verb: str, data: bytes) -> bytes | None:
    """What a credential helper answers to get, store or erase; None if it has nothing. AuthError."""
    import subprocess

    if not helper or not all(c.isalnum() or c in "-_." for c in helper):
        raise AuthError(f"{helper[:80]!r} is no name of a credential helper")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, verb], input=data, capture_output=True, timeout=_HELPER_SECONDS, check=False)
    except FileNotFoundError:
        raise AuthError(f"the credential helper {program} is not installed", remedy="install it, or log in") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AuthError(f"the credential helper {program} cannot be asked: {error}") from None
    if done.returncode == 0:
        return done.stdout
    if _NOT_FOUND in done.stdout.lower() or _NOT_FOUND in done.stderr.lower():
        return None
    why = (done.stderr or done.stdout).decode(errors="replace").strip().partition("\n")[0][:200]
    raise AuthError(f"the credential helper {program} fails to {verb}: {why or f'status {done.returncode}'}")
