"""Another registry that this one fetches from: what is asked for and not here comes from there, and stays.

A tag is asked for again after a minute. When the other registry cannot be reached, what is here is served as it is.
However many ask for a manifest or a blob at once, it is asked for once, and a blob that came for one repository does
not come again for another. A blob goes to the clients while it comes in, but for its last byte: that waits until the
digest of the whole is known to be right, so that no client takes wrong content for complete.
"""

from __future__ import annotations

import os
import threading
import time

from cowshed.errors import CowshedError, RegistryError
from cowshed.image.manifest import Descriptor
from cowshed.registry.client import Client
from cowshed.registry.place import Missing
from cowshed.registry.repository import Repository as Remote
from cowshed.registry.server import manifests, names
from cowshed.registry.server.message import File, Gone
from cowshed.registry.server.refusals import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cowshed.registry.server.journal import Journal
    from cowshed.registry.server.store import Repository
    from cowshed.registry.server.uploads import Upload, Uploads

_CURRENT = 60.0  # seconds that a tag is believed
_TAGS = 10_000  # whose time is remembered
_PATIENCE = 120.0  # seconds without a byte from there


class Upstream:
    """One registry. settings: its table of the configuration. Safe for several threads."""

    def __init__(self, registry: str, settings: Mapping[str, Any], uploads: Uploads, journal: Journal) -> None:
        self.registry, self._settings, self._uploads, self._journal = registry, settings, uploads, journal
        self._guard = threading.Lock()
        self._asked: dict[tuple[str, str], float] = {}
        self._sizes: dict[tuple[str, str], int] = {}  # of blobs that manifests of a repository name
        self._asking: dict[tuple[str, str], Question] = {}
        self._running: dict[str, Fetch] = {}  # by digest, for whichever repository it was asked first

    def manifest(self, repository: Repository, wanted: str) -> None:
        """See to it that a manifest is here, if it is there, and that a tag is what it is there. Refusal."""
        key = (repository.name, wanted)
        if self._current(repository, wanted):
            return
        with self._guard:
            question = self._asking.get(key)
            mine = question is None
            if question is None:
                question = self._asking[key] = Question()
        if not mine:
            question.wait()
            return
        try:
            if not self._current(repository, wanted):
                self._ask(repository, wanted)
        except BaseException as error:
            question.error = error
            raise
        finally:
            with self._guard:
                del self._asking[key]
            question.over.set()

    def _current(self, repository: Repository, wanted: str) -> bool:
        if not manifests.is_here(repository, wanted):
            return False
        asked = self._asked.get((repository.name, wanted))
        return ":" in wanted or (asked is not None and time.monotonic() - asked < _CURRENT)

    def _ask(self, repository: Repository, wanted: str) -> None:
        here = manifests.is_here(repository, wanted)
        try:
            with self._remote(repository) as remote:
                found = remote.head(wanted)
                if found is None:
                    raise Missing(f"{self.registry} has no {wanted}")
                if not here or found.digest != repository.index().tags.get(wanted):
                    data, kind, _ = remote.manifest(wanted)
                    self._keep(repository, wanted, data, kind)
        except Missing:
            raise Refusal("MANIFEST_UNKNOWN", f"{self.registry} has no {repository.name} {wanted[:128]}") from None
        except CowshedError as error:
            if not here:
                raise self._unreachable(error) from None
            self._journal.event("stale", repository=repository.name, wanted=wanted, error=str(error))
        with self._guard:
            if len(self._asked) > _TAGS:
                self._asked.clear()
            self._asked[repository.name, wanted] = time.monotonic()

    def blob(self, repository: Repository, digest: str) -> File:
        """A blob that is not here, as far as it has come. Refusal if it is not there either."""
        size = self._size(repository, digest)
        with self._guard:
            running = self._running.get(digest)
            if running is None:
                if repository.link(digest):  # it has come meanwhile, or for another repository
                    fd, size = repository.open_blob(digest)
                    return File(fd, 0, size)
                upload = self._uploads.begin(repository, digest.partition(":")[0])
                running = self._running[digest] = Fetch(upload, Descriptor(digest, size, ""))
                threading.Thread(target=self._run, args=(repository, digest, running), daemon=True).start()
            return running.file()

    def referrers(self, repository: Repository, subject: str) -> list[dict[str, Any]]:
        """What refers to a manifest there; here, if it cannot be asked. Refusal."""
        try:
            with self._remote(repository) as remote:
                return [one for one in remote.referrers(subject) if names.is_digest(str(one.get("digest")))]
        except CowshedError as error:
            self._journal.event("stale", repository=repository.name, wanted=f"referrers of {subject}", error=str(error))
            return []

    def tags(self, repository: Repository) -> list[str]:
        """All tags there. Refusal if it cannot be asked."""
        try:
            with self._remote(repository) as remote:
                return list(remote.tags())
        except Missing:
            raise Refusal("NAME_UNKNOWN", f"{self.registry} has no repository {repository.name}") from None
        except CowshedError as error:
            raise self._unreachable(error) from None

    def _keep(self, repository: Repository, wanted: str, data: bytes, kind: str) -> None:
        try:
            manifest = manifests.accept(self._uploads, repository, data, kind, wanted)
        except Refusal as error:
            raise RegistryError(f"{self.registry} sends a manifest that is none: {error}") from None
        self._remember(repository, manifest)

    def _remember(self, repository: Repository, manifest: dict[str, Any]) -> None:
        for one in [manifest.get("config"), *(manifest.get("layers") or [])]:
            if one:
                self._sizes[repository.name, one["digest"]] = one["size"]

    def _size(self, repository: Repository, digest: str) -> int:
        """What a manifest that is here says of a blob's size."""
        key = (repository.name, digest)
        if key not in self._sizes and repository.exists():
            for one, entry in repository.index().entries.items():
                try:
                    data = repository.read_blob(names.check_digest(one), manifests.LIMIT)
                    self._remember(repository, manifests.parse(data, str(entry.get("mediaType"))))
                except (Refusal, FileNotFoundError):
                    continue
        if key not in self._sizes:
            raise Refusal("BLOB_UNKNOWN", f"no manifest of {repository.name} that was pulled here names {digest}")
        return self._sizes[key]

    def _run(self, repository: Repository, digest: str, fetch: Fetch) -> None:
        try:
            with Client(self.registry, repository.name, self._settings) as client:
                fetch.run(client)
        except Exception as error:
            self._journal.failure(f"{digest} of {repository.name} from {self.registry}: {error}")
            fetch.fail()
        finally:
            with self._guard:
                del self._running[digest]
                fetch.close()

    def _remote(self, repository: Repository) -> Remote:
        return Remote(self.registry, repository.name, self._settings)

    def _unreachable(self, error: CowshedError) -> Refusal:
        return Refusal("UNSUPPORTED", f"{self.registry} could not be asked: {error}", status=502)


class Question:
    """A manifest that is being asked for; others who want it wait for the answer."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.error: BaseException | None = None

    def wait(self) -> None:
        """Refusal, if it could not be had."""
        self.over.wait()
        error = self.error
        if isinstance(error, Refusal):
            raise Refusal(error.code, error.message, status=error.status)
        if error is not None:  # whoever asked tells the operator
            raise Refusal("UNSUPPORTED", "the registry could not do it; its log says why", status=500)


class Fetch:
    """One blob that comes in. `run` in a thread of its own; `file` for each client."""

    def __init__(self, upload: Upload, blob: Descriptor) -> None:
        self._upload, self._blob = upload, blob
        self._came = threading.Condition()
        self._there, self._failed = 0, False
        self._fd = upload.duplicate()  # what clients read from, whatever becomes of the upload

    def run(self, client: Client) -> None:
        """Bring it. CowshedError, Refusal, OSError."""
        for piece in client.blob(self._blob):
            self._upload.append(memoryview(piece))
            self._tell(min(self._upload.size, self._blob.size - 1))
        self._upload.finish(self._blob.digest)
        self._tell(self._blob.size)

    def fail(self) -> None:
        """Nothing of it stays, and who waits for it is told."""
        try:
            self._upload.give_up()
        finally:
            with self._came:
                self._failed = True
                self._came.notify_all()

    def file(self) -> File:
        """For one client: it closes its own descriptor."""
        return File(os.dup(self._fd), 0, self._blob.size, self._arrived)

    def close(self) -> None:
        """No more clients come."""
        self._upload.close()
        os.close(self._fd)

    def _tell(self, there: int) -> None:
        with self._came:
            self._there = there
            self._came.notify_all()

    def _arrived(self, wanted: int) -> int:
        with self._came:
            while self._there < wanted:
                if self._failed or not self._came.wait(_PATIENCE):
                    raise Gone("what it asked for could not be fetched")
            return self._there
