"""Proxies from the environment, as curl and Go read it: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY.

Own code: the standard library's is in a module whose import costs more than a small pull.
"""

from __future__ import annotations

import os
import urllib.parse

from cowshed.errors import ConfigError
from cowshed.registry.endpoints import is_loopback
from cowshed.storage.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


@record(frozen=True)
class Proxy:
    host: str
    port: int
    authorization: str = field(default="", repr=False)  # value of Proxy-Authorization, or ""


def proxy_for(scheme: str, host: str, port: int, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy to reach a host through, None to go there directly. Loopback is always direct. ConfigError."""
    if is_loopback(f"[{host}]" if ":" in host else host) or _excepted(host, port, _variable(environ, "no_proxy")):
        return None
    name = f"{scheme}_proxy"
    text = _variable(environ, name) or _variable(environ, "all_proxy")
    if not text:
        return None
    try:
        parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
        at, number = parts.hostname, parts.port
    except ValueError:
        parts, at, number = urllib.parse.urlsplit(""), None, None
    if not at or parts.scheme != "http":
        raise ConfigError(
            f"{name.upper()} is {_hidden(text)!r}, which is no http proxy", remedy="write http://HOST:PORT"
        )
    authorization = ""
    if parts.username:
        import base64

        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Proxy(at, number or 80, authorization)


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.upper()) or ""


def _hidden(text: str) -> str:
    """Without the password."""
    head, at, tail = text.rpartition("@")
    return f"…@{tail}" if at and head else text


def _excepted(host: str, port: int, listed: str) -> bool:
    for item in listed.replace(",", " ").split():
        name, _, number = item.rpartition(":") if item.count(":") == 1 else (item, "", "")
        if number and number != str(port):
            continue
        name = name.lower().lstrip("*").strip("[]")
        if not name:
            return item == "*"
        if "/" in name and _in_network(host, name):
            return True
        bare = name.lstrip(".")
        if host.lower() == bare or host.lower().endswith("." + bare):
            return True
    return False


def _in_network(host: str, network: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
