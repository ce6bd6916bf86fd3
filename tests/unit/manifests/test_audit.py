"""Findings of the audit, one by one, and the gate against leaks."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from manifests.audit import Audit, Seen, check, flagged, require_clean
from manifests.confounds import Confound
from manifests.errors import ExitCode, InventoryError
from manifests.twins import Twin
from manifests.types import ImageRow, Split
from tests.unit.manifests.pictures import row


def image(content: str, split: str = "train", label: str = "a", **fields: Any) -> ImageRow:
    return row(
        fields.pop("path", f"{split}/{label}/x.png"), content.encode(), split=Split(split), label=label, **fields
    )


def ids(*contents: str) -> tuple[str, ...]:
    return tuple(sorted(image(content).image_id for content in contents))


def test_clean_rows_give_no_finding():
    audit = check([image("1"), image("2"), image("3", "test"), image("4", "none")])
    findings = audit.model_dump(exclude={"n_images", "counts", "schema_version"})
    assert not any(findings.values())
    assert audit.counts == {"train": {"a": 2}, "test": {"a": 1}, "none": {"a": 1}}
    assert audit.n_images == 4


def test_duplicates_are_told_by_split_and_label():
    audit = check([image("1"), image("1"), image("2"), image("2", "val"), image("3"), image("3", label="b")])
    assert audit.duplicates_within_split == ids("1", "3")
    assert audit.duplicates_across_splits == ids("2")
    assert audit.duplicates_across_labels == ids("3")


def test_duplicate_of_an_unlabelled_or_unsplit_image_is_no_conflict():
    audit = check([image("1"), image("1", "none", "")])
    assert (audit.duplicates_across_splits, audit.duplicates_across_labels) == ((), ())


def test_group_across_splits_is_found():
    audit = check([image("1", group_id="p"), image("2", "test", group_id="p"), image("3", "test", group_id="q")])
    assert audit.groups_across_splits == ids("1", "2")
    assert audit.leaks == ids("2")


def test_masks_posing_as_images_are_found():
    paths = ("a/1_mask.png", "a/2_Mask_1.png", "masks/3.png", "a/masked.png", "a/4.png")
    audit = check([image(path, path=path) for path in paths])
    assert audit.masks_as_images == ids(*paths[:3])


def test_extra_masks_and_unreadable_headers_are_kept():
    audit = check([image("1")], seen=Seen(extra_masks={"x": 2}, unreadable={"y": "decode.empty"}))
    assert (audit.extra_masks, audit.unreadable) == ({"x": 2}, {"y": "decode.empty"})


def test_class_with_one_training_image_is_reported():
    rows = [image("1"), image("2"), image("3", label="b"), image("3", label="b"), image("4", "test", "b")]
    assert check(rows).single_image_classes == ("b",)
    assert check([image("5", label="b")], rows).single_image_classes == ()


def test_unreadable_image_does_not_count_for_its_class():
    assert check([image("1"), image("2", width=0), image("3", width=0)]).single_image_classes == ("a",)


def test_class_missing_in_train_or_test_is_reported():
    audit = check([image("1"), image("2", label="b"), image("3", "test"), image("4", "test", "c")])
    assert audit.classes_without_train == ("c",)
    assert audit.classes_without_test == ("b",)


def test_unsplit_data_miss_no_class():
    audit = check([image("1", "none"), image("2", "none", "b")])
    assert (audit.classes_without_train, audit.classes_without_test) == ((), ())


@pytest.mark.parametrize(
    ("one", "other", "leaks"),
    [("train", "test", 1), ("train", "val", 1), ("val", "test", 1), ("train", "none", 0), ("train", "train", 0)],
)
def test_same_bytes_leak_between_splits_that_train_choose_and_test(one, other, leaks):
    assert len(check([image("1", one), image("1", other)]).leaks) == leaks


def test_new_training_image_makes_an_old_test_image_leak():
    old = [image("1", "test", group_id="p")]
    assert check([image("2", group_id="p")], old).leaks == ids("1")


def test_leaks_of_earlier_drops_are_not_told_again():
    old = [image("1"), image("1", "test")]
    assert check([image("2")], old).leaks == ()
    assert check([image("2"), image("2", "test")], old).leaks == ids("2")


def test_unreadable_files_without_digest_do_not_leak_into_each_other():
    rows = [image("1", sha256="", width=0), image("2", "test", sha256="", width=0)]
    assert check(rows).leaks == ()
    assert check(rows).duplicates_across_splits == ()


def test_flagged_names_test_images_only():
    rows = [
        image("1"),
        image("1", "test"),
        image("2"),
        image("2", "val"),
        image("3", "test"),
        image("4", "test", group_id="p"),
    ]
    assert flagged(rows) == set(ids("1"))
    assert flagged([*rows, image("5", group_id="p")]) == set(ids("1", "4"))


def test_gate_refuses_with_count_ids_and_the_way_out():
    audit = check([image(str(n), split) for n in range(5) for split in ("train", "test")])
    with pytest.raises(InventoryError) as caught:
        require_clean(audit, strict=True)
    message = str(caught.value)
    assert "5 validation or test images" in message
    assert sum(image_id in message for image_id in audit.leaks) == 3
    assert "--strict" in message
    assert "with and without" in message
    assert caught.value.exit_code == ExitCode.REFUSED == 4


def test_gate_opens_when_it_is_not_strict_or_nothing_is_found():
    leaky, clean = check([image("1"), image("1", "test")]), check([image("1")])
    require_clean(leaky, strict=False)
    require_clean(clean, strict=True)
    assert leaky.leaks


def twin(one: str, other: str, how: str = "mirrored") -> Twin:
    return Twin(image_id=image(one).image_id, other_id=image(other).image_id, how=how, correlation=0.999)


def test_twin_in_training_makes_a_test_image_leak_whichever_drop_it_came_with():
    rows = [image("1"), image("2", "test"), image("3", "val")]
    twins = (twin("1", "2"), twin("3", "1"))
    audit = check(rows, seen=Seen(twins=twins))
    assert audit.leaks == ids("2", "3")
    assert audit.twins_across_splits == ids("1", "2", "3")
    assert flagged(rows, twins) == set(ids("2"))
    later = check([image("4")], rows, Seen(twins=(twin("2", "4"),)), previous_twins=twins)
    assert later.leaks == (), "it leaked before"
    assert check([image("4")], rows, Seen(twins=(twin("2", "4"),))).leaks == ids("2")


def test_twins_with_two_labels_are_told_and_refused_when_strict():
    audit = check([image("1"), image("2", label="b"), image("3"), image("4")], seen=Seen(twins=(twin("1", "2"),)))
    assert audit.label_conflicts == audit.twins_across_labels == ids("1", "2")
    with pytest.raises(InventoryError, match="2 images carry two labels"):
        require_clean(audit, strict=True)


def test_two_valued_images_count_as_masks_and_shortcuts_are_refused_when_strict():
    seen = Seen(
        two_valued=frozenset(ids("1")),
        confounds=(Confound(probed="margins", balanced_accuracy=0.9, chance=0.5, n_images=20),),
    )
    audit = check([image("1"), image("2")], seen=seen)
    assert audit.masks_as_images == ids("1")
    with pytest.raises(InventoryError, match=r"1 masks lie among the images.*classes can be told from margins"):
        require_clean(audit, strict=True)


def test_audit_is_strict_frozen_and_reads_back():
    audit = check([image("1", path="DOE/JANE.png")])
    assert Audit.model_validate_json(audit.model_dump_json()) == audit
    assert "DOE" not in audit.model_dump_json()
    with pytest.raises(ValidationError):
        Audit.model_validate({**audit.model_dump(), "other": 1})
    with pytest.raises(ValidationError):
        audit.n_images = 2  # type: ignore[misc]
