"""Driver options: typed, with a schema; the nearest name for a misspelt one; what creation fixes is remembered."""

import pytest

from cowshed.storage import options
from cowshed.storage.api import API_VERSION, DriverPlugin, Option
from cowshed.storage.errors import BadOption


def never(*words, **more):
    raise AssertionError("options are checked before the driver is called")


PLUGIN = DriverPlugin(
    name="example",
    api=API_VERSION,
    summary="",
    options=(
        Option("compression", str, "zstd", "what packs", ("zstd", "none"), creation_only=True),
        Option("level", int, 3, "how hard"),
        Option("checksums", bool, True, "whether", creation_only=True),
        Option("pool", str, None, "where"),
    ),
    probe=never,
    init=never,
    open=never,
    destroy=never,
)


@pytest.mark.parametrize(
    ("wanted", "result"),
    [
        ({}, {}),
        ({"level": "9", "checksums": "no"}, {"level": 9, "checksums": False}),
        ({"level": 9, "checksums": False}, {"level": 9, "checksums": False}),
        ({"checksums": "ON"}, {"checksums": True}),
        ({"pool": "a=b"}, {"pool": "a=b"}),
    ],
)
def test_values_become_what_the_schema_says(wanted, result):
    defaults = {"compression": "zstd", "level": 3, "checksums": True, "pool": None}
    assert options.check(PLUGIN, wanted) == {**defaults, **result}


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"compresion": "none"}, "driver example has no option compresion: did you mean compression?"),
        ({"zzz": "1"}, "driver example has no option zzz: it has compression, level, checksums, pool"),
        ({"level": "high"}, "option level of driver example is a number, not 'high'"),
        ({"level": True}, "option level of driver example is a number, not yes"),
        ({"checksums": "perhaps"}, "option checksums of driver example is yes or no, not 'perhaps'"),
        ({"checksums": 1}, "option checksums of driver example is yes or no, not 1"),
        ({"compression": "zst"}, "is one of zstd, none, not 'zst': did you mean zstd?"),
        ({"pool": 3}, "option pool of driver example is text, not 3"),
    ],
)
def test_a_wrong_option_says_what_would_be_right(wanted, told):
    with pytest.raises(BadOption) as caught:
        options.check(PLUGIN, wanted)
    assert told in f"{caught.value}: {caught.value.remedy}"


def compared(wanted):
    chosen = options.check(PLUGIN, wanted)
    options.compare(PLUGIN, {"compression": "none", "checksums": False}, wanted, chosen)
    return chosen


def test_what_creation_fixed_is_remembered_and_what_it_did_not_may_change():
    assert options.fixed(PLUGIN, options.check(PLUGIN, {})) == {"compression": "zstd", "checksums": True}
    assert compared({"level": 1}) == {"compression": "none", "level": 1, "checksums": False, "pool": None}
    assert compared({"compression": "none", "checksums": "no"})["compression"] == "none"


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"compression": "zstd"}, "is 'none' in this store and cannot become 'zstd'"),
        ({"checksums": True}, "is no in this store and cannot become yes"),
    ],
)
def test_what_creation_fixed_cannot_be_changed(wanted, told):
    with pytest.raises(BadOption, match=told) as caught:
        compared(wanted)
    assert "--root" in caught.value.remedy


def test_what_creation_fixed_is_all_that_is_needed_to_open_again():
    plugin = DriverPlugin(
        name="example",
        api=API_VERSION,
        summary="",
        options=(Option("pool", str, None, "where", creation_only=True), *PLUGIN.options[:3]),
        probe=never,
        init=never,
        open=never,
        destroy=never,
    )
    for given in ({}, {"pool": "a", "checksums": "no"}):
        chosen = options.check(plugin, given)
        assert options.again(plugin, options.fixed(plugin, chosen), {}) == chosen
    assert options.again(plugin, {"pool": None}, {"pool": "b"})["pool"] == "b"
    with pytest.raises(BadOption):
        options.again(plugin, {"gone": "x"}, {})
