"""Small counts are not shown, and nothing that is shown gives them away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.small_cells import Cell, count_text, hide_small, may_show

PARTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 30), max_size=6)
LEAST = st.integers(1, 12)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"a": 50, "b": 20}, [("a", 50), ("b", 20)]),
        ({"a": 100, "b": 3, "c": 5, "d": 40}, [("a", 100), ("bcd", 48)]),
        ({"a": 50, "b": 20, "c": 3, "d": 0}, [("a", 50), ("bc", 23)]),
        ({"a": 50, "b": 20, "c": 6, "d": 7}, [("a", 50), ("bcd", 33)]),
        ({"a": 11, "b": 10, "c": 10}, [("abc", 31)]),  # 20 of two parts below 11 are 10 and 10
        ({"a": 20, "b": 3, "c": 20}, [("abc", 43)]),  # either could be the one that joins
        ({"a": 4}, [("a", None)]),
        ({"a": 4, "b": 3}, [("ab", None)]),
        ({"a": 0}, []),
    ],
)
def test_small_parts_stand_together_with_the_smallest_other(parts, expected):
    assert hide_small(parts, 11) == [Cell(tuple(names), count) for names, count in expected]


@given(PARTS, LEAST)
def test_cells_hold_every_part_once_and_keep_the_total(parts, least):
    cells = hide_small(parts, least)
    assert sorted(name for cell in cells for name in cell.names) == sorted(name for name in parts if parts[name])
    for cell in cells:
        assert cell.count in (None, sum(parts[name] for name in cell.names))


@given(PARTS, LEAST)
def test_no_small_part_can_be_recovered_by_subtraction(parts, least):
    """Total minus any cells shown leaves a sum of cells; only sums of whole cells can be found so, none of them small.

    One exception: where the total is small itself, there is one cell, which shows nothing.
    """
    cells = hide_small(parts, least)
    if any(cell.count is None for cell in cells):
        assert len(cells) == 1
        assert sum(parts.values()) < least
        return
    for cell in cells:
        assert cell.count >= least
        if any(parts[name] < least for name in cell.names):
            assert len(cell.names) > 1


@given(PARTS, LEAST, st.randoms(use_true_random=False))
def test_counts_of_one_cell_may_be_exchanged_and_nobody_sees_it(parts, least, random):
    cells = hide_small(parts, least)
    other = dict(parts)
    for cell in cells:
        other |= dict(zip(cell.names, random.sample([parts[name] for name in cell.names], len(cell.names))))
    assert hide_small(other, least) == cells


def test_the_rest_of_a_known_whole_counts_too():
    assert may_show(11, 300, 11)
    assert may_show(0, 300, 11)
    assert may_show(300, 300, 11)
    assert not may_show(10, 300, 11)
    assert not may_show(290, 300, 11)


def test_a_small_count_is_written_as_its_bound():
    assert [count_text(n, 11) for n in (0, 10, 11, 12_345, None)] == ["0", "< 11", "11", "12,345", "< 11"]
