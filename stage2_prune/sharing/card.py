"""Write the card of a trained pruner, README.md in its folder: what a hub shows, made of what the folder records.

The head of the card is YAML, as model hubs read it; the rest is Markdown.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from configs.counted import counted
from configs.files.atomic import write_atomically
from stage2_prune.errors import NotTrained
from stage2_prune.evaluation.report import markdown
from stage2_prune.session import weights
from stage2_prune.sharing.images import IMAGES
from stage2_prune.sharing.results import interval_in_words, number_in_words, results_of

CARD = "README.md"
UNKNOWN = "unknown"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""What a hub takes for the name of a data set or of a model: OWNER/NAME. A folder in a saved config begins with a dot."""


def write_card(
    folder: Path, results: Sequence[Path] = (), licence: str | None = None, data_licence: str | None = None
) -> Path:
    """Write README.md for the trained pruner in a folder, and return its path.

    Args:
        folder: the folder that `train` wrote.
        results: run folders whose evaluations and sweeps the card tells about; default: the run that the folder lies in.
        licence: the licence of the weights, in place of the one in the training's config.
        data_licence: the licence of the data, in the same way.

    Raises:
        NotTrained: (exit 5) if the folder holds no trained pruner.
        DamagedRun: (exit 4) for a damaged file.
    """
    record = record_in(folder)
    training = record["training"]
    config = training.get("config", {})
    data = training.get("data", {})
    licences = {
        "weights": licence or config.get("train", {}).get("licence", UNKNOWN),
        "data": data_licence or data.get("licence", UNKNOWN),
    }
    parts = (
        _head(record, config, data, licences["weights"]),
        _use(record, config),
        _results(training, results_of(record["sha256"], results or (folder.absolute().parent.parent,))),
        _data(data),
        _features(record),
        _training(config, training),
        f"## Licence\n\nThe weights: {licences['weights']}. Images and questions: {licences['data']}.\n",
    )
    write_atomically(folder / CARD, "\n".join(parts))
    return folder / CARD


def record_in(folder: Path) -> dict[str, Any]:
    """Read the record of the trained pruner in a folder; NotTrained (exit 5) if there is none."""
    record = weights.read_record(folder, named=True) if folder.is_dir() else None
    if record is None:
        raise NotTrained(
            f"expected a folder with {weights.RECORD}, as `train` writes it, {folder} is none: name another"
        )
    return record


def _head(record: Mapping[str, Any], config: Mapping[str, Any], data: Mapping[str, Any], licence: str) -> str:
    base = str(config.get("model", {}).get("checkpoint", ""))
    head = {
        "license": licence,
        "library_name": "encode-once",
        "tags": ["visual-token-pruning", record["pruner"]],
        **({"base_model": base} if HUB_ID.fullmatch(base) else {}),
        **(
            {"datasets": named} if (named := [one for one in data.get("datasets", ()) if HUB_ID.fullmatch(one)]) else {}
        ),
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"


def _use(record: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    model = Path(str(config.get("model", {}).get("checkpoint", "its checkpoint"))).name
    method = {"name": record["pruner"], **record["parameters"], "weights": "FOLDER"}
    example = yaml.safe_dump({"prune": {"methods": [method]}}, sort_keys=False)
    return (
        f"# {record['pruner']} for {model}\n\nA trained pruner of visual tokens: it chooses which of an image's tokens the "
        f"language model `{model}` is given. It serves encode-once, where a config names this folder:\n\n"
        f"```yaml\n{example}```\n\nIt is refused unless features and language model are the ones below.\n"
    )


def _results(training: Mapping[str, Any], rows: Sequence[Sequence[str]]) -> str:
    header = [
        "split",
        "tokens/image",
        "positions",
        "accuracy",
        "95 % interval",
        "unpruned",
        "questions",
        "images",
        "from",
    ]
    val = training.get("data", {}).get("splits", {}).get("val", {})
    validation = [
        "val",
        str(training.get("val_keep", "-")),
        "-",
        number_in_words(training.get("val_accuracy")),
        interval_in_words(training.get("val_ci95")),
        "-",
        str(val.get("questions", training.get("val_questions", "-"))),
        str(val.get("images", "-")),
        "train",
    ]
    note = (
        "Accuracy is exact match of greedy answers, its interval a bootstrap over images. The epoch was chosen on the split "
        "`val`, whose result is therefore too good."
    )
    return f"## Results\n\n{markdown(header, [validation, *rows], left=(0, 2, 8))}\n{note}\n"


def _data(data: Mapping[str, Any]) -> str:
    if not data:
        return "## Data\n\nThe training was recorded by an earlier version, without its images.\n"
    lines = [
        f"- {split}: {counted(of['questions'], 'question')} (sha256 `{of['sha256']}`) about {counted(of['images'], 'image')} "
        f"(sha256 of their sorted digests `{of['images_sha256']}`)"
        for split, of in data["splits"].items()
    ]
    sets = ", ".join(data["datasets"])
    origin = f"Images and questions come from {sets}." if sets else "The config does not say where the data come from."
    known = "file" if data["identity"] == "content" else "name"
    return (
        f"## Data\n\n{origin} `{IMAGES}` lists every image that the training saw, by name and by the sha256 of its {known}. "
        f"No image of the test split is among them; `train` compares their digests.\n\n" + "\n".join(lines) + "\n"
    )


def _features(record: Mapping[str, Any]) -> str:
    belongs = record.get("belongs_to", {})
    fields = {"language_model": belongs.get("language_model"), **belongs.get("features", {})}
    return (
        "## What it belongs to\n\nWeights, layer, processor and geometry that must be equal, and the sha256 of the language "
        f"model's weights:\n\n```yaml\n{yaml.safe_dump(fields, sort_keys=True)}```\n"
    )


def _training(config: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    section = config.get("train", {})
    words = ["encode-once train --config config.yaml --run-dir RUN --data.images IMAGES --data.questions QUESTIONS"]
    words += ["--store.path STORE"]
    if not HUB_ID.fullmatch(str(config.get("model", {}).get("checkpoint", ""))):
        words += ["--model.checkpoint CHECKPOINT"]
    versions = ", ".join(f"{name} {number}" for name, number in training.get("versions", {}).items())
    return (
        f"## Training\n\nBudgets of {section.get('min_keep')} to {section.get('max_keep')} tokens per image, epoch "
        f"{training.get('best_epoch')} of {training.get('epochs')}, seed {section.get('seed')}, "
        f"{counted(training.get('processes', 1), 'process')}, on {training.get('identity', {}).get('device')}. `config.yaml` "
        "holds every setting; this command trains it again, on the same machine and versions to the same bits on a CPU:\n\n"
        f"```text\n{' '.join(words)}\n```\n\nVersions: {versions or UNKNOWN}.\n"
    )
