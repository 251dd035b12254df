"""Let the full model answer the batches of a parity run, in a process of its own.

`python -m stage1_extract reference` is the only process that holds a vision tower; it ends before a language model is
loaded here.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from configs.counted import counted
from configs.experiment import Experiment
from configs.processes.children import module_process
from stage2_prune.errors import ReferenceFailed
from stage2_prune.find_family import open_text
from stage2_prune.parity.findings import AskedBatch
from stage2_prune.session.features import Features
from store.layout.fingerprint import differences
from store.layout.tower_call import FIELDS, call_in, call_of
from store.questions.exchange import ENVIRONMENT, Prompts, ReferenceRequest, write_order

STANDARD_ERROR = 2
"""File descriptor of this process's standard error. In a notebook, `sys.stderr` has none to pass to a child process."""


def ask_full_model(
    experiment: Experiment, features: Features, batches: Sequence[AskedBatch], folder: Path
) -> list[str]:
    """Let the reference process answer all batches, and write the answers into `folder`.

    Returns:
        Sentences about the differences, between this machine and the store's, that may change bits.

    Raises:
        ReferenceFailed: with the exit code of the reference process.
    """
    layouts = [batch.layout for batch in batches]
    prompts = [Prompts(layout.input_ids, layout.attention_mask, layout.position_ids) for layout in layouts]
    write_order(folder, _order(experiment, features, batches), prompts)
    click.echo(_price(features, batches, folder.parent), err=True)
    command, environment = module_process("stage1_extract", "reference", str(folder))
    completed = subprocess.run(command, env=environment, stdout=STANDARD_ERROR)
    if completed.returncode:
        raise ReferenceFailed(completed.returncode)
    ran_on = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    return _numeric_notes(features.store.fingerprint(features.source).numeric, ran_on)


def _order(experiment: Experiment, features: Features, batches: Sequence[AskedBatch]) -> ReferenceRequest:
    """Describe to the reference process which model answers which batches, and where the images are."""
    text, call = open_text(experiment.model), call_of(features.store.plan)
    model = experiment.model
    return ReferenceRequest(
        checkpoint=str(Path(model.checkpoint).resolve()) if Path(model.checkpoint).is_dir() else model.checkpoint,
        revision=model.revision,
        dtype=model.dtype,
        device=model.device,
        trust_remote_code=model.trust_remote_code,
        image_root=experiment.data.images.resolve(),
        image_format=experiment.data.format,
        image_column=experiment.data.image_column,
        follow_links=experiment.data.follow_links,
        by_content=features.store.plan.identity == "content",
        max_pixels=experiment.extract.max_pixels,
        max_new_tokens=experiment.eval.max_new_tokens,
        eos_token_ids=text.eos_token_ids,
        pad_token_id=text.pad_token_id,
        tower_batch=call.images if call.exact else 1,
        projector_batch=call.projector_images,
        batches=tuple(batch.asked for batch in batches),
    )


def _price(features: Features, batches: Sequence[AskedBatch], folder: Path) -> str:
    """Say how much space on disk the full model's features take while parity runs."""
    arrays = [features.store.arrays[name].row_bytes for name in ("raw", "projected") if name in features.store.arrays]
    images = sum(len(batch.asked.images) for batch in batches)
    questions = sum(len(batch.questions) for batch in batches)
    return (
        f"parity: {counted(questions, 'question')} about {counted(images, 'image')}; the full model's features take "
        f"{images * sum(arrays) / 1e9:.2f} GB in {folder} until it ends"
    )


def _numeric_notes(stored: Mapping[str, Any], ran_on: Mapping[str, Any]) -> list[str]:
    """Explain why bits may differ although everything means the same: other versions, another device, another batch."""
    ours, theirs = ({k: v for k, v in numeric.items() if k not in FIELDS} for numeric in (stored, ran_on))
    notes = [
        f"the store was made elsewhere ({difference.field}: {difference.expected!r}, now {difference.found!r})"
        for difference in differences(ours, theirs)
        if difference.field != "raw"
    ]
    notes += [
        f"`projected` was derived from features made elsewhere ({k}: {v!r})" for k, v in ours.get("raw", {}).items()
    ]
    if not (call := call_in(stored)).exact:
        notes.append(
            f"the store was encoded {call.images} images at a time by an earlier version, on a device where that changes bits: "
            "parity may be only close; extract with --overwrite for equal bits"
        )
    return notes
