"""A source folder or CSV -> one item for every image: its digest, size, label, split and group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from manifests.errors import InventoryError, ReadError
from manifests.fingerprint import digest_bytes, digest_file
from manifests.labels import list_csv
from manifests.listing import ListedImage, list_folders
from manifests.pseudonyms import pseudonym, read_salt, salt_identity
from manifests.readers import open_regular, probe
from manifests.reading import Header, Reading
from manifests.types import ImageRow, Split

UNREADABLE = Header(width=0, height=0, mode="", transforms="")


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One image of a source; becomes a row of a drop if its bytes are new."""

    image_id: str
    """As in `ImageRow`; where the file cannot be read at all, salted hash of its path, which may name a patient."""
    path: str
    mask_path: str
    mask_sha256: str
    """Empty if there is no mask or it cannot be read."""
    sha256: str
    """Empty if the file cannot be read at all."""
    bytes: int
    header: Header
    label: str
    split: Split
    group_id: str
    extra_masks: int
    """Further masks of this image, which are not used."""
    reason: str
    """Code of why the header cannot be read; empty if it can."""
    frame: int = 0

    @property
    def key(self) -> str:
        """What makes two items the same."""
        return content_key(self)

    @property
    def transforms(self) -> str:
        """What reading does to this very frame."""
        return self.header.of_frames[self.frame] if self.header.of_frames else self.header.transforms

    @property
    def place(self) -> str:
        """Its path; of one frame of many `path#frame`, as `explain` takes it."""
        of_many = self.sha256 and self.image_id != self.sha256[:16]
        return f"{self.path}#{self.frame}" if of_many else self.path


def content_key(item: SourceItem | ImageRow) -> str:
    """What makes two images the same: bytes and frame, or the path where the bytes are unknown."""
    return f"{item.sha256}:{item.frame}" if item.sha256 else item.image_id


@dataclass(frozen=True, slots=True)
class Scan:
    """Everything found in a source, sorted by path."""

    items: tuple[SourceItem, ...]
    ignored: int
    """Files and folders that were passed over: hidden ones and those that are no images."""
    unnamed: int
    """Images in the source that its CSV does not name."""
    salt_id: str
    """Which salt made the group ids and those of files that cannot be read; empty if there are neither."""
    skipped: Mapping[str, int]
    """DICOM files that hold no image, by what they hold (`RTSTRUCT`)."""
    burned_in: Mapping[str, int]
    """DICOM files with pictures by what they say of burned-in annotations: `YES`, `NO`, or empty."""
    absent: int = 0
    """Lines of the CSV whose UIDs name nothing in the source."""
    unreadable: int = 0
    """DICOM files whose UIDs cannot be read, so that no line of the CSV can name them."""
    shared_patient: tuple[int, int] = (0, 0)
    """DICOM files and studies of the PatientID that most files carry."""


def scan(
    source: Path,
    columns: Mapping[str, str] | None = None,
    labels: Path | None = None,
    on_file: Callable[[int, int], None] | None = None,
    reading: Reading | None = None,
) -> Scan:
    """List a source, and read the digest and header of every image, and the digest of every mask.

    Parameters
    ----------
    source : Path
        The source folder: class folders, split folders, or any folder with a CSV.
    columns : Mapping[str, str], optional
        Column of the CSV by role.
    labels : Path, optional
        The CSV.
    on_file : Callable[[int, int], None], optional
        Called after every file with the number of files done and of all files.
    reading : Reading, optional
        How DICOM and NIfTI files become pictures.

    Returns
    -------
    Scan
        An image that cannot be read is an item too, of width and height 0.

    Raises
    ------
    InventoryError
        If the source or the CSV cannot be used as it is.
    """
    if not source.is_dir():
        raise InventoryError(f"The source {str(source)!r} is not a folder.", "Check the path.")
    if labels is None and columns is not None:
        raise InventoryError("Columns were named, but no CSV.", "Add --labels labels.csv")
    root = source.resolve()
    listing = list_folders(root) if labels is None else list_csv(root, labels, columns)
    items: list[SourceItem] = []
    told, salt = _Told(), ""
    for position, image in enumerate(listing.images, start=1):
        file = _examine(root, image, reading or Reading())
        if image.group or file.header.identity.group or not file.sha256:
            salt = salt or read_salt()
        items += _items(file, image, salt, (reading or Reading()).every)
        told.add(file.header)
        if on_file is not None:
            on_file(position, len(listing.images))
    if not items:
        raise InventoryError(f"No image in {root.name!a}, only {_words(told.skipped)}.", "Check the path.")
    return Scan(
        tuple(items),
        ignored=listing.ignored,
        unnamed=listing.unnamed,
        salt_id=salt_identity(salt) if salt else "",
        skipped=told.skipped,
        burned_in=told.burned_in,
        absent=listing.absent,
        unreadable=listing.unreadable,
        shared_patient=told.shared_patient(),
    )


@dataclass
class _Told:
    """What DICOM files say of themselves, counted."""

    skipped: Counter[str] = field(default_factory=Counter)
    burned_in: Counter[str] = field(default_factory=Counter)
    studies: dict[str, Counter[str]] = field(default_factory=dict)
    """Files of each study by PatientID."""

    def add(self, header: Header) -> None:
        if header.skipped:
            self.skipped[header.skipped] += 1
        elif header.identity.instance:
            self.burned_in[header.identity.burned_in] += 1
            if header.identity.patient:
                self.studies.setdefault(header.identity.patient, Counter())[header.identity.study] += 1

    def shared_patient(self) -> tuple[int, int]:
        """Files and studies of the PatientID that most files carry."""
        return max(((studies.total(), len(studies)) for studies in self.studies.values()), default=(0, 0))


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))


def number_rows(items: Iterable[SourceItem]) -> tuple[ImageRow, ...]:
    """Rows of a drop in the order of the items; of items with the same bytes all but the first name the first."""
    seen: set[str] = set()
    rows = []
    for position, item in enumerate(items):
        rows.append(
            ImageRow(
                row=position,
                image_id=item.image_id,
                path=item.path,
                mask_path=item.mask_path,
                mask_sha256=item.mask_sha256,
                sha256=item.sha256,
                bytes=item.bytes,
                width=item.header.width,
                height=item.header.height,
                mode=item.header.mode,
                label=item.label,
                split=item.split,
                group_id=item.group_id,
                duplicate_of=item.image_id if item.key in seen else "",
                transforms=item.transforms,
                frame=item.frame,
            )
        )
        seen.add(item.key)
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class _File:
    """One file as it was found."""

    sha256: str
    size: int
    header: Header
    reason: str
    mask_sha256: str


def _examine(root: Path, image: ListedImage, reading: Reading) -> _File:
    path, sha256, size, header, reason = root / image.path, "", 0, UNREADABLE, ""
    try:
        with open_regular(path):
            sha256, size = digest_file(path), path.stat().st_size
        header = probe(path, reading)
    except ReadError as error:
        reason = error.reason
    mask_sha256 = _mask_digest(root / image.mask_path) if image.mask_path else ""
    return _File(sha256, size, header, reason, mask_sha256)


def _items(file: _File, image: ListedImage, salt: str, every: int) -> list[SourceItem]:
    """An item for every frame that is asked for; none if the file holds no image."""
    if file.header.skipped:
        return []
    of_file = file.sha256[:16] or pseudonym(salt, f"unreadable:{image.path}")
    several = file.header.frames > 1
    patient = image.group or file.header.identity.group
    items = []
    for frame in range(0, file.header.frames, every):
        image_id = digest_bytes(f"{file.sha256}:{frame}".encode())[:16] if several else of_file
        items.append(
            SourceItem(
                image_id=image_id,
                path=image.path,
                mask_path=image.mask_path,
                mask_sha256=file.mask_sha256,
                sha256=file.sha256,
                bytes=file.size,
                header=file.header,
                label=image.label,
                split=image.split,
                # Frames of one file belong together even where no patient is known.
                group_id=pseudonym(salt, patient) if patient else of_file,
                extra_masks=image.extra_masks,
                reason=file.reason,
                frame=frame,
            )
        )
    return items


def _mask_digest(path: Path) -> str:
    """Digest of a mask; empty if it cannot be read, which the masks stage records with its reason."""
    try:
        with open_regular(path):
            return digest_file(path)
    except ReadError:
        return ""
