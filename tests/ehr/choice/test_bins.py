"""Percentiles of millions of event times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr.choice.bins import EventTimes, bin_edges

DAYS = st.floats(min_value=1e-11, max_value=1e5, width=64)


@given(st.lists(DAYS, min_size=1, max_size=60), st.integers(2, 12))
def test_equal_numpys_to_the_last_bit(values, num_bins):
    wanted = np.linspace(0, 100, num_bins + 1)[1:-1]
    assert np.array_equal(EventTimes([np.array(values)]).percentiles(wanted), np.percentile(values, wanted))


@pytest.mark.parametrize("size", [2, 3, 10, 300_001, 1_000_000])
@pytest.mark.parametrize("whole_days", [False, True])
def test_equal_numpys_over_many_parts_and_ties(size, whole_days):
    values = np.random.default_rng(size).exponential(300, size) + 1e-6
    values = np.ceil(values) if whole_days else values
    wanted = np.linspace(0, 100, 9)[1:-1]
    times = EventTimes(np.array_split(values, 7))
    assert np.array_equal(times.percentiles(wanted), np.percentile(values, wanted))
    assert len(times) == size
    assert np.array_equal(times.counts, np.histogram(values, times.edges)[0])


def test_edges_that_are_tied_are_merged():
    assert bin_edges(EventTimes([np.array([5.0] * 9), np.array([7.0])]), 4) == (0.0, 5.0, np.inf)
    assert bin_edges(EventTimes([np.empty(0)]), 4) == (0.0, np.inf)
