"""push, login, logout, search, and the commands that look into a registry or delete there."""

from __future__ import annotations

import sys

from cowshed.cli import output, reaching
from cowshed.cli.parser import Values
from cowshed.errors import BadUsage, NotFound
from cowshed.image import reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from cowshed.engine import Engine
    from cowshed.image.reference import Reference
    from cowshed.registry.reach import Reach
    from cowshed.registry.repository import Repository
    from cowshed.registry.searching import Found

_LIMIT = 25  # docker's
_DESCRIPTION = 45  # characters, docker's
_INPUT = 64 << 10  # bytes of a password
_HEADINGS = {"ARTIFACTTYPE": "TYPE"}


def push(engine: Engine, said: Values) -> int:
    from cowshed.image import progress
    from cowshed.image.push import push as push_
    from cowshed.image.push import tagged

    text = said["operands"][0]
    parsed = reference.parse(text)
    whole = f"{parsed.registry}/{parsed.repository}"
    if said.all_tags:
        if parsed.digest or not text.endswith(parsed.repository.rpartition("/")[2]):
            raise BadUsage("a tag cannot be named together with --all-tags", remedy="name the repository alone")
        wanted = tagged(engine.store, parsed)
    else:
        wanted = [(parsed.tag, engine.image(text))]
    allow_short(engine, text)
    settings, reach = engine.settings, reaching.reach(said)
    with progress.choose(sys.stderr, quiet=bool(said.quiet)) as shown:
        done = push_(engine.store, parsed, wanted, registries=settings.registries, progress=shown, reach=reach)
    if said.quiet:
        print(whole if said.all_tags else parsed.name)
        return 0
    for each in done:
        print(f"{each.tag}: digest: {each.digest} size: {each.size}")
    return 0


def allow_short(engine: Engine, text: str) -> None:
    """BadUsage for a name without a registry where the configuration wants every name to be whole."""
    if not reference.is_short(text):
        return
    parsed = reference.parse(text)
    if (engine.settings.registries.get(parsed.registry) or {}).get("short_names") is False:
        raise BadUsage(
            f"{text!r} names no registry, and the configuration allows no short names",
            remedy=f"write the whole name, as {parsed.name}",
        )


# ---------------------------------------------------------------- credentials


def login(engine: Engine, said: Values) -> int:
    from cowshed.registry import credentials
    from cowshed.registry import login as logins

    account = logins.account_of(said["operands"][0] if said["operands"] else "docker.io")
    if said.get_login:
        found = credentials.find(account, "", said.authfile or "")
        if found is None:
            raise NotFound(f"nobody is logged in to {account}", remedy=f"cowshed login {account}")
        print(found.user)
        return 0
    reach = reaching.reach(Values((key, said[key]) for key in ("tls_verify", "cert_dir") if key in said))
    user, password = _asked(said)
    known = credentials.Credentials(user, password)
    asked = logins.check(account, engine.settings.registries.get(account) or {}, known, reach)
    where = logins.store(account, known, said.authfile or "")
    if not asked:
        sys.stderr.write(f"cowshed: {account} lets everybody in; nobody has looked at the password\n")
    if where.startswith("/"):
        sys.stderr.write(f"WARNING: the password is kept unencrypted in {where}; a credential helper avoids that\n")
    print("Login Succeeded")
    return 0


def _asked(said: Values) -> tuple[str, str]:
    """The user and the password: from options, standard input, or questions on the terminal. BadUsage."""
    user, password = said.username or "", said.password or ""
    if said.password_stdin:
        if password:
            raise BadUsage("--password and --password-stdin exclude each other")
        if not user:
            raise BadUsage("--password-stdin needs --username")
        password = sys.stdin.buffer.read(_INPUT).decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r")
    elif password:
        sys.stderr.write("WARNING: a password in the command line can be seen by others; --password-stdin is safer\n")
    if not user or not password:
        if not sys.stdin.isatty() or said.password_stdin:
            what = "password" if user else "user name"
            raise BadUsage(f"there is no {what}, and no terminal to ask for it", remedy="-u NAME --password-stdin")
        from getpass import getpass

        if not user:
            sys.stderr.write("Username: ")
            sys.stderr.flush()
            user = sys.stdin.readline().strip()
        password = password or getpass("Password: ", sys.stderr)
    if not user or not password:
        raise BadUsage("the user name and the password must not be empty")
    if ":" in user:
        raise BadUsage(f"a user name has no colon: {user!r}")
    return user, password


def logout(engine: Engine, said: Values) -> int:
    from cowshed.registry import login as logins

    path = said.authfile or ""
    if said.all:
        accounts = logins.known_accounts(path)
    else:
        accounts = [logins.account_of(said["operands"][0] if said["operands"] else "docker.io")]
    for account in accounts:
        there = logins.erase(account, path)
        print(f"Removing login credentials for {account}" if there else f"Not logged in to {account}")
    return 0


# ---------------------------------------------------------------- looking


def _there(engine: Engine, parsed: Reference, actions: str, reach: Reach) -> Repository:
    from cowshed.registry.repository import Repository

    settings = engine.settings.registries.get(parsed.registry) or {}
    return Repository(parsed.registry, parsed.repository, settings, actions=actions, reach=reach)


def search(engine: Engine, said: Values) -> int:
    from itertools import islice

    from cowshed.registry.repository import PULL
    from cowshed.registry.searching import search as search_

    text, reach = said["operands"][0], reaching.reach(said)
    limit = said.limit if said.limit is not None else _LIMIT
    if limit < 1:
        raise BadUsage("--limit is a number of 1 or more")
    accepted = _filter(said.filter or ())
    if said.list_tags:
        if said.filter:
            raise BadUsage("--filter is about repositories, and --list-tags lists tags")
        parsed = reference.parse(text)
        with _there(engine, parsed, PULL, reach) as there:
            rows = [{"Name": _named(parsed), "Tag": tag} for tag in islice(there.tags(), limit)]
        output.listing(rows, ("Name", "Tag"), said.format, what="tags")
        return 0
    host, slash, wanted = text.partition("/")
    if not slash or reference.is_short(text):
        host, wanted = "docker.io", text
    settings = engine.settings.registries.get(host) or {}
    found = filter(accepted, search_(host, wanted, settings, about=limit, reach=reach))
    rows = [_row(host, each, whole=bool(said.no_trunc or said.format)) for each in islice(found, limit)]
    output.listing(rows, ("Name", "Description", "Stars", "Official"), said.format, what="repositories")
    return 0


def _row(host: str, found: Found, *, whole: bool) -> dict[str, Any]:
    """With the names of both, podman's and docker's, for what they tell."""
    about = found.description
    if not whole and len(about) > _DESCRIPTION:
        about = about[: _DESCRIPTION - 1] + "…"
    official, automated = "[OK]" * found.official, "[OK]" * found.automated
    return {
        "Index": host, "Name": f"{host}/{found.name}", "Description": about, "Stars": str(found.stars),
        "Official": official, "Automated": automated, "StarCount": str(found.stars), "IsOfficial": official,
        "IsAutomated": automated,
    }  # fmt: skip


def _filter(said: Iterable[str]) -> Callable[[Found], bool]:
    """stars=NUMBER, is-official[=true|false], is-automated[=true|false]. BadUsage."""
    least, wanted = 0, {}
    for each in said:
        key, _, value = each.partition("=")
        if key == "stars" and value.isascii() and value.isdigit():
            least = max(least, int(value))
        elif key in ("is-official", "is-automated") and value in ("", "true", "false"):
            wanted[key[3:]] = value != "false"
        else:
            raise BadUsage(f"--filter {each}: write stars=NUMBER, is-official=true or is-automated=false")
    return lambda found: found.stars >= least and all(getattr(found, key) is value for key, value in wanted.items())


def _named(parsed: Reference) -> str:
    return reference.familiar(f"{parsed.registry}/{parsed.repository}")


def tags(engine: Engine, said: Values) -> int:
    from cowshed.registry.repository import PULL

    with _there(engine, reference.parse(said["operands"][0]), PULL, reaching.reach(said)) as there:
        for tag in there.tags():
            print(tag)
    return 0


def catalog(engine: Engine, said: Values) -> int:
    from cowshed.registry.login import account_of
    from cowshed.registry.repository import catalog as catalog_

    account = account_of(said["operands"][0])
    for name in catalog_(account, engine.settings.registries.get(account) or {}, reach=reaching.reach(said)):
        print(name)
    return 0


def referrers(engine: Engine, said: Values) -> int:
    from cowshed.registry.repository import PULL

    parsed = reference.parse(said["operands"][0])
    with _there(engine, parsed, PULL, reaching.reach(said)) as there:
        digest = parsed.digest or _digest(there, parsed)
        found = there.referrers(digest, said.artifact_type or "")
    rows: list[dict[str, Any]] = [
        {
            "Digest": entry.get("digest", ""),
            "ArtifactType": entry.get("artifactType") or entry.get("mediaType", ""),
            "Size": output.size(size) if isinstance(size := entry.get("size"), int) else "",
            "MediaType": entry.get("mediaType", ""),
            "Annotations": entry.get("annotations") or {},
        }
        for entry in found
    ]
    output.listing(rows, ("Digest", "ArtifactType", "Size"), said.format, what="referrers", headings=_HEADINGS)
    return 0


def _digest(there: Repository, parsed: Reference) -> str:
    """What a tag stands for in the registry."""
    found = there.head(parsed.tag)
    if found is None:
        raise NotFound(f"{parsed.familiar} is not in the registry", remedy="check name and tag")
    if found.digest:
        return reference.check_digest(found.digest)
    import hashlib

    return "sha256:" + hashlib.sha256(there.manifest(parsed.tag)[0]).hexdigest()


# ---------------------------------------------------------------- deleting


def delete(engine: Engine, said: Values) -> int:
    from cowshed.cli.pruning import agreed
    from cowshed.errors import CowshedError
    from cowshed.registry.place import Refused
    from cowshed.registry.repository import DELETE

    wanted = []
    for text in said["operands"]:
        parsed = reference.parse(text)
        if not parsed.digest and not text.endswith(f":{parsed.tag}"):
            raise BadUsage(f"{text!r} has neither a tag nor a digest", remedy="name what is to be deleted")
        if said.blob and not parsed.digest:
            raise BadUsage(f"{text!r} names no blob", remedy="write NAME@DIGEST")
        wanted.append(parsed)
    reach = reaching.reach(said, registries=[each.registry for each in wanted])
    if not said.force and not agreed("in the registry: " + ", ".join(each.familiar for each in wanted)):
        return 0
    status = 0
    for parsed in wanted:
        try:
            with _there(engine, parsed, DELETE, reach) as there:
                if said.blob:
                    there.delete_blob(parsed.digest)
                    print(f"Deleted: {parsed.digest}")
                elif parsed.digest or said.manifest:
                    digest = parsed.digest or _digest(there, parsed)
                    there.delete_manifest(digest)
                    print(f"Deleted: {digest}")
                else:
                    try:
                        there.delete_tag(parsed.tag)
                    except Refused as error:
                        if error.answered in (400, 405):
                            error.remedy = "if it deletes no tags alone: --manifest deletes what the tag stands for"
                        raise
                    print(f"Untagged: {parsed.familiar}")
        except CowshedError as error:
            remedy = f": {error.remedy}" if error.remedy else ""
            sys.stderr.write(f"cowshed: {error}{remedy}\n")
            status = 1
    return status
