"""Where a registry's content is asked for: itself and its mirrors, as the configuration says.

[registries."docker.io"]
mirrors = ["http://10.0.0.2:5000", {url = "https://mirror.example/prefix", insecure = true}]
fallback = false          # ask the mirrors only; default true: the registry itself comes last
insecure = true           # plain HTTP; the default for a registry on loopback without certificates, and for no other
ca = "/etc/cowshed/ca.pem"  # certificates to trust beside the system's
client_cert = "/etc/cowshed/client.pem"  # what we show who we are with, its key in client_key or the same file
client_key = "/etc/cowshed/client.key"
token_servers = ["sso.example.com"]  # further hosts that may be given this registry's credentials
blocked = true            # refuse to ask
short_names = false       # of docker.io: whether a name without a registry stands for an image of it

Certificates are also taken from where podman and docker look for them: see `cowshed.registry.certificates`.
"""

from __future__ import annotations

import urllib.parse

from cowshed.errors import ConfigError, RegistryError
from cowshed.registry.reach import AS_CONFIGURED
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cowshed.registry.credentials import Credentials
    from cowshed.registry.reach import Reach

_HUB = {"docker.io": "registry-1.docker.io"}
_SEARCHED = {"docker.io": "index.docker.io"}  # which alone can be searched
_TRUST_KEYS = {"insecure": bool, "ca": str, "client_cert": str, "client_key": str}
_KEYS = {
    "mirrors": list, "fallback": bool, "token_servers": list, "blocked": bool, "short_names": bool, **_TRUST_KEYS,
}  # fmt: skip
_MIRROR_KEYS = {"url": str, **_TRUST_KEYS}
EITHER = ""  # of an endpoint that may speak TLS or not: it is tried (`cowshed.registry.place`)


@record(frozen=True)
class Trust:
    """Whose certificates are accepted, and which one is shown. Paths, "" for none."""

    ca: str = ""  # further ones to trust
    client_cert: str = ""  # what we show
    client_key: str = ""
    folder: str = ""  # directory of certificates instead of the usual ones
    verify: bool = True  # False: any certificate of the registry is accepted


@record(frozen=True)
class Endpoint:
    """One place that serves a registry's content."""

    scheme: str  # http, https, or EITHER
    host: str  # with the port, if one was written
    prefix: str  # path before the repository: "" or "a/b/"
    mirrors: str  # the registry that it is a mirror of; "" for the registry itself
    account: str  # what credentials are filed under
    trust: Trust
    token_servers: tuple[str, ...]
    credentials: Credentials | None = None  # to be used whatever is filed
    authfile: str = ""  # the only file in which credentials are looked for

    def with_scheme(self, scheme: str) -> Endpoint:
        return Endpoint(
            scheme, self.host, self.prefix, self.mirrors, self.account, self.trust, self.token_servers,
            self.credentials, self.authfile,
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    @property
    def name(self) -> str:
        """The host without its port."""
        return (urllib.parse.urlsplit(f"//{self.host}").hostname or "").lower()

    def path(self, repository: str, kind: str, name: str) -> str:
        """The target of a request; mirrors are told whose content is wanted (distribution-spec, Registry Proxying)."""
        query = f"?ns={urllib.parse.quote(self.mirrors)}" if self.mirrors else ""
        return f"/v2/{self.prefix}{repository}/{kind}/{name}{query}"


def endpoints(registry: str, settings: Mapping[str, Any], reach: Reach = AS_CONFIGURED) -> tuple[Endpoint, ...]:
    """The places to ask, in order. settings: the registry's table; reach: what a command says beside it.
    ConfigError for a wrong table, RegistryError for a blocked registry."""
    where = f'registries."{registry}"'
    _check(settings, _KEYS, where)
    if settings.get("blocked"):
        raise RegistryError(f"the configuration blocks the registry {registry}", remedy=f"see {where}.blocked")
    found = [_mirror(m, registry, where, reach) for m in settings.get("mirrors") or ()]
    if not found or settings.get("fallback", True):
        found.append(itself(registry, settings, reach))
    return tuple(found)


def itself(
    registry: str, settings: Mapping[str, Any], reach: Reach = AS_CONFIGURED, *, searched: bool = False
) -> Endpoint:
    """The registry, whatever mirrors it has: what is written goes there; searched: where it is searched.
    Raises as `endpoints` does."""
    where = f'registries."{registry}"'
    _check(settings, _KEYS, where)
    if settings.get("blocked"):
        raise RegistryError(f"the configuration blocks the registry {registry}", remedy=f"see {where}.blocked")
    host = (_SEARCHED if searched else _HUB).get(registry, registry)
    certified = settings.get("ca") or settings.get("client_cert") or reach.cert_dir
    scheme = "http" if settings.get("insecure", is_loopback(host) and not certified) else "https"
    if reach.tls_verify is not None:
        scheme = "https" if reach.tls_verify else EITHER
    servers = tuple(str(s) for s in settings.get("token_servers") or ())
    trust = _trust(settings, reach.cert_dir, reach.tls_verify is not False)
    return Endpoint(scheme, host, "", "", registry, trust, servers, reach.credentials, reach.authfile)


def _mirror(said: Any, registry: str, where: str, reach: Reach) -> Endpoint:
    table = {"url": said} if isinstance(said, str) else said
    if not isinstance(table, dict) or not table.get("url"):
        raise ConfigError(f"{where}.mirrors has an entry without a url", remedy='write "https://HOST[:PORT][/PREFIX]"')
    _check(table, _MIRROR_KEYS, f"{where}.mirrors")
    text = table["url"] if "://" in table["url"] else f"https://{table['url']}"
    try:
        parts = urllib.parse.urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urllib.parse.urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query or parts.fragment:
        raise ConfigError(f"{where}.mirrors: {table['url']!r} is no address of a mirror",
                          remedy='write "https://HOST[:PORT][/PREFIX]"')  # fmt: skip
    prefix = parts.path.strip("/").removeprefix("v2").strip("/")
    scheme = "http" if table.get("insecure") else parts.scheme
    if reach.tls_verify:
        scheme = "https"
    prefix = f"{prefix}/" if prefix else ""
    return Endpoint(scheme, parts.netloc, prefix, registry, parts.netloc, _trust(table), (), None, reach.authfile)


def _trust(table: Mapping[str, Any], folder: str = "", verify: bool = True) -> Trust:
    return Trust(table.get("ca", ""), table.get("client_cert", ""), table.get("client_key", ""), folder, verify)


def _check(table: Mapping[str, Any], keys: Mapping[str, type], where: str) -> None:
    for key, value in table.items():
        if key not in keys:
            from difflib import get_close_matches

            near = get_close_matches(key, list(keys), 1)
            raise ConfigError(f"{where}.{key} is no setting", remedy=f"did you mean {near[0]}?" if near else "")
        if not isinstance(value, keys[key]):
            raise ConfigError(f"{where}.{key} must be a {_NAMES[keys[key]]}, not {value!r}")


_NAMES = {list: "list", bool: "true or false", str: "text"}


def is_loopback(host: str) -> bool:
    """Whether HOST[:PORT] is this machine by its name alone, without asking a name server."""
    name = host.rpartition(":")[0] if host.count(":") == 1 else host
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    parts = name.split(".")
    return (
        name in ("localhost", "::1")
        or (len(parts) == 4 and parts[0] == "127" and all(p.isdigit() for p in parts))
    )  # fmt: skip
