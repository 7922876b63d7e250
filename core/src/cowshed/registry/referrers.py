"""Referrers where a registry has no API for them: an index under a tag that is made of the subject's digest
(distribution-spec, Referrers Tag Schema). Two clients that write it at once are held apart by its entity tag where the
registry heeds If-Match, and by looking again where it does not."""

from __future__ import annotations

import json

from cowshed.errors import RegistryError
from cowshed.image.manifest import OCI_INDEX, document
from cowshed.registry.place import Missing, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cowshed.registry.repository import Repository

    Entries = list[dict[str, Any]]

_TRIES = 5
_ALGORITHM, _DIGITS = 32, 64  # characters of a digest that are left in a tag
_LOOK_INTO = 1000  # entries whose manifests are read for their type
EMPTY = "application/vnd.oci.empty.v1+json"


def tag_of(digest: str) -> str:
    """The tag of the fallback index of a subject."""
    algorithm, _, digits = digest.partition(":")
    return f"{algorithm[:_ALGORITHM]}-{digits[:_DIGITS]}"


def subject_of(manifest: bytes) -> str:
    """The digest of a manifest's subject, "" if it has none."""
    subject = _object(manifest).get("subject")
    digest = subject.get("digest") if isinstance(subject, dict) else None
    return digest if isinstance(digest, str) else ""


def type_of(manifest: bytes) -> str:
    """What a manifest says it is: its artifactType, else the type of its configuration."""
    value = _object(manifest)
    config = value.get("config")
    said = value.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else "")
    return said if isinstance(said, str) else ""


def entries_of(index: dict[str, Any]) -> Entries:
    """The entries of an index, whatever they are."""
    listed = index.get("manifests")
    return [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []


def fallback(there: Repository, digest: str) -> Entries:
    """The entries of the fallback index of a subject; [] if there is none."""
    return _read(there, digest)[0]


def of_type(there: Repository, entries: Entries, artifact_type: str) -> Entries:
    """Those of a type. What an index says is not enough: some write the configuration's type there (cosign), so the
    manifests of the others are looked at."""
    if not artifact_type:
        return entries
    found = []
    for entry in entries[:_LOOK_INTO]:
        said = entry.get("artifactType")
        if said != artifact_type and said in (None, "", EMPTY):
            try:
                said = type_of(there.manifest(str(entry.get("digest")))[0])
            except Missing:
                continue
        if said == artifact_type:
            found.append({**entry, "artifactType": said})
    return found


def add(there: Repository, subject: str, manifest: bytes, media_type: str, digest: str) -> None:
    """Write a manifest into the fallback index of its subject. RegistryError."""
    entry: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": len(manifest)}
    if said := type_of(manifest):
        entry["artifactType"] = said
    annotations = _object(manifest).get("annotations")
    if isinstance(annotations, dict) and annotations:
        entry["annotations"] = annotations

    def change(entries: Entries) -> Entries:
        return entries if any(e.get("digest") == digest for e in entries) else [*entries, entry]

    _update(there, subject, change)


def remove(there: Repository, subject: str, digest: str) -> None:
    """Take a manifest out of the fallback index of its subject. RegistryError."""
    _update(there, subject, lambda entries: [e for e in entries if e.get("digest") != digest])


def _update(there: Repository, subject: str, change: Callable[[Entries], Entries]) -> None:
    for _ in range(_TRIES):
        entries, entity = _read(there, subject)
        changed = change(entries)
        if changed == entries:
            return
        data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": changed}).encode()
        try:
            there.put_manifest(data, OCI_INDEX, tag=tag_of(subject), if_match=entity)
        except Refused as error:
            if error.answered == 412:
                continue
            raise
        if entity or change(_read(there, subject)[0]) == changed:
            return
    raise RegistryError(f"the list of what refers to {subject[:19]} is changed by others all the time",
                        remedy="try again")  # fmt: skip


def _read(there: Repository, subject: str) -> tuple[Entries, str]:
    try:
        data, _, entity = there.manifest(tag_of(subject))
    except Missing:
        return [], ""
    return entries_of(document(data, f"the list of what refers to {subject[:19]}")), entity


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
