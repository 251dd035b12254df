"""Which kind of input `data.images` is. Only what is unambiguous is found out; the rest is told."""

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from configs.experiment import ImageFormat
from stage1_extract.errors import UnusableImages
from stage1_extract.sources.folder import FolderSource
from stage1_extract.sources.image_source import ImageSource
from stage1_extract.sources.images import has_image_suffix
from stage1_extract.sources.parquet import ParquetSource
from stage1_extract.sources.tar import TarSource
from store.errors import DataMissing

IMAGES, TAR, PARQUET = "image files", "tar shards", "parquet files"
COMPRESSED_TAR, ARROW = "compressed tar shards", "arrow files"
SUFFIXES = {".tar": TAR, ".parquet": PARQUET, ".arrow": ARROW} | dict.fromkeys(
    (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst"), COMPRESSED_TAR
)
_REFUSED = {
    COMPRESSED_TAR: "expected uncompressed tar shards in {root}, they are compressed: uncompress them first",
    ARROW: "expected images in {root}, found arrow files (datasets' save_to_disk): write the dataset with to_parquet instead",
}


def open_images(
    root: Path, image_format: ImageFormat = "auto", image_column: str | None = None, follow_links: bool = False
) -> ImageSource:
    """The images at `data.images`, by `data.format`, `data.image_column` and `data.follow_links`.

    Raises DataMissing (exit 5) where there is nothing, UnusableImages (exit 2) for a mix and for what cannot be read in
    place, DamagedArchive (exit 4), ReaderMissing (exit 5) for parquet without pyarrow.
    """
    if not root.exists():
        raise DataMissing(
            f"expected a folder of images at {root}, there is none: check data.images, or write the demo's with `make data`"
        )
    if image_format == "folder":
        return FolderSource(root, follow_links)
    found = _files(root)
    wanted = {"tar": TAR, "parquet": PARQUET}.get(image_format) or _only_kind(root, found)
    if wanted == IMAGES:
        return FolderSource(root, follow_links)
    if wanted not in found:
        raise UnusableImages(f"expected {wanted} in {root}, found {_told(found)}: check data.images and data.format")
    if wanted in _REFUSED:
        raise UnusableImages(_REFUSED[wanted].format(root=root))
    return TarSource(found[wanted]) if wanted == TAR else ParquetSource(found[wanted], image_column)


def _only_kind(root: Path, found: Mapping[str, Mapping[str, Path]]) -> str:
    if len(found) > 1:
        raise UnusableImages(
            f"expected one kind of input in {root}, found {_told(found)}: set data.format to folder, tar or parquet"
        )
    if not found and not root.is_dir():
        raise UnusableImages(f"expected a folder, a .tar or a .parquet file as data.images, got {root}")
    return next(iter(found), IMAGES)


def _files(root: Path) -> dict[str, dict[str, Path]]:
    """The files that matter, by kind and then by path below the root, sorted. Of image files only the first is kept.

    A link to an archive is followed, as the hub's cache consists of them; which archives there are is the user's word,
    not the data's.
    """
    found: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    if not root.is_dir():
        kind = _kind(root.name)
        return {kind: {root.name: root}} if kind not in (None, IMAGES) else {}
    for folder, _, names in os.walk(root):
        for name in names:
            kind = _kind(name)
            if kind is not None and (kind != IMAGES or IMAGES not in found):
                path = Path(folder, name)
                found[kind][path.relative_to(root).as_posix()] = path
    return {kind: dict(sorted(files.items())) for kind, files in found.items()}


def _kind(name: str) -> str | None:
    if has_image_suffix(name):
        return IMAGES
    return next((kind for suffix, kind in SUFFIXES.items() if name.lower().endswith(suffix)), None)


def _told(found: Mapping[str, Mapping[str, Path]]) -> str:
    listed = [
        f"{'' if kind == IMAGES else f'{len(files)} '}{kind} ({next(iter(files))})" for kind, files in found.items()
    ]
    return " and ".join(listed) or "none of its kind"
