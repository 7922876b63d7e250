"""For all tests of the workspace."""

import os
import signal

import pytest

# Whoever is started in the background by a shell script has it ignored, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests for a guest (tests/vm) run there: `make test` boots one, or says in its list of skips that it could not."""
    if "COWSHED_GUEST" in os.environ:
        return
    elsewhere = [item for item in items if item.get_closest_marker("guest") is not None]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]
