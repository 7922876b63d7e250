"""TLS to a registry: whom we trust, and what we show of ourselves.

Beside the settings `ca`, `client_cert` and `client_key`, certificates are taken from the directories of podman and
docker: HOST[:PORT] beneath one of `FOLDERS`, in which every *.crt is an authority to trust, and each NAME.cert with
NAME.key is a certificate to show (containers-certs.d(5), docker's "Verify repository client with certificates").
"""

from __future__ import annotations

import os
import ssl

from cowshed.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.registry.endpoints import Trust

FOLDERS = ("~/.config/containers/certs.d", "/etc/containers/certs.d", "/etc/docker/certs.d")


def context(host: str, trust: Trust | None, *, own: bool, verify: bool = True) -> ssl.SSLContext:
    """What connections to a registry, its token server and storage are made with. ConfigError for a file that cannot be
    used.

    host: the registry's HOST[:PORT]. own: for a connection to the registry itself; nobody else is shown who we are.
    verify: False for a host whose certificate does not matter.
    """
    made = ssl.create_default_context()
    if not verify:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if trust is not None and trust.ca:
        _load(made, trust.ca)
    folder = trust.folder if trust is not None and trust.folder else _folder(host)
    names = _listed(folder) if folder else []
    for name in names:
        if name.endswith(".crt"):
            _load(made, f"{folder}/{name}")
    if not own:
        return made
    if trust is not None and trust.client_cert:
        _show(made, trust.client_cert, trust.client_key)
    for name in names:
        if name.endswith(".cert"):
            key = f"{name.removesuffix('.cert')}.key"
            if key not in names:
                raise ConfigError(f"{folder}/{name} has no key {key} beside it")
            _show(made, f"{folder}/{name}", f"{folder}/{key}")
        elif name.endswith(".key") and f"{name.removesuffix('.key')}.cert" not in names:
            raise ConfigError(f"{folder}/{name} has no certificate beside it",
                              remedy="authorities end in .crt, what we show in .cert")  # fmt: skip
    return made


def _folder(host: str) -> str:
    """The first directory of a registry that there is, "" for none."""
    for folder in FOLDERS:
        path = f"{os.path.expanduser(folder)}/{host}"
        if os.path.isdir(path):
            return path
    return ""


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ConfigError(f"the certificates in {folder} cannot be used: {error.strerror}") from None


def _load(made: ssl.SSLContext, path: str) -> None:
    try:
        made.load_verify_locations(path)
    except OSError as error:
        raise ConfigError(f"the certificates in {path} cannot be used: {error}") from None


def _show(made: ssl.SSLContext, cert: str, key: str) -> None:
    try:
        made.load_cert_chain(cert, key or None, password=lambda: "")  # no question on the terminal
    except OSError as error:
        raise ConfigError(f"the certificate {cert} with its key cannot be used: {error}") from None
