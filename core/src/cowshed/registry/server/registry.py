"""A registry: a store, who may use it, and what of the interface is open. `respond` is all that the network sees."""

from __future__ import annotations

import json

from cowshed.registry.server import routes
from cowshed.registry.server.message import Answer
from cowshed.registry.server.refusals import Refusal
from cowshed.registry.server.uploads import Uploads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.registry.server.access import Access
    from cowshed.registry.server.message import Request
    from cowshed.registry.server.store import Store
    from cowshed.registry.server.upstream import Upstream

_WRITES = ("push", "delete")


class Registry:
    """Safe for several threads. deleting: whether clients may delete."""

    def __init__(self, store: Store, access: Access, *, read_only: bool = False, deleting: bool = True) -> None:
        self.store, self.access, self.read_only, self._deleting = store, access, read_only, deleting
        self.uploads = Uploads(store)
        self.upstream: Upstream | None = None

    def fetch_from(self, upstream: Upstream) -> None:
        """Serve what another registry has. From then on nothing else can be pushed or deleted."""
        self.upstream, self.read_only = upstream, True

    def respond(self, request: Request) -> Answer:
        """The answer to a request. Refusal."""
        if request.path == "/token" and request.method in ("GET", "POST"):
            return Answer(200, [("Cache-Control", "no-store")], json.dumps(self.access.token(request)).encode())
        handler, right, name, wanted = routes.find(request)
        self.access.check(request, name, right)
        if self.read_only and right in _WRITES:
            raise Refusal("UNSUPPORTED", "nothing can be pushed to this registry or deleted from it")
        if right == "delete" and not self._deleting:
            raise Refusal("UNSUPPORTED", "nothing can be deleted from this registry")
        answer = handler(self, request, name, wanted)
        space = request.query.get("ns")
        if space and request.method in ("GET", "HEAD") and space.isascii() and space.isprintable():
            answer.headers.append(("OCI-Namespace", space))
        return answer
