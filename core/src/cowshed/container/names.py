"""Names for containers that were given none: adjective_farm-animal."""

from __future__ import annotations

import os

_ADJECTIVES = (
    "amber brave calm clever dapper eager fair fleet gentle grand happy hardy jolly keen kind lively lucky mellow "
    "merry mild neat noble patient placid proud quick quiet ready rosy sleek smart snug steady sturdy sunny sweet "
    "swift tidy warm wise"
).split()
_ANIMALS = (
    "angus ayrshire belted bison brahman buffalo calf charolais chianina dexter devon drover fleckvieh galloway "
    "gelbvieh guernsey hereford highland holstein jersey kerry limousin longhorn maine_anjou normande ongole "
    "pinzgauer randall salers shorthorn simmental sussex swiss tarentaise wagyu watusi yak zebu"
).split()


def random_name() -> str:
    a, b, c = os.urandom(3)
    return f"{_ADJECTIVES[a % len(_ADJECTIVES)]}_{_ANIMALS[b % len(_ANIMALS)]}{c % 100}"
