"""`image verify`: what the policy, or keys that are named, say of an image, here or in its registry."""

from __future__ import annotations

from cowshed.errors import NotFound, Untrusted
from cowshed.image import reference as references
from cowshed.registry.reach import AS_CONFIGURED
from cowshed.state import origins
from cowshed.trust import find, gate, policy, signature
from cowshed.trust.policy import ANY, SIGNED, Identity, Requirement

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowshed.engine import Engine
    from cowshed.image.platform import Platform
    from cowshed.image.progress import Progress
    from cowshed.image.reference import Reference
    from cowshed.registry.reach import Reach
    from cowshed.state.rows import ImageRow
    from cowshed.trust.signature import Claim


def verify(
    engine: Engine,
    said: str,
    *,
    keys: Sequence[str] = (),
    policy_file: str = "",
    remote: bool = False,
    platform: Platform | None = None,
    progress: Progress,
    reach: Reach = AS_CONFIGURED,
) -> tuple[str, tuple[Claim, ...]]:
    """(why the image is accepted, the signatures that counted). Untrusted if it is not.

    keys: files of public keys, any of which has to have signed it, for whatever name; without any the policy counts, in
    policy_file or else the one in force. remote: what the registry has, else of an image that is here what was kept
    when it was pulled. reach: what the command says of the registry. Raises NotFound, ConfigError, and what a registry
    raises.
    """
    for path in keys:
        signature.key_file(path)  # before a registry is asked
    image = None
    if not remote:
        try:
            image = engine.image(said)
        except NotFound:
            references.parse(said)  # BadUsage, if it cannot be in a registry either
    if keys:
        requirement = Requirement(SIGNED, paths=tuple(keys), identity=Identity(ANY))
        return _by_keys(engine, said, image, requirement, platform, progress, reach)
    path = policy_file or engine.settings.policy_file
    if not path:
        return "there is no policy", ()
    judge = gate.Gate(policy.read(path))
    if image is not None:
        rule, claims = judge.using(engine.reader, image, said)
    else:
        wanted = references.parse(said)
        rule = judge.before(wanted)
        claims = ()
        if rule.needs_signatures:
            claims = judge.judge(rule, wanted, *_asked(engine, wanted, platform, progress, reach))
    return f"{rule.scope}, {path}{'' if claims else ', asks for no signature'}", claims


def _by_keys(
    engine: Engine, said: str, image: ImageRow | None, requirement: Requirement, platform: Platform | None,
    progress: Progress, reach: Reach,
) -> tuple[str, tuple[Claim, ...]]:  # fmt: skip
    if image is None:
        wanted = references.parse(said)
        there = [(wanted, *_asked(engine, wanted, platform, progress, reach))]
    else:
        there = [
            (references.parse(o.name), (o.digest, o.manifest), signature.unpack(o.evidence), "")
            for o in origins.of(engine.reader, image.id)
        ]
    reasons: list[str] = []
    for wanted, digests, evidence, trouble in there:
        counted, why = gate.signed(requirement, wanted, digests, evidence)
        if counted:
            return "the keys that are named", tuple(counted)
        reasons += [*why, *([trouble] if trouble else [])]
    raise Untrusted(f"{said} is not signed by a key that is named: {'; '.join(reasons) or 'it has no signature'}",
                    remedy="--remote asks its registry" if image is not None else "")  # fmt: skip


def _asked(
    engine: Engine, wanted: Reference, platform: Platform | None, progress: Progress, reach: Reach
) -> tuple[tuple[str, str], tuple[signature.Evidence, ...], str]:
    """(digests, signatures, what went wrong) of what a registry has."""
    from cowshed.image.resolve import resolve
    from cowshed.registry.client import Client

    progress.step(f"{wanted.familiar}: asking {wanted.registry}")
    settings = engine.settings.registries.get(wanted.registry) or {}
    with Client(wanted.registry, wanted.repository, settings, reach=reach) as client:
        found = resolve(engine.store, client, wanted.wanted, digest=wanted.digest, platform=platform, progress=progress)
        digests = found.digest, found.image.manifest_digest
        return digests, *find.gather(client, digests)
