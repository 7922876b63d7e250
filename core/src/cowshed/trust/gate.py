"""The policy at work: asked before an image is brought here, and before it is used. `Engine.gate` opens it."""

from __future__ import annotations

from cowshed.errors import CowshedError, Untrusted
from cowshed.image import reference as references
from cowshed.state import origins
from cowshed.trust import policy as policies
from cowshed.trust.policy import REJECT, SIGNED, UNVERIFIABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowshed.image.reference import Reference
    from cowshed.image.resolve import Resolved
    from cowshed.registry.client import Client
    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Store
    from cowshed.trust.policy import Policy, Requirement, Rule
    from cowshed.trust.signature import Claim, Evidence

_TOLD = 3  # reasons of one refusal


class Gate:
    """Of one policy file that does not accept everything."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    # ------------------------------------------------------------ pulling

    def before(self, image: Reference) -> Rule:
        """Before a registry is asked: Untrusted if nothing that it could answer would do."""
        rule = self.policy.of(image)
        for each in rule.requirements:
            self._refuse_always(each, rule, image.familiar)
        return rule

    def arriving(self, client: Client, image: Reference, found: Resolved) -> tuple[Evidence, ...]:
        """Before anything of a resolved image is stored: the signatures that it comes with, if the policy asks for any.
        Untrusted, ConfigError."""
        rule = self.before(image)
        if not rule.needs_signatures:
            return ()
        from cowshed.trust import find

        digests = found.digest, found.image.manifest_digest
        evidence, trouble = find.gather(client, digests)
        self.judge(rule, image, digests, evidence, trouble)
        return evidence

    # ------------------------------------------------------------ using

    def using(self, store: Store, image: ImageRow, said: str) -> tuple[Rule, tuple[Claim, ...]]:
        """Before an image of the store is used; nobody is asked. One origin that the policy accepts is enough: whatever
        its name, the image is the same bytes. The rule, and the signatures that counted. Untrusted, ConfigError."""
        known = origins.of(store, image.id)
        if not known:
            rule = self.policy.of_local
            for each in rule.requirements:
                self._refuse_always(each, rule, said)
                if each.kind == SIGNED:
                    raise self._refusal(rule, said, "no registry has brought it, so it has no signature",
                                        'give "cowshed" a scope "" in the policy')  # fmt: skip
            return rule, ()
        first: CowshedError | None = None
        for origin in known:
            name = references.parse(origin.name)
            try:
                rule = self.before(name)
                if not rule.needs_signatures:
                    return rule, ()
                from cowshed.trust import signature

                evidence = signature.unpack(origin.evidence)
                return rule, self.judge(rule, name, (origin.digest, origin.manifest), evidence, "")
            except CowshedError as error:
                first = first or error
        assert first is not None
        raise first

    def without_image(self, said: str) -> None:
        """Before a container is used whose image is gone. Untrusted: nobody knows any more where it came from."""
        raise Untrusted(
            f"{said} is not accepted: its image is gone, so that nobody knows where it is from ({self.policy.path})",
            remedy="pull the image, and make the container again",
        )

    # ------------------------------------------------------------ judging

    def judge(
        self, rule: Rule, image: Reference, digests: Sequence[str], evidence: Sequence[Evidence], trouble: str
    ) -> tuple[Claim, ...]:
        """The signatures that meet each requirement of a rule. Untrusted."""
        claims: list[Claim] = []
        for each in rule.requirements:
            if each.kind == SIGNED:
                counted, reasons = signed(each, image, digests, evidence)
                if not counted:
                    told = "; ".join(reasons[:_TOLD]) or "it has no signature"
                    more = f" ({trouble})" if trouble else ""
                    raise self._refusal(rule, image.familiar, told + more, "sign it, or pull it again if it is signed")
                claims += counted
        return tuple(claims)

    def _refuse_always(self, requirement: Requirement, rule: Rule, said: str) -> None:
        if requirement.kind == REJECT:
            raise self._refusal(rule, said, "it is rejected", "")
        if requirement.kind == UNVERIFIABLE:
            raise self._refusal(rule, said, requirement.why, "ask for a sigstoreSigned with a key")

    def _refusal(self, rule: Rule, said: str, why: str, remedy: str) -> Untrusted:
        return Untrusted(f"{said} is not accepted: {why} ({rule.scope}, {self.policy.path})", remedy=remedy)


def signed(
    requirement: Requirement, image: Reference, digests: Sequence[str], evidence: Sequence[Evidence]
) -> tuple[list[Claim], list[str]]:
    """(the signatures that meet a requirement, why the others do not). ConfigError if a key cannot be used."""
    from cowshed.trust import signature

    keys = [signature.key_file(path) for path in requirement.paths]
    keys += [signature.Key(data, "the key in the policy") for data in requirement.data]
    counted, reasons = [], []
    for each in evidence:
        try:
            claim = signature.verify(each, keys)
        except signature.BadSignature as error:
            reasons.append(f"a signature {error}")
            continue
        if not set(claim.digests) & set(digests):
            reasons.append("a signature is for another image")
        elif not policies.matches(requirement.identity, image, claim.identity):
            named = f"for {claim.identity[:200]!r}" if claim.identity else "for no name"
            reasons.append(f"a signature is {named}, which {requirement.identity.type} does not take")
        else:
            counted.append(claim)
    return counted, list(dict.fromkeys(reasons))
