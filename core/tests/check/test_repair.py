"""What a repair does not do any more after another step has failed."""

from cowshed.check import repair
from cowshed.check.findings import Finding
from cowshed.errors import Conflict


def done(monkeypatch, *, fails):
    """(code, whether it was done) of each step, where those of `fails` fail."""
    ran = []

    def do(engine, finding):
        if finding.code in fails:
            raise Conflict("it cannot be")
        ran.append(finding.code)

    codes = ("image.lost-row", "volume.missing", "blob.unlisted", "object.orphan", "container.folder", "record.left")
    monkeypatch.setattr(repair, "_STEPS", dict.fromkeys(codes, do))
    steps = repair.plan([Finding(code, "x", "x", repair="x") for code in reversed(codes)])
    told = [each.finding.code for each in repair.repair(None, steps, None) if not each.error]
    assert told == ran
    return set(ran)


def test_what_a_lost_image_may_need_stays_if_it_could_not_be_brought_back(monkeypatch):
    assert done(monkeypatch, fails=["image.lost-row"]) == {"volume.missing"}


def test_any_other_step_that_fails_stops_none(monkeypatch):
    assert len(done(monkeypatch, fails=["volume.missing"])) == 5
