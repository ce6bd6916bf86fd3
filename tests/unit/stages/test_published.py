"""Printed accuracies and the counts that they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.report.published import count_of, published, published_table
from stages.report.tables import UNDEFINED, Entry


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


def test_table_has_a_row_a_method_and_marks_what_the_test_set_cannot_give() -> None:
    table = published_table("covid")
    assert [entry.text for entry in table.header] == ["method", "where", "5 %", "10 %", "20 %", "50 %", "100 %"]
    assert table.names == 2
    rows = {row[0].text: row[1:] for row in table.rows}
    assert list(rows) == ["CLIP", "ResNet", "Res2Net", "ViT", "Swin", "MedFocusCLIP"]
    assert rows["MedFocusCLIP"][:3] == (
        Entry("authors' README"),
        Entry("71.15", "no count out\nof 66 gives it"),
        Entry("77.27", "51/66"),
    )
    assert rows["CLIP"] == (Entry("abstract"), Entry("66", "44/66"), *[Entry(UNDEFINED)] * 4)


def test_impossible_values_are_those_that_were_found_by_hand() -> None:
    found = {
        (table, row["method"], row["percent"])
        for table in ("covid", "lung", "brain", "breast")
        for row in published(table).to_dict("records")
        if count_of(row["percent"], row["n_test"]) is None
    }
    assert found == {
        ("covid", "MedFocusCLIP", "71.15"),
        ("lung", "MedFocusCLIP", "91.52"),
        ("brain", "ResNet", "92.81"),
        *(("brain", "MedFocusCLIP", value) for value in ("86.09", "92.12", "94.91", "96.28", "97.57")),
        *(("breast", "Res2Net", value) for value in ("55.20", "61.45", "65.30", "70.85", "89.50")),
        ("breast", "Swin on masked images", "83.41"),
    }


def test_every_row_has_a_source_and_a_fraction() -> None:
    for table in ("covid", "lung", "brain", "breast"):
        frame = published(table)
        methods = ["ResNet", "Res2Net", "ViT", "Swin", "MedFocusCLIP"]
        assert frame[frame["source"] == "authors' README"].groupby("method").size().to_dict() == dict.fromkeys(
            methods, 5
        )
        assert frame["source"].str.len().gt(0).all()
        assert frame["fraction"].between(0, 1).all()
