"""Sizes as people read them."""

import pytest

from cowshed import words
from cowshed.cli import output


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1536, "1.54 kB"), (999_499, "999 kB"), (999_501, "1 MB"),
    (999_999_999, "1 GB"), (5 * 10**12, "5 TB"),
])  # fmt: skip
def test_sizes(count, text):
    assert words.size(count) == text
    assert output.size(count) == text.replace(" ", "")
