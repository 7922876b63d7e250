"""registry serve, gc, check, user."""

from __future__ import annotations

import os
import sys

from cowshed.cli import output
from cowshed.errors import BadUsage, ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Values
    from cowshed.registry.server.access import Access
    from cowshed.registry.server.journal import Journal
    from cowshed.registry.server.store import Store


def serve(flags: Values, said: Values) -> int:
    from cowshed.image.reference import is_host
    from cowshed.registry.server import chores
    from cowshed.registry.server.garbage import GRACE
    from cowshed.registry.server.registry import Registry
    from cowshed.registry.server.service import Service, context
    from cowshed.registry.server.store import Store

    if said.upstream and not is_host(said.upstream):
        raise BadUsage(f"registry serve: --upstream is HOST[:PORT] of a registry, not {said.upstream!r}")
    certificate, key = said.tls_certificate or "", said.tls_key or ""
    if bool(certificate) != bool(key) or (said.tls_client_ca and not certificate):
        raise BadUsage("registry serve: --tls-certificate and --tls-key belong together")
    clients = said.tls_client_ca or ""
    tls = (lambda: context(certificate, key, clients)) if certificate else None
    store = Store(said["operands"][0], quota=said.quota or 0)
    access = _access(said, store)
    registry = Registry(store, access, read_only=bool(said.read_only), deleting=not said.no_delete)
    journal = _journal(said)
    if said.upstream:
        from cowshed.config import settings
        from cowshed.registry.server.upstream import Upstream

        there = settings.load(flags, os.environ).registries.get(said.upstream) or {}
        registry.fetch_from(Upstream(said.upstream, there, registry.uploads, journal))
    store.is_cache_of(said.upstream or "")
    service = Service(
        said.listen or "127.0.0.1:5000", registry.respond, journal, tls=tls,
        most=_number(said.max_connections, 512), patience=_number(said.stop_timeout, 30),
    )  # fmt: skip
    service.handle_signals()
    print(f"cowshed registry: {service.url} serves {store.root}", flush=True)
    journal.event("start", url=service.url, directory=store.root)
    mine = chores.Chores(journal)
    hours, grace = _number(said.gc_interval, 24), float(_number(said.gc_grace, int(GRACE)))
    if hours and not said.read_only:
        untagged = bool(said.gc_untagged)
        mine.every(
            hours * 3600, "collection", lambda: chores.collect(store, journal, grace=grace, untagged=untagged)
        )  # fmt: skip
    if said.check_interval:
        rate = said.check_rate or 0
        mine.every(said.check_interval * 3600, "check", lambda: chores.check(store, journal, rate=rate))
    service.run()
    mine.stop()
    journal.event("stop", url=service.url)
    return 0


def collect(flags: Values, said: Values) -> int:
    from cowshed.registry.server import garbage
    from cowshed.registry.server.store import Store

    store = Store(_there(said))
    grace = float(said.grace) if said.grace is not None else garbage.GRACE
    done = garbage.collect(store, grace=grace, untagged=bool(said.untagged), dry_run=bool(said.dry_run))
    row = {
        "Manifests": done.manifests, "Links": done.links, "Uploads": done.uploads, "Blobs": done.blobs,
        "Freed": done.freed,
    }  # fmt: skip
    for why in done.unreadable:
        sys.stderr.write(f"cowshed: {why}: nothing of this repository was removed\n")
    status = 1 if done.unreadable else 0
    if said.format:
        output.one(row, said.format)
        return status
    does = "would remove" if said.dry_run else "removed"
    print(
        f"{does} {done.manifests} manifests, {done.links} blobs of repositories, {done.uploads} uploads; "
        f"{done.blobs} blobs, {done.freed} bytes on the disk"
    )
    return status


def check(flags: Values, said: Values) -> int:
    """As `storage check` tells it: a line for each finding, then `clean` or how many they are."""
    from cowshed.check.findings import NOTE
    from cowshed.cli.commands.check import COLUMNS, told
    from cowshed.registry.server import scrub
    from cowshed.registry.server.store import Store

    store = Store(_there(said))
    rows = []
    left = mended = 0
    for finding, outcome in scrub.check(store, repair=bool(said.repair), rate=said.rate or 0, told=told(said)):
        if outcome == scrub.DONE:
            mended += 1
        elif finding.severity != NOTE:
            left += 1
        rows.append({**finding.document(), "Outcome": outcome})
        if not said.format:
            head = "note" if finding.severity == NOTE else outcome
            print(f"{head}: {finding.line}" if head else finding.line, flush=True)
    if said.format:
        output.listing(rows, COLUMNS, said.format, what="registry check")
    else:
        print(f"{left} findings" if left else "clean", end=f", {mended} repaired\n" if mended else "\n")
    return 1 if left else 0


def user(flags: Values, said: Values) -> int:
    from cowshed_linux import files, password

    path, name = said["operands"]
    if not name or ":" in name or not name.isprintable():
        raise BadUsage(f"registry user: {name!r} is no name of a user")
    if sys.stdin.isatty():
        from getpass import getpass

        secret = getpass("Password: ")
    else:
        secret = sys.stdin.readline().rstrip("\n")
    try:
        line = f"{name}:{password.make(secret)}"
    except ValueError as error:
        raise BadUsage(f"registry user: {error}") from None
    lines = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            lines = [one for one in file.read().splitlines() if one.partition(":")[0] != name]
    files.write_atomically(path, "".join(f"{one}\n" for one in [*lines, line]).encode())
    return 0


def _there(said: Values) -> str:
    """The directory of a registry that was named. ConfigError if it is none."""
    folder = str(said["operands"][0])
    if not os.path.isdir(f"{folder}/blobs"):
        raise ConfigError(f"{folder} is no directory of a registry")
    return folder


def _access(said: Values, store: Store) -> Access:
    from cowshed.registry.server import tokens
    from cowshed.registry.server.access import Access, Users

    users = Users(said.htpasswd) if said.htpasswd else None
    service, issued = said.token_service or "cowshed-registry", None
    if said.token_realm:
        if not said.token_key or said.token or users is not None:
            raise BadUsage("registry serve: --token-realm needs --token-key, and neither --token nor --htpasswd")
        key = tokens.key_of(said.token_key)
        issued = tokens.Tokens(key, service=service, realm=said.token_realm, issuer=said.token_issuer or "")
    elif said.token or (said.anonymous_pull and users is not None):
        if users is None:
            raise BadUsage("registry serve: --token needs --htpasswd, which says who gets tokens")
        own = tokens.key_of(said.token_key) if said.token_key else tokens.own_key(f"{store.root}/token.key")
        issued = tokens.Tokens(own, service=service, issuer=service, tls=bool(said.tls_certificate))
    elif said.token_key:
        raise BadUsage("registry serve: --token-key belongs to --token or --token-realm")
    if said.anonymous_pull and issued is None:
        raise BadUsage(
            "registry serve: --anonymous-pull needs --htpasswd or --token-realm, which say who may push",
            remedy="without either everybody may do everything",
        )
    return Access(users, issued, anonymous=bool(said.anonymous_pull))


def _journal(said: Values) -> Journal:
    from cowshed.registry.server.journal import Journal

    where = said.log or "-"
    if where == "none":
        return Journal(-1)
    if where == "-":
        return Journal(2)
    return Journal(os.open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640))


def _number(value: int | None, default: int) -> int:
    return default if value is None else value
