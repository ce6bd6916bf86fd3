"""The three layouts of a source, and everything that must not become a sample silently."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.errors import InventoryError
from manifests.inventory import Scan, number_rows, scan
from manifests.inventory_file import format_rows, parse_rows
from manifests.types import Split
from tests.unit.manifests.pictures import encode, noise, put, row


def labels(found: Scan) -> dict[str, str]:
    return {item.path: item.label for item in found.items}


def test_class_folders_label_their_images(source):
    for number, name in enumerate(("b/2.png", "a/1.jpg", "a/0.png")):
        put(source, name, number)
    found = scan(source)
    assert labels(found) == {"a/0.png": "a", "a/1.jpg": "a", "b/2.png": "b"}
    assert {item.split for item in found.items} == {Split.NONE}


def test_order_is_by_path_and_repeats(source):
    for number, name in enumerate(("b/1.png", "a b/1.png", "a/10.png", "a/9.png", "B/1.png", "z.png")):
        put(source, name, number)
    paths = [item.path for item in scan(source).items]
    assert paths == sorted(paths) == [item.path for item in scan(source).items]


def test_nested_folders_belong_to_their_class(source):
    put(source, "benign/patient 1/left/1.png", 1)
    put(source, "malignant/2.png", 2)
    assert labels(scan(source)) == {"benign/patient 1/left/1.png": "benign", "malignant/2.png": "malignant"}


def test_split_folders_in_any_case_give_split_and_label(source):
    words = ("train", "Training", "VAL", "valid", "validation", "Test", "testing")
    for number, word in enumerate(words):
        put(source, f"{word}/glioma/deep/{number}.png", number)
    found = scan(source)
    splits = {item.path.split("/")[0]: item.split.value for item in found.items}
    assert splits == dict(zip(words, ["train"] * 2 + ["val"] * 3 + ["test"] * 2, strict=True))
    assert set(labels(found).values()) == {"glioma"}


def test_image_without_a_class_has_no_label(source):
    put(source, "x.png", 1)
    put(source, "train/y.png", 2)
    found = scan(source)
    assert set(labels(found).values()) == {""}
    assert [item.split for item in found.items] == [Split.TRAIN, Split.NONE]


def test_split_and_class_folders_together_are_refused(source):
    put(source, "train/a/1.png", 1)
    put(source, "extra/2.png", 2)
    with pytest.raises(InventoryError, match=r"'train'.*'extra'.*--labels"):
        scan(source)


def test_split_folders_one_level_down_are_refused_not_taken_for_a_class(source):
    put(source, "Covid19-dataset/train/Covid/1.png", 1)
    with pytest.raises(InventoryError, match="one level down, in 'Covid19-dataset'"):
        scan(source)


def test_mask_folder_is_refused_not_taken_for_a_class(source):
    put(source, "images/benign/1.png", 1)
    put(source, "Masks/benign/1.png", 2)
    with pytest.raises(InventoryError, match="'Masks' seems to hold masks"):
        scan(source)


def test_busi_masks_are_masks_and_never_samples(source):
    for number, name in enumerate(
        ("benign (1)", "benign (1)_mask", "benign (1)_mask_2", "benign (1)_mask_1", "b_mask")
    ):
        put(source, f"benign/{name}.png", number)
    first, second = scan(source).items
    assert (first.path, first.mask_path) == ("benign/b_mask.png", "")
    assert (second.path, second.mask_path) == ("benign/benign (1).png", "benign/benign (1)_mask.png")
    assert second.extra_masks == 2


def test_mask_in_another_folder_does_not_belong(source):
    put(source, "a/1.png", 1)
    put(source, "b/1_mask.png", 2)
    assert [item.mask_path for item in scan(source).items] == ["", ""]


def test_other_files_are_counted_not_listed(source):
    put(source, "a/1.png", 1)
    for name in ("Thumbs.db", ".DS_Store", "a/readme.md", "a/.hidden.png", "labels.csv", "n.txt", ".git/x.png"):
        put(source, name, b"x")
    found = scan(source)
    assert [item.path for item in found.items] == ["a/1.png"]
    assert found.ignored == 7


def test_unreadable_images_are_rows_with_a_reason(source):
    put(source, "a/empty.png", b"")
    put(source, "a/page.jpg", b"<html>")
    put(source, "a/scan.dcm", b"DICM")
    (source / "a/folder.png").mkdir()
    (source / "a/link.png").symlink_to(source / "a/nowhere.png")
    found = scan(source)
    assert {item.path: item.reason for item in found.items} == {
        "a/empty.png": "decode.empty",
        "a/folder.png": "file.irregular",
        "a/link.png": "file.missing",
        "a/page.jpg": "decode.unreadable",
        "a/scan.dcm": "decode.unreadable",
    }
    assert {(item.header.width, item.header.mode) for item in found.items} == {(0, "")}
    assert len({item.image_id for item in found.items}) == 5


def test_forbidden_file_is_a_row_without_a_digest(source, monkeypatch):
    put(source, "a/1.png", 1)

    opened = Path.open

    def refuse(self: Path, *how: Any, **more: Any) -> Any:
        if self.name == "1.png":
            raise PermissionError(13, "no")
        return opened(self, *how, **more)

    monkeypatch.setattr(Path, "open", refuse)
    (item,) = scan(source).items
    assert (item.reason, item.sha256, item.bytes) == ("file.permission", "", 0)
    assert len(item.image_id) == 16


def test_header_and_digest_are_recorded(source):
    data = encode(np.zeros((7, 5), np.uint16))
    put(source, "a/1.png", data)
    (item,) = number_rows(scan(source).items)
    expected = row("a/1.png", data, label="a", width=5, height=7, mode="I;16", transforms="gray16-range")
    assert item == expected


def test_later_row_of_the_same_bytes_names_the_first(source):
    for name, seed in (("a/1.png", 1), ("a/2.png", 2), ("b/1.png", 1)):
        put(source, name, seed)
    first, second, third = number_rows(scan(source).items)
    assert (first.duplicate_of, second.duplicate_of, third.duplicate_of) == ("", "", first.image_id)
    assert [r.row for r in (first, second, third)] == [0, 1, 2]


def test_names_that_differ_in_case_or_normal_form_stay_apart(source):
    names = ["a/\u00e9.png", "a/e\u0301.png", "a/X.png", "a/x.png"]
    for number, name in enumerate(names):
        put(source, name, number)
    assert sorted(item.path for item in scan(source).items) == sorted(names)


def test_class_names_of_both_normal_forms_are_one_class(source):
    put(source, "\u00e9/1.png", 1)
    put(source, "e\u0301/2.png", 2)
    assert set(labels(scan(source)).values()) == {"\u00e9"}


def test_empty_source_says_what_was_looked_for(source):
    put(source, "notes.txt", b"x")
    with pytest.raises(InventoryError, match=r"1 other entries.*train\|val\|test/<class>.*\.png"):
        scan(source)


def test_source_that_is_no_folder_is_refused(source):
    with pytest.raises(InventoryError, match="not a folder"):
        scan(put(source, "a.png", 1))


def test_folder_that_cannot_be_listed_is_refused_not_skipped(source, monkeypatch):
    put(source, "a/1.png", 1)

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InventoryError, match="cannot be listed: Permission denied"):
        scan(source)


@pytest.mark.parametrize("target", ["file", "folder"])
def test_link_that_leaves_the_source_is_refused(source, target):
    outside = put(source.parent, "outside/1.png", 1)
    put(source, "a/1.png", 2)
    (source / "a/out.png").symlink_to(outside) if target == "file" else (source / "b").symlink_to(outside.parent)
    with pytest.raises(InventoryError, match="leaves the source"):
        scan(source)


def test_links_inside_the_source_and_loops_do_no_harm(source):
    put(source, "a/1.png", 1)
    (source / "a/same.png").symlink_to("1.png")
    (source / "again").symlink_to("a")
    (source / "a/loop.png").symlink_to("loop.png")
    found = scan(source)
    assert [item.path for item in found.items] == ["a/1.png", "a/loop.png", "a/same.png"]
    assert found.ignored == 1


def test_name_that_is_not_utf8_is_refused(source):
    folder = os.fsencode(source)
    with Path(os.fsdecode(folder + b"/x\xe9.png")).open("wb") as stream:
        stream.write(encode(noise(1)))
    with pytest.raises(InventoryError, match="not UTF-8"):
        scan(source)


NAMES = [
    "a b.png",
    "new\nline.png",
    "cr\rhere.png",
    "'q\".png",
    "ünï.png",
    "=cmd().png",
    "-x.png",
    "@x,y.png",
    "x" * 251 + ".png",
]


def test_strange_names_round_trip_through_the_inventory(source):
    for number, name in enumerate(NAMES):
        put(source, f"+class/{name}", number)
    rows = number_rows(scan(source).items)
    assert parse_rows(format_rows(rows)) == rows
    assert len(rows) == len(NAMES)


def test_no_cell_of_the_inventory_is_a_formula():
    rows = (row("=cmd()", label="+1", mask_path="@SUM(A1)"), row("'=x", label="-2"), row("\t=1"))
    text = format_rows(rows).decode()
    assert '"\'=cmd()"' in text
    assert not any(cell.startswith(f'"{c}') for cell in text.replace("\n", ",").split(",") for c in "=+-@\t")
    assert parse_rows(text.encode()) == rows


def test_inventory_of_before_frames_is_still_read():
    rows = (row("a", label="benign"), row("b", row=1, transforms="gray"))
    lines = format_rows(rows).decode().splitlines()
    assert lines[0].endswith(',"frame"')
    assert all(line.endswith(",0") for line in lines[1:])
    old = "\n".join(line.rsplit(",", 1)[0] for line in lines) + "\n"
    assert parse_rows(old.encode()) == rows
    assert not any(one.is_frame for one in parse_rows(old.encode()))


def test_frames_round_trip_through_the_inventory():
    rows = (row("a", frame=7, image_id="0" * 16), row("a", row=1, frame=120, image_id="1" * 16))
    assert parse_rows(format_rows(rows)) == rows
    assert all(one.is_frame for one in rows)


@pytest.mark.parametrize("data", [b"", b"row,other\n", b"\xff", None])
def test_foreign_inventory_is_refused(data):
    whole = format_rows([row("a")])
    with pytest.raises(InventoryError, match=r"inventory\.csv cannot be read"):
        parse_rows(whole.rsplit(b",", 2)[0] + b"\n" if data is None else data)


def test_progress_is_told_after_every_file(source):
    for seed in range(3):
        put(source, f"a/{seed}.png", seed)
    calls: list[tuple[int, int]] = []
    scan(source, on_file=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
