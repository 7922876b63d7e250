"""image verify."""

from __future__ import annotations

import sys

from cowshed.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Values
    from cowshed.engine import Engine

_HEADINGS = {"DIGEST": "SIGNED DIGEST", "IDENTITY": "FOR"}


def verify(engine: Engine, said: Values) -> int:
    import os

    from cowshed.cli import reaching
    from cowshed.errors import BadUsage
    from cowshed.image import platform, progress
    from cowshed.trust.verify import verify as verify_

    if said.key and said.policy:
        raise BadUsage("--key and --policy exclude each other")
    image = said["operands"][0]
    with progress.choose(sys.stderr, quiet=bool(said.quiet)) as shown:
        why, claims = verify_(
            engine,
            image,
            keys=[os.path.abspath(path) for path in said.key or ()],
            policy_file=os.path.abspath(said.policy) if said.policy else "",
            remote=bool(said.remote),
            platform=platform.parse(said.platform) if said.platform else None,
            progress=shown,
            reach=reaching.reach(said),
        )
    if said.quiet:
        return 0
    rows = [
        {"Digest": digest, "Form": claim.form, "Identity": claim.identity or "<none>", "Key": claim.key}
        for claim in claims
        for digest in claim.digests
    ]
    if rows or said.format:
        output.listing(rows, ("Digest", "Form", "Identity", "Key"), said.format, what="image verify",
                       headings=_HEADINGS)  # fmt: skip
    if not said.format:
        print(f"{image} is accepted: {why}")
    return 0
