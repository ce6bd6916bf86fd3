"""A source that a CSV names."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.errors import InventoryError
from manifests.inventory import Scan, scan
from manifests.pseudonyms import pseudonym, read_salt
from manifests.types import Split
from tests.unit.manifests.pictures import put


def labels(found: Scan) -> dict[str, str]:
    return {item.path: item.label for item in found.items}


def with_csv(source: Path, text: str, columns: dict[str, str] | None = None) -> Scan:
    return scan(source, columns, put(source.parent, "labels.csv", text.encode()))


def test_csv_gives_file_label_split_group_and_mask(source):
    put(source, "x/1.png", 1)
    put(source, "m/1.png", 2)
    found = with_csv(source, "file,label,split,group,mask\nx/1.png,benign,Training,patient 7,m/1.png\n")
    (item,) = found.items
    assert (item.path, item.label, item.split, item.mask_path) == ("x/1.png", "benign", Split.TRAIN, "m/1.png")
    assert item.group_id == pseudonym(read_salt(), "patient 7")


def test_csv_with_class_column_byte_order_mark_and_blank_lines(source):
    put(source, "b.png", 1)
    put(source, "a.png", 2)
    found = with_csv(source, "\ufeffclass,file,other\nbenign,b.png,1\n\n normal ,a.png,2\n")
    assert labels(found) == {"a.png": "normal", "b.png": "benign"}


def test_csv_without_split_or_group_gives_none_and_the_image_id(source):
    put(source, "a.png", 1)
    (item,) = with_csv(source, "file,split,group\na.png,,\n").items
    assert (item.split, item.group_id, item.label) == (Split.NONE, item.image_id, "")


def test_named_columns_are_the_only_ones_used(source):
    put(source, "a.png", 1)
    text = "file,label,split,diagnosis\na.png,wrong,train,right\n"
    (item,) = with_csv(source, text, {"label": "diagnosis"}).items
    assert (item.label, item.split) == ("right", Split.NONE)


def test_csv_uses_only_what_it_names(source):
    put(source, "a.png", 1)
    put(source, "b.png", 2)
    assert len(with_csv(source, "file\nb.png\n").items) == 1


def test_images_of_an_export_are_not_missed_in_a_csv(source):
    put(source, "a.png", 1)
    put(source, "out/9.png", 9)
    assert with_csv(source, "file\na.png\n").unnamed == 1
    put(source, "out/export.json", b'{"schema": "medfocus.export"}')
    assert with_csv(source, "file\na.png\n").unnamed == 0


def test_file_counts_where_a_csv_has_uids_too(source):
    put(source, "a.png", 1)
    assert labels(with_csv(source, "file,study,label\na.png,1.2,x\n")) == {"a.png": "x"}


BAD_CSV = {
    "file and UID": ("file,study\na.png,1.2\n", {"file": "file", "study": "study"}, "by file or UIDs, not both"),
    "no such column": ("path\na.png\n", None, "no column 'file'; it has: path"),
    "named column is absent": ("file\na.png\n", {"label": "dx"}, "no column 'dx'"),
    "unknown role": ("file\na.png\n", {"dx": "file"}, "Unknown role 'dx'.*file, label, split, group, mask"),
    "unknown split": ("file,split\na.png,dev\n", None, "line 2: unknown split 'dev'.*train, training, val"),
    "missing files": ("file\n" + "\n".join(f"m{i}.png" for i in range(7)), None, "'m0.png'.*'m4.png' and 2 more"),
    "missing mask": ("file,mask\na.png,m.png\n", None, "do not exist: 'm.png'"),
    "file twice": ("file\na.png\n./a.png\n", None, "twice: 'a.png'"),
    "absolute": ("file\n/etc/a.png\n", None, "line 2: '/etc/a.png' is not a path below"),
    "escaping": ("file\nx/../../a.png\n", None, "without '..'"),
    "escaping mask": ("file,mask\na.png,../m.png\n", None, "not a path below"),
    "no file": ("file,label\n,benign\n", None, "line 2 names no file"),
    "no lines": ("file\n", None, "names no file"),
    "empty": ("", None, "is empty"),
    "ragged": ("file,label\na.png\n", None, "line 2 has 1 cells, the header has 2"),
    "column twice": ("file,file\na.png,a.png\n", None, "occurs twice"),
    "open quote": ('file\n"a.png\n', None, "not a UTF-8 CSV"),
    "name too long": ("file\n" + "x" * 300 + "\n", None, "do not exist"),
}


@pytest.mark.parametrize(("text", "columns", "message"), BAD_CSV.values(), ids=BAD_CSV.keys())
def test_bad_csv_is_refused_by_name(source, text, columns, message):
    put(source, "a.png", 1)
    with pytest.raises(InventoryError, match=message):
        with_csv(source, text, columns)


def test_csv_in_another_encoding_or_absent_is_refused(source):
    put(source, "a.png", 1)
    with pytest.raises(InventoryError, match="UTF-8"):
        scan(source, labels=put(source.parent, "l.csv", "file,label\na.png,ä\n".encode("latin-1")))
    with pytest.raises(InventoryError, match="cannot be read"):
        scan(source, labels=source / "absent.csv")
    with pytest.raises(InventoryError, match="no CSV"):
        scan(source, {"label": "x"})


def test_csv_link_out_of_the_source_is_refused(source):
    (source / "a.png").symlink_to(put(source.parent, "secret.png", 1))
    with pytest.raises(InventoryError, match=r"lead out of it: 'a\.png'"):
        with_csv(source, "file\na.png\n")
