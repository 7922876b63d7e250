"""A registry in this process, asked over a socket."""

import contextlib
import threading

import pytest
from cowshed_testing.distribution import Client

from cowshed.registry.server.access import Access
from cowshed.registry.server.journal import Journal
from cowshed.registry.server.registry import Registry
from cowshed.registry.server.service import Service
from cowshed.registry.server.store import Store


class Serving:
    def __init__(self, folder, *, access=None, quota=0, journal=None, tls=None, most=512, **options):
        self.store = Store(str(folder), quota=quota)
        self.registry = Registry(self.store, access or Access(None, None), **options)
        self.service = Service("127.0.0.1:0", self.registry.respond, journal or Journal(-1), tls=tls, most=most)
        self.address = self.service.url.partition("://")[2]
        self.client = Client(self.address)
        self._thread = threading.Thread(target=self.service.run)
        self._thread.start()

    def close(self):
        self.client.close()
        self.service.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def serving(tmp_path):
    """Makes registries; their options are those of Serving."""
    with contextlib.ExitStack() as stack:

        def make(folder="registry", **options):
            made = Serving(tmp_path / folder, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def served(serving):
    return serving()


@pytest.fixture
def ask(served):
    return served.client
