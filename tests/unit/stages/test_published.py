"""Printed accuracies and the counts that they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.report.published import count_of, published, published_table


@pytest.mark.parametrize(
    ("percent", "n", "count"),
    [("71.15", 66, None), ("93.94", 66, 62), ("71", 66, 47), ("29.97", 307, 92), ("83.41", 307, None), ("100", 5, 5)],
)
def test_count_of_a_printed_share(percent: str, n: int, count: int | None) -> None:
    assert count_of(percent, n) == count


@given(st.integers(1, 900), st.data())
def test_every_real_share_is_possible(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    assert count_of(f"{100 * count / n:.2f}", n) == count


def test_impossible_value_is_marked_in_the_table() -> None:
    rows = {row[2].text: row[3].text for row in published_table("covid").rows}
    assert rows["71.15 %"] == "no count out of 66 gives it"
    assert rows["71 %"] == "47/66"


def test_every_row_has_a_source_and_a_fraction() -> None:
    for table in ("covid", "lung", "brain", "breast"):
        frame = published(table)
        assert len(frame)
        assert frame["source"].str.len().gt(0).all()
        assert frame["fraction"].between(0, 1).all()
