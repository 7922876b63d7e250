"""What a test needs of the kernel it runs on."""

import os
import re

import pytest


def needs(major: int, minor: int, what: str) -> None:
    """Skip the test on an older Linux, which lacks what it is about."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if (int(found[1]), int(found[2])) < (major, minor):
        pytest.skip(f"[kernel] needs Linux {major}.{minor}: {what}")
