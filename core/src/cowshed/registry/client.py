"""Asking registries (distribution-spec): manifests and blobs, with anonymous, basic and bearer authentication.

Credentials go to the registry they belong to and to the token server that it names, never along a redirect to another
host. Redirects are followed here, so that this is certain.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import urllib.parse
import urllib.request

from cowshed.errors import AuthError, RegistryError
from cowshed.image.manifest import ACCEPT, LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_CHUNK = 1 << 18
_TIMEOUT = 60.0
_REDIRECTS = 8
_HUB = {"docker.io": "registry-1.docker.io"}


class Endpoint:
    """One place that serves a registry's content: the registry itself or a mirror of it."""

    def __init__(self, url: str, credentials: tuple[str, str] | None) -> None:
        self.url, self.credentials = url.rstrip("/"), credentials
        self.token = ""


class Client:
    """The repositories of one registry. Safe for several threads; each request has its own connection."""

    def __init__(self, registry: str, settings: Mapping[str, Any]) -> None:
        """settings: the registry's table of the configuration (mirrors, fallback, insecure)."""
        self.registry = registry
        self.endpoints = [Endpoint(m["url"], None) for m in settings.get("mirrors") or ()]
        if not self.endpoints or settings.get("fallback", True):
            host = _HUB.get(registry, registry)
            plain = is_loopback(registry) or settings.get("insecure", False)
            self.endpoints.append(Endpoint(f"{'http' if plain else 'https'}://{host}", credentials(registry)))

    def manifest(self, repository: str, wanted: str) -> tuple[bytes, str]:
        """(bytes, content type) of a manifest or index by tag or digest."""
        answer = self._ask(repository, f"/v2/{repository}/manifests/{wanted}", {"Accept": ACCEPT})
        with answer:
            data = answer.read(LIMIT + 1)
            if len(data) > LIMIT:
                raise RegistryError(f"{self.registry} sends a manifest of more than {LIMIT} bytes")
            return data, answer.headers.get("Content-Type", "")

    def blob(self, repository: str, digest: str, offset: int) -> Iterator[bytes]:
        """The bytes of a blob from offset on."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        answer = self._ask(repository, f"/v2/{repository}/blobs/{digest}", headers)
        with answer:
            skip = offset if answer.status == 200 else 0
            try:
                while data := answer.read(_CHUNK):
                    if skip:
                        data, skip = data[skip:], max(0, skip - len(data))
                    if data:
                        yield data
            except (OSError, http.client.HTTPException) as error:
                raise RegistryError(
                    f"the download of {digest[:19]} from {self.registry} broke: {error}",
                    remedy="pull again: it goes on",
                ) from None

    def _ask(self, repository: str, path: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        last: RegistryError | None = None
        for endpoint in self.endpoints:
            try:
                return self._ask_endpoint(endpoint, repository, path, dict(headers))
            except RegistryError as error:
                last = error
        assert last is not None
        raise last

    def _ask_endpoint(
        self, endpoint: Endpoint, repository: str, path: str, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        for attempt in (1, 2):
            if endpoint.token:
                headers["Authorization"] = endpoint.token
            answer = _get(endpoint.url + path, headers, self.registry)
            if answer.status in (200, 206):
                return answer
            said = answer.read(1 << 20)
            answer.close()
            if answer.status == 401 and attempt == 1:
                endpoint.token = self._authorize(endpoint, repository, answer.headers.get_all("WWW-Authenticate") or [])
                continue
            raise _refusal(answer.status, said, f"{self.registry}/{repository}", path)
        raise AuthError(f"{self.registry} refuses the credentials for {repository}", remedy="log in again")

    def _authorize(self, endpoint: Endpoint, repository: str, challenges: list[str]) -> str:
        for challenge in challenges:
            scheme, _, rest = challenge.partition(" ")
            if scheme.lower() == "basic" and endpoint.credentials:
                return _basic(endpoint.credentials)
            if scheme.lower() == "bearer":
                return self._bearer(endpoint, repository, _parameters(rest))
        raise AuthError(
            f"{self.registry} wants a login for {repository}", remedy="put credentials into ~/.docker/config.json"
        )

    def _bearer(self, endpoint: Endpoint, repository: str, said: dict[str, str]) -> str:
        realm = urllib.parse.urlsplit(said.get("realm", ""))
        own = urllib.parse.urlsplit(endpoint.url)
        plain_is_fine = own.scheme == "http"
        if realm.scheme not in ("https", "http") or (realm.scheme == "http" and not plain_is_fine) or realm.username:
            raise AuthError(
                f"{self.registry} names the token server {said.get('realm', '')!r}, which is not to be trusted"
            )
        if is_loopback(realm.netloc) and not is_loopback(own.netloc):
            raise AuthError(f"{self.registry} names a token server on this host, which is not to be trusted")
        query = {"scope": said.get("scope") or f"repository:{repository}:pull"}
        if said.get("service"):
            query["service"] = said["service"]
        headers = {"Authorization": _basic(endpoint.credentials)} if endpoint.credentials else {}
        url = f"{said['realm']}{'&' if realm.query else '?'}{urllib.parse.urlencode(query)}"
        answer = _get(url, headers, self.registry, redirects=0)
        with answer:
            data = answer.read(1 << 20)
        if answer.status != 200:
            raise AuthError(f"the token server of {self.registry} answers {answer.status}", remedy="log in again")
        try:
            value = json.loads(data)
            token = value.get("token") or value["access_token"]
        except (ValueError, KeyError, AttributeError):
            raise AuthError(f"the token server of {self.registry} sends no token") from None
        return f"Bearer {token}"


def _get(
    url: str, headers: Mapping[str, str], registry: str, *, redirects: int = _REDIRECTS
) -> http.client.HTTPResponse:
    """GET with redirects; credentials stay with the first host."""
    sent = {"User-Agent": "cowshed", **headers}
    origin = urllib.parse.urlsplit(url).netloc
    for _ in range(redirects + 1):
        parts = urllib.parse.urlsplit(url)
        if parts.netloc != origin:
            sent.pop("Authorization", None)
        try:
            connection = _connect(parts)
            target = url if connection.host != parts.hostname and parts.scheme == "http" else _target(parts)
            connection.request("GET", target, headers=sent)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise RegistryError(
                f"{registry} cannot be reached: {error}", remedy="check the name and the network"
            ) from None
        if answer.status not in (301, 302, 303, 307, 308) or redirects == 0:
            return answer
        answer.read(1 << 20)
        answer.close()
        url = urllib.parse.urljoin(url, answer.headers.get("Location", ""))
        if urllib.parse.urlsplit(url).scheme not in ("https", "http") or (
            parts.scheme == "https" and not url.startswith("https:")
        ):
            raise RegistryError(f"{registry} redirects to {url[:100]!r}, which is not to be trusted")
    raise RegistryError(f"{registry} redirects more than {_REDIRECTS} times")


def _target(parts: urllib.parse.SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _connect(parts: urllib.parse.SplitResult) -> http.client.HTTPConnection:
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    proxy = (
        None
        if is_loopback(host) or urllib.request.proxy_bypass(host)
        else urllib.request.getproxies().get(parts.scheme)
    )
    if proxy:
        at = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        via = at.hostname or "", at.port or 80
        if parts.scheme == "http":
            return http.client.HTTPConnection(*via, timeout=_TIMEOUT)
        tunnel = http.client.HTTPSConnection(*via, timeout=_TIMEOUT, context=ssl.create_default_context())
        tunnel.set_tunnel(host, port)
        return tunnel
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=_TIMEOUT)


def is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if host.count(":") == 1 else host
    return name == "localhost" or name.startswith("127.") or name in ("[::1]", "::1")


def _basic(pair: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(":".join(pair).encode()).decode()


def _parameters(text: str) -> dict[str, str]:
    """The parameters of one challenge (RFC 9110 11.3), quoted commas and all."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        equals = text.find("=", at)
        if equals < 0:
            break
        name = text[at:equals].strip(" ,").lower()
        if text[equals + 1 : equals + 2] == '"':
            end = text.find('"', equals + 2)
            end = len(text) if end < 0 else end
            found[name] = text[equals + 2 : end]
            at = end + 1
        else:
            end = text.find(",", equals)
            end = len(text) if end < 0 else end
            found[name] = text[equals + 1 : end].strip()
            at = end
    return found


def _refusal(status: int, said: bytes, name: str, path: str) -> RegistryError:
    try:
        errors = json.loads(said)["errors"]
        text = "; ".join(str(e.get("message") or e.get("code")) for e in errors)[:300]
    except (ValueError, KeyError, TypeError, AttributeError):
        text = http.client.responses.get(status, "no reason given")
    what = f"{name} ({path.rpartition('/')[2][:80]})"
    if status in (401, 403):
        return AuthError(f"the registry refuses {what}: {text}", remedy="check the name, or log in")
    if status == 404:
        return RegistryError(f"{what} is not found in the registry: {text}", remedy="check name and tag")
    return RegistryError(f"the registry answers {status} for {what}: {text}", remedy="try again later")


def credentials(registry: str) -> tuple[str, str] | None:
    """From docker's config.json: a helper's answer or the `auths` table. None if there are none."""
    home = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    try:
        with open(f"{home}/config.json", "rb") as f:
            config = json.load(f)
    except (OSError, ValueError):
        return None
    keys = [registry, f"https://{registry}", f"https://{registry}/v1/"]
    if registry == "docker.io":
        keys += ["https://index.docker.io/v1/", "index.docker.io"]
    helper = (config.get("credHelpers") or {}).get(registry) or config.get("credsStore")
    if helper:
        return _from_helper(helper, registry)
    for key in keys:
        entry = (config.get("auths") or {}).get(key) or {}
        if entry.get("auth"):
            name, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
            return name, password.rstrip("\0")
        if entry.get("username"):
            return entry["username"], entry.get("password", "")
    return None


def _from_helper(helper: str, registry: str) -> tuple[str, str] | None:
    import subprocess

    if not all(c.isalnum() or c in "-_." for c in helper):
        raise AuthError(f"{helper!r} is no name of a credential helper")
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"], input=registry.encode(), capture_output=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AuthError(f"the credential helper {helper} cannot be asked: {error}") from None
    if done.returncode != 0:
        return None
    value = json.loads(done.stdout)
    return value["Username"], value["Secret"]
