"""Find out which kind of input `data.images` is; where the kind is ambiguous, the user must set `data.format`."""

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from configs.errors import or_the_demos_data
from configs.experiment import ImageFormat
from stage1_extract.errors import UnusableImages
from stage1_extract.sources.folder import FolderSource
from stage1_extract.sources.image_source import ImageSource
from stage1_extract.sources.images import has_image_suffix, is_companion
from stage1_extract.sources.parquet import ParquetSource
from stage1_extract.sources.tar import TarSource
from store.errors import DataMissing

IMAGES, TAR, PARQUET = "image files", "tar shards", "parquet files"
COMPRESSED_TAR, ARROW = "compressed tar shards", "arrow files"
"""Kinds of input, as messages name them."""
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
    """Open the images at `data.images`.

    Args:
        root: `data.images`.
        image_format: `data.format`; `auto` finds the kind of input out.
        image_column: `data.image_column`, for parquet files with several columns of images.
        follow_links: `data.follow_links`, for folders.

    Raises:
        DataMissing: There is nothing at `root` (exit 5).
        UnusableImages: There are several kinds of input, or a kind that cannot be read in place (exit 2).
        DamagedArchive: A tar or parquet file is damaged (exit 4).
        ReaderMissing: The images are in parquet files and pyarrow is not installed (exit 5).

    """
    if not root.exists():
        raise DataMissing(
            f"expected a folder of images at {root.absolute()}, there is none: check data.images"
            f"{or_the_demos_data(root.parent)}"
        )
    if image_format == "folder":
        return FolderSource(root, follow_links)
    files = _files(root)
    kind = {"tar": TAR, "parquet": PARQUET}.get(image_format) or _only_kind(root, files)
    if kind == IMAGES:
        return FolderSource(root, follow_links)
    if kind not in files:
        raise UnusableImages(f"expected {kind} in {root}, found {_listed(files)}: check data.images and data.format")
    if kind in _REFUSED:
        raise UnusableImages(_REFUSED[kind].format(root=root))
    return TarSource(files[kind]) if kind == TAR else ParquetSource(files[kind], image_column)


def _only_kind(root: Path, files: Mapping[str, Mapping[str, Path]]) -> str:
    """Return the only kind of input; UnusableImages (exit 2) where there are several."""
    if len(files) > 1:
        raise UnusableImages(
            f"expected one kind of input in {root}, found {_listed(files)}: set data.format to folder, tar or parquet"
        )
    if not files and not root.is_dir():
        raise UnusableImages(f"expected a folder, a .tar or a .parquet file as data.images, got {root}")
    return next(iter(files), IMAGES)


def _files(root: Path) -> dict[str, dict[str, Path]]:
    """List the files of known kinds, by kind and then by path below the root, sorted; of image files only the first.

    A link to an archive is followed, as the hub's cache consists of such links. The user, not the data, says which archives
    there are.
    """
    files: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    if not root.is_dir():
        kind = _kind(root.name)
        return {kind: {root.name: root}} if kind not in (None, IMAGES) else {}
    for folder, _, names in os.walk(root):
        for name in names:
            kind = _kind(name)
            if kind is not None and (kind != IMAGES or IMAGES not in files):
                path = Path(folder, name)
                files[kind][path.relative_to(root).as_posix()] = path
    return {kind: dict(sorted(paths.items())) for kind, paths in files.items()}


def _kind(name: str) -> str | None:
    if is_companion(name):
        return None
    if has_image_suffix(name):
        return IMAGES
    return next((kind for suffix, kind in SUFFIXES.items() if name.lower().endswith(suffix)), None)


def _listed(files: Mapping[str, Mapping[str, Path]]) -> str:
    """Name every kind of input, with a number and an example, for a message."""
    kinds = [
        f"{'' if kind == IMAGES else f'{len(paths)} '}{kind} ({next(iter(paths))})" for kind, paths in files.items()
    ]
    return " and ".join(kinds) or "none of its kind"
