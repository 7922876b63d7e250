"""Searching a registry for repositories. The distribution specification has nothing for that: docker's first protocol
had, which public registries still answer (`/v1/search`); of all others the catalog is gone through."""

from __future__ import annotations

import json
import urllib.parse

from cowshed import log
from cowshed.errors import RegistryError
from cowshed.registry.endpoints import itself
from cowshed.registry.place import Place
from cowshed.registry.reach import AS_CONFIGURED
from cowshed.registry.repository import catalog
from cowshed.registry.transport import printable
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from cowshed.registry.reach import Reach

_LIMIT = 4 << 20  # bytes of one page
_PER_PAGE, _PAGES = 100, 100
_ONLY_SEARCHED = ("docker.io",)  # has no catalog


@record(frozen=True)
class Found:
    """A repository; what a registry does not tell is "", 0 or False."""

    name: str  # without the registry
    description: str = ""
    stars: int = 0
    official: bool = False
    automated: bool = False


def search(
    registry: str, text: str, settings: Mapping[str, Any], *, about: int = 25, pause: float = 0.5,
    reach: Reach = AS_CONFIGURED,
) -> Iterator[Found]:  # fmt: skip
    """The repositories of a registry that fit a text, "" for all. about: how many are likely to be wanted. Raises what
    the registry gives as the reason if it can neither be searched nor tells its catalog: RegistryError, AuthError."""
    if text:
        place = Place(itself(registry, settings, reach, searched=True), "", actions="", pause=pause)
        try:
            first = _page(place, text, 1, about)
        except RegistryError as error:
            if registry in _ONLY_SEARCHED:
                raise
            log.debug(f"{registry} cannot be searched: {error}")
        else:
            yield from _results(place, text, about, first)
            return
        finally:
            place.transport.close()
    for name in catalog(registry, settings, pause=pause, reach=reach):
        if text.lower() in name.lower():
            yield Found(name)


def _results(place: Place, text: str, about: int, page: list[Any]) -> Iterator[Found]:
    seen: set[str] = set()
    for number in range(2, _PAGES):
        new = [found for each in page if (found := _found(each)) is not None and found.name not in seen]
        yield from new
        seen.update(found.name for found in new)
        if not new or len(page) < min(about, _PER_PAGE):
            return
        page = _page(place, text, number, about)


def _page(place: Place, text: str, number: int, about: int) -> list[Any]:
    query = urllib.parse.urlencode({"q": text, "n": min(about, _PER_PAGE), "page": number})
    url = f"{place.endpoint.url}/v1/search?{query}"
    data, _ = place.document(url, {"Accept": "application/json"}, limit=_LIMIT, what="the search")
    try:
        results = json.loads(data)["results"] or []
    except (ValueError, KeyError, TypeError, RecursionError):
        results = None
    if not isinstance(results, list):
        raise RegistryError(f"{place.endpoint.host} answers a search with something else than results")
    return results


def _found(said: Any) -> Found | None:
    """A result, if it is one: what comes from outside may be anything."""
    name = said.get("name") if isinstance(said, dict) else None
    if not isinstance(name, str) or not name.isprintable() or not name:
        return None
    description, stars = said.get("description"), said.get("star_count")
    return Found(
        name,
        printable(description) if isinstance(description, str) else "",
        stars if type(stars) is int else 0,
        said.get("is_official") is True,
        said.get("is_automated") is True,
    )
