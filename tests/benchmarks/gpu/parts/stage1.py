"""Images per second through the tower, by images per call; and whether an image's bits depend on its company."""

import torch
from torch import Tensor

from stage1_extract.encoding.encode import encode
from stage1_extract.encoding.family import Encoder, Pixels
from stage1_extract.sources.images import decode_image
from stage1_extract.work.open_encoder import OpenEncoder
from tests.benchmarks.gpu import before
from tests.benchmarks.gpu.making import photo
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows


@torch.no_grad()
def measure(place: Place, rows: Rows) -> None:
    """Measure every number of images per call."""
    for images in place.scale.tower_batches:
        opened = open_encoder(place, images)
        pictures = prepared(place, opened, 2 * images)
        _rates(place, rows, opened, pictures[:images], images)
        if images > 1:
            rows.add("stage1", f"an image's bits, {images} a call", _company(opened.encoder, pictures, images))
        del opened
        place.release()


def open_encoder(place: Place, images: int) -> OpenEncoder:
    """Open the vision half for calls of so many images."""
    experiment = place.experiment(extract={"tower_batch": images})
    return OpenEncoder.load(experiment, str(place.device))


def prepared(place: Place, opened: OpenEncoder, images: int) -> list[Pixels]:
    """Decode and preprocess photographs."""
    names = [photo(number % place.scale.photos) for number in range(images)]
    read = {name: (place.photos / name).read_bytes() for name in dict.fromkeys(names)}
    pixels = {name: opened.encoder.preprocess(decode_image(data, name, 10**8)) for name, data in read.items()}
    return [pixels[name] for name in names]


def on_device(place: Place, pictures: list[Pixels]) -> Tensor:
    """Return pixel values as the tower takes them."""
    together = torch.cat([pixels["pixel_values"] for pixels in pictures])
    return together.to(place.device, place.scale.torch_dtype)


def _rates(place: Place, rows: Rows, opened: OpenEncoder, pictures: list[Pixels], images: int) -> None:
    half, pixels = opened.encoder.half, on_device(place, pictures)

    def bare() -> Tensor:
        return half.projector(half.selection.of(half.tower(pixels, output_hidden_states=True).hidden_states))

    rounds = place.scale.rounds
    for name, run in {
        before.bare(images): bare,
        before.encoded(images): lambda: encode(half, pixels),
        before.launched(images): lambda: opened.launch(pictures),
        before.worker_gets(images): lambda: opened.encode(pictures),
    }.items():
        rows.add("stage1", name, images / place.clock.median(run, rounds), "images/s")
    if opened.batch != images:
        rows.say(
            "stage1", f"asked for {images} images a call, `OpenEncoder` makes calls of {opened.batch} on this device"
        )


def _company(encoder: Encoder, pictures: list[Pixels], images: int) -> str:
    """Say whether images have the same bits at other places and beside other images, at one number of images per call."""
    first, others = pictures[:images], pictures[images:]
    alone = encoder.encode(first)
    turned = encoder.encode([*first[1:], first[0]])
    beside = encoder.encode([*first[: images // 2], *others[images // 2 :]])
    differing = set()
    for name, array in alone.items():
        moved = turned[name].roll(1, 0)
        differing |= {f"{name}, place"} if not torch.equal(array, moved) else set()
        same = torch.equal(array[: images // 2], beside[name][: images // 2])
        differing |= {f"{name}, neighbours"} if not same else set()
    return "the same in any company" if not differing else f"differ ({'; '.join(sorted(differing))})"
