"""The conformance suite on this driver: `pytest`, as root. One case: `pytest -k test_L07_`."""

from cowshed_conformance.suite import *  # noqa: F403

DRIVER = "erofs"
SUITE_VERSION = 2  # newer cases are told and fail nothing; raise it when they pass
