"""Tests that boot guests come when one is built: tests/vm/guests runs them, and `make test` that."""

import os

collect_ignore = [] if "COWSHED_BOOT" in os.environ else ["test_boot.py"]
