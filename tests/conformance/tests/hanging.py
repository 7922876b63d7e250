"""A driver whose prepare() never comes back, and a suite that waits for it for a second only."""

import time

from broken import plugin

from cowshed_conformance import fixtures
from cowshed_driver_copy.driver import CopyDriver


class Hangs(CopyDriver):
    def prepare(self, new, options):
        time.sleep(1000)


fixtures.BUDGET = 1.0
driver = plugin(Hangs)
