"""Lists: tags, repositories, referrers (distribution-spec, end-8, 12; the catalog is of Docker's older interface)."""

from __future__ import annotations

import json
import urllib.parse

from cowshed.registry.server import manifests, names
from cowshed.registry.server.message import Answer
from cowshed.registry.server.refusals import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.registry.server.message import Request
    from cowshed.registry.server.registry import Registry
    from cowshed.registry.server.store import Repository

_MOST = 10_000  # tags or repositories in one answer
_MOST_REFERRERS = 1000
_BYTES = 3 << 20  # of the descriptors in one answer


def tags(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    repository = registry.store.repository(name)
    known = repository.index().tags if registry.upstream is None else registry.upstream.tags(repository)
    found, link = _page(request, sorted(filter(names.is_tag, known)), f"/v2/{name}/tags/list")
    return Answer(200, link, json.dumps({"name": name, "tags": found}).encode())


def catalog(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    readable = [one for one in registry.store.names() if registry.access.allows(request, one, "pull")]
    found, link = _page(request, readable, "/v2/_catalog")
    return Answer(200, link, json.dumps({"repositories": found}).encode())


def referrers(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    if not names.is_digest(wanted):
        raise Refusal("DIGEST_INVALID", f"{wanted[:80]!r} is no digest")
    repository = registry.store.repository(name)
    found = of_subject(repository, wanted) if repository.exists() else []
    if registry.upstream is not None:
        there = registry.upstream.referrers(repository, wanted)
        found = list({one["digest"]: one for one in [*found, *there]}.values())
    kind = request.query.get("artifactType")
    headers = []
    if kind:
        found = [one for one in found if one.get("artifactType") == kind]
        headers.append(("OCI-Filters-Applied", "artifactType"))
    last = request.query.get("last", "")
    found = [one for one in sorted(found, key=lambda one: one["digest"]) if one["digest"] > last]
    most = min(_number(request), _MOST_REFERRERS)
    parts: list[str] = []
    room = _BYTES
    for one in found[:most]:
        text = json.dumps(one)
        room -= len(text)
        if room < 0 and parts:
            break
        parts.append(text)
    if 0 < len(parts) < len(found):
        query = {"n": str(most), "last": found[len(parts) - 1]["digest"], **({"artifactType": kind} if kind else {})}
        headers.append(_next(f"/v2/{name}/referrers/{wanted}", query))
    body = f'{{"schemaVersion": 2, "mediaType": "{manifests.OCI_INDEX}", "manifests": [{", ".join(parts)}]}}'
    return Answer(200, headers, body.encode(), kind=manifests.OCI_INDEX)


def of_subject(repository: Repository, subject: str) -> list[dict[str, Any]]:
    """What of a repository refers to a digest, whenever it was pushed, as descriptors."""
    found = []
    for digest, entry in repository.index().entries.items():
        if digest not in repository.facts:
            repository.facts[digest] = _facts(repository, digest, str(entry.get("mediaType")))
        facts = repository.facts[digest]
        if facts is not None and facts["subject"] == subject:
            found.append(facts["descriptor"])
    return found


def _facts(repository: Repository, digest: str, kind: str) -> dict[str, Any] | None:
    """What a referrers list says of a manifest, and its subject; None without one. It cannot change: kept in memory."""
    try:
        data = repository.read_blob(digest, manifests.LIMIT)
        manifest = manifests.parse(data, kind)
    except (Refusal, FileNotFoundError):
        return None
    subject = manifest.get("subject")
    if not subject:
        return None
    descriptor: dict[str, Any] = {"mediaType": kind, "digest": digest, "size": len(data)}
    artifact = manifest.get("artifactType") or (manifest.get("config") or {}).get("mediaType")
    if artifact:
        descriptor["artifactType"] = artifact
    if manifest.get("annotations"):
        descriptor["annotations"] = manifest["annotations"]
    return {"subject": subject["digest"], "descriptor": descriptor}


def _page(request: Request, every: list[str], path: str) -> tuple[list[str], list[tuple[str, str]]]:
    """(names of one page, header of the next) of a sorted list."""
    last = request.query.get("last")
    if last is not None:
        every = [one for one in every if one > last]
    most = min(_number(request), _MOST)
    found = every[:most]
    if not found or len(found) == len(every):
        return found, []
    return found, [_next(path, {"n": str(most), "last": found[-1]})]


def _number(request: Request) -> int:
    said = request.query.get("n")
    if said is None:
        return _MOST
    if not (said.isascii() and said.isdigit() and len(said) < 10):
        raise Refusal("SIZE_INVALID", "n is no number")
    return int(said)


def _next(path: str, query: dict[str, str]) -> tuple[str, str]:
    return "Link", f'<{path}?{urllib.parse.urlencode(query)}>; rel="next"'
