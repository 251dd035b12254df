"""Features of images by the names that the user's data gives them."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Shaped
from torch import Tensor

from configs.errors import WrongCall
from store.errors import RowUnavailable
from store.layout.tensors import from_storage
from store.reading.reader import FeatureStore


def read_features(
    store: FeatureStore | Path | str, images: Sequence[str], array: str = "projected"
) -> Shaped[Tensor, "image ..."]:
    """Read one array of some images, in the dtype in which it was encoded.

    Args:
        store: An open store, or where it lies.
        images: Names of images as the questions have them, relative to the image root.
        array: Name of the array: `raw` is (image, patch, hidden), `projected` is (image, patch, embed).

    Raises:
        RowUnavailable: (exit 4) An image is unknown, was not extracted yet, or could not be encoded.
        StoreMissing: (exit 5) There is no store, or it lacks the array.

    Examples:
        >>> read_features("runs/demo/store", ["test_00000.png"], "raw").shape  # doctest: +SKIP
        torch.Size([1, 576, 96])

    """
    store = store if isinstance(store, FeatureStore) else FeatureStore.open(Path(store))
    store.require([array])
    return read_rows(store, array, rows_of(store, images))


def read_rows(store: FeatureStore, array: str, rows: Sequence[int]) -> Shaped[Tensor, "image ..."]:
    """Read some rows of an array, in the dtype in which they were encoded; raises as `FeatureStore.gather` does."""
    return from_storage(store.gather(array, rows), store.arrays[array].dtype)


def rows_of(store: FeatureStore, images: Sequence[str]) -> list[int]:
    """Return the rows of some images; RowUnavailable (exit 4) names the first image that the store does not know.

    Raises WrongCall (exit 2) for one name in place of a list, whose letters would be taken for names.
    """
    if isinstance(images, str):
        raise WrongCall(f"expected a list of names of images, got the string {images!r}: write [{images!r}]")
    rows: list[int] = []
    for image in images:
        row = store.ids.row_of_name(image)
        if row is None:
            raise RowUnavailable(
                f"expected the name of an image in {store.path}, it has none called {image!r}: names are relative to the "
                "image root, as in the questions"
            )
        rows.append(row)
    return rows
