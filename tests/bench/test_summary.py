import pytest

from bench.summary import Percentiles, Spread, percentile


def test_the_spread_is_the_middle_and_the_ends():
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)]
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(share, expected):
    assert percentile(range(1, 101), share) == expected


def test_the_percentiles_of_one_value_are_that_value():
    assert Percentiles.of([4.0]) == Percentiles(4.0, 4.0, 4.0)


def test_percentiles_do_not_depend_on_the_order():
    assert Percentiles.of(map(float, range(100, 0, -1))) == Percentiles(50.0, 95.0, 99.0)
