"""Record which images a training sees, by name and digest, and refuse a training that sees images of the test split."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from configs.counted import agreeing, counted
from configs.experiment import DataSection
from configs.files.atomic import write_atomically
from stage2_prune.errors import LeakedImages
from stage2_prune.session.features import Features
from stage2_prune.session.identity import of_questions
from stage2_prune.session.session import Session
from store.questions.fields import first_few
from store.questions.question import Question, Split, read_questions
from store.questions.splits import divided

IMAGES = "images.jsonl"
"""Name of the file, in the folder of a pruner, with a line for each image of its training and validation."""
Seen = Mapping[Split, Sequence[Question]]
"""The questions that a training asks, by split."""


def refuse_test_images(features: Features, data: DataSection, seen: Seen) -> None:
    """Refuse a training that sees an image of the test split, under the same name or as an equal file under another name.

    All test questions count, also those beyond `data.test`. Images of a store that identifies images by name, and test images
    that are not in the store, are compared by name alone.

    Raises LeakedImages (exit 2), which names the images and their number.
    """
    known = {image: (split, name) for split in seen for image, name in _images(features, seen[split]).items()}
    names = {name: split for split, name in known.values()}
    test = {question.image for question in divided(read_questions(data), data)["test"]}
    leaks: list[str] = []
    for name in sorted(test):
        split, twin = known.get(_digest(features, name) or "", (names.get(name), name))
        if split is not None:
            leaks.append(f"{name} in {split}" if twin == name else f"{name}, which is {twin} in {split}")
    if leaks:
        raise LeakedImages(
            f"expected a training that sees no image of the test split, {counted(len(leaks), 'image')} of {len(test)} "
            f"{agreeing(len(leaks), 'is', 'are')} in it ({first_few(leaks)}): take the questions about "
            f"{agreeing(len(leaks), 'it', 'them')} out of one of the splits in {data.questions}"
        )


def provenance(session: Session, seen: Seen) -> dict[str, Any]:
    """Describe the data of a training as JSON, with digests of its questions and images, and the versions in use."""
    features, data = session.features, session.experiment.data
    splits = {
        split: {
            **of_questions(questions),
            "images": len(images := _images(features, questions)),
            "images_sha256": hashlib.sha256("\n".join(sorted(images)).encode()).hexdigest(),
        }
        for split, questions in seen.items()
    }
    return {
        "data": {"datasets": list(data.datasets), "licence": data.licence, "splits": splits}
        | {"identity": features.store.plan.identity},
        "versions": {name: version(name) for name in ("encode-once", "torch", "transformers")},
    }


def write_images(features: Features, seen: Seen, folder: Path) -> None:
    """Write a line of JSON for each image that a training sees: its split, its digest, and its name in the questions."""
    rows = [
        {"split": split, "sha256": image, "image": name}
        for split, questions in seen.items()
        for image, name in sorted(_images(features, questions).items())
    ]
    write_atomically(folder / IMAGES, "".join(json.dumps(row) + "\n" for row in rows))


def _images(features: Features, questions: Sequence[Question]) -> dict[str, str]:
    """Return the images of questions that are in the store: the name of each by its digest."""
    digests = {name: _digest(features, name) for name in dict.fromkeys(question.image for question in questions)}
    return {image: name for name, image in digests.items() if image is not None}


def _digest(features: Features, name: str) -> str | None:
    """Return the digest by which the store knows an image; None if it has no such image."""
    row = features.store.ids.row_of_name(name)
    return None if row is None else features.store.ids.sha_of_row(row)
