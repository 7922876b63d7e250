"""The method, on samples of which it is known what they must say."""

import random

import pytest

from cowshed.bench import samples
from cowshed.bench.samples import Sample, as_json, differ, figure, from_json, interval, ratio


def of(*values, **more):
    return figure([Sample(float(value), **more) for value in values])


def test_the_interval_holds_the_median_and_lies_within_the_samples():
    low, high = interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert 1.0 <= low <= 3.0 <= high <= 100.0


def test_few_samples_have_an_interval_of_all_that_was_seen():
    assert interval([5.0]) == (5.0, 5.0)
    assert interval([5.0, 1.0]) == (1.0, 5.0)


def test_the_interval_holds_the_true_median_about_as_often_as_it_says():
    chance = random.Random(7)
    held = 0
    for _ in range(200):
        low, high = interval([chance.gauss(10, 2) for _ in range(15)])
        held += low <= 10 <= high
    assert 180 <= held <= 200


def test_noise_of_one_source_shows_no_difference_and_a_real_one_does():
    chance = random.Random(3)
    found = [of(*[chance.gauss(10, 1) for _ in range(10)]) for _ in range(40)]
    wrong = sum(differ(found[n], found[n + 1]) for n in range(0, 40, 2))
    assert wrong <= 2
    assert differ(of(*[chance.gauss(10, 1) for _ in range(10)]), of(*[chance.gauss(14, 1) for _ in range(10)]))


def test_three_samples_show_nothing_however_far_apart():
    assert not differ(of(1, 1, 1), of(9, 9, 9))
    assert differ(of(1, 1, 1, 1), of(9, 9, 9, 9))
    assert of(1, 1, 1).few


def test_an_outlier_does_not_move_the_figure():
    assert of(10, 10, 11, 11, 5000).median == 11


def test_a_ratio_has_what_both_intervals_allow():
    middle, least, most = ratio(of(20, 20, 20, 20), of(8, 10, 10, 12))
    assert middle == 2
    assert least <= 2 <= most
    assert ratio(of(1), of(0)) is None


def test_every_sample_is_kept_and_read_again():
    found = figure([Sample(1.5, 0.5, 4096, None, 10), Sample(2.5, 0.6, 8192, None, 20)])
    document = as_json(found)
    assert document["samples"] == {"value": [1.5, 2.5], "cpu": [0.5, 0.6], "written": [4096, 8192], "memory": [10, 20]}
    again = from_json(document)
    assert (again.median, again.low, again.high, again.written) == (2.0, 1.5, 2.5, 6144)
    with pytest.raises(KeyError):
        from_json({"samples": {}})


def test_the_seed_of_the_interval_is_fixed():
    values = [random.Random(1).random() for _ in range(9)]
    assert interval(values) == interval(values)
    assert samples.ENOUGH < samples.FEW
