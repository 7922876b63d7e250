"""Which function answers what: one table."""

from __future__ import annotations

import re

from cowshed.registry.server import blobs, listings, manifests, names
from cowshed.registry.server.message import Answer
from cowshed.registry.server.refusals import Refusal
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.registry.server.message import Request
    from cowshed.registry.server.registry import Registry

    Handler = Callable[[Registry, Request, str, str], Answer]


@record(frozen=True)
class Route:
    """A form of path, what answers each method, and what a client must be allowed to do for it."""

    path: re.Pattern[str]
    methods: dict[str, tuple[Handler, str]]


def _base(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    return Answer(200, body=b"{}")


def _route(path: str, **methods: tuple[Handler, str]) -> Route:
    return Route(re.compile(path, re.ASCII | re.DOTALL), methods)


# The name of a repository may hold any of these words: the rightmost counts, and so the order does
ROUTES = (
    _route(r"/v2/?()()", GET=(_base, ""), HEAD=(_base, "")),
    _route(r"/v2/_catalog()()", GET=(listings.catalog, "catalog")),
    _route(r"/v2/(.+)/tags/list()", GET=(listings.tags, "pull"), HEAD=(listings.tags, "pull")),
    _route(r"/v2/(.+)/referrers/([^/]+)", GET=(listings.referrers, "pull"), HEAD=(listings.referrers, "pull")),
    _route(r"/v2/(.+)/blobs/uploads/?()", POST=(blobs.begin, "push")),
    _route(
        r"/v2/(.+)/blobs/uploads/([^/]+)",
        GET=(blobs.status, "push"),
        PATCH=(blobs.append, "push"),
        PUT=(blobs.finish, "push"),
        DELETE=(blobs.cancel, "push"),
    ),
    _route(
        r"/v2/(.+)/blobs/([^/]+)",
        GET=(blobs.read, "pull"),
        HEAD=(blobs.head, "pull"),
        DELETE=(blobs.delete, "delete"),
    ),
    _route(
        r"/v2/(.+)/manifests/([^/]+)",
        GET=(manifests.read, "pull"),
        HEAD=(manifests.read, "pull"),
        PUT=(manifests.write, "push"),
        DELETE=(manifests.delete, "delete"),
    ),
)


def find(request: Request) -> tuple[Handler, str, str, str]:
    """(function, right, repository, what of it) for a request. Refusal."""
    for route in ROUTES:
        match = route.path.fullmatch(request.path)
        if match is None:
            continue
        if request.method not in route.methods:
            allowed = ", ".join(route.methods)
            raise Refusal("UNSUPPORTED", f"{request.method} is not among {allowed}", headers=(("Allow", allowed),))
        handler, right = route.methods[request.method]
        return handler, right, names.check_name(match[1]) if match[1] else "", match[2]
    raise Refusal("NAME_UNKNOWN", "there is nothing at this path")
