"""Array parts: every unit belongs to one part, whatever is committed meanwhile."""

from __future__ import annotations

import pytest

from manifests.errors import UsageError
from pipeline.plan import Part, PlannedUnit, share

UNITS = [PlannedUnit("proposals", f"{i:06d}", "new", i) for i in range(10)]


def test_parts_cover_every_unit_once() -> None:
    parts = [share(UNITS, Part(i, 3), None) for i in (1, 2, 3)]
    assert sorted(u.unit for part in parts for u in part) == [u.unit for u in UNITS]


def test_part_keeps_its_units_when_others_are_done() -> None:
    mine = {u.unit for u in share(UNITS, Part(2, 3), None)}
    assert {u.unit for u in share(UNITS[5:], Part(2, 3), None)} < mine


def test_limit_takes_the_first_units() -> None:
    assert share(UNITS, None, 2) == UNITS[:2]


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "a/b", "1/", "-1/3"])
def test_part_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="I/N"):
        Part.parse(text)


def test_part_reads_index_and_count() -> None:
    assert Part.parse("3/16") == Part(3, 16)
