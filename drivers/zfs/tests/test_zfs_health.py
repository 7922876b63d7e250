"""The state of a pool, as the module's files tell it."""

import pytest

from cowshed.storage.api import Verdict
from cowshed_driver_zfs import health


@pytest.mark.parametrize(
    ("state", "verdict"),
    [("ONLINE", None), ("DEGRADED", Verdict.POOR), ("SUSPENDED", Verdict.UNUSABLE), ("FAULTED", Verdict.UNUSABLE)],
)
def test_a_pool_that_is_not_online_is_told(tmp_path, monkeypatch, state, verdict):
    monkeypatch.setattr(health, "FOLDER", str(tmp_path))
    (tmp_path / "tank").mkdir()
    (tmp_path / "tank/state").write_text(f"{state}\n")
    told = health.reasons("tank")
    assert [reason.verdict for reason in told] == ([verdict] if verdict else [])
    assert all(reason.text == f"pool tank is {state}" and "zpool status tank" in reason.remedy for reason in told)
    assert health.reasons("unknown") == ()
