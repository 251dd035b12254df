"""Run the loop of a training: steps, validations, and the files that are written after each."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from configs.counted import counted
from configs.files import portable
from configs.progress import PROGRESS, ProgressBar, say
from stage2_prune.errors import MemoryTooSmall, PrunerMisused
from stage2_prune.evaluation.intervals import accuracy_interval
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.session import weights
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.session import Session
from stage2_prune.sharing.images import provenance
from stage2_prune.training import curves
from stage2_prune.training.forward.layered import require_budgets
from stage2_prune.training.gradients import Aim, Guidance, accumulate_gradients, joined_loss
from stage2_prune.training.packed import Lesson
from stage2_prune.training.ranks import Ranks
from stage2_prune.training.schedule import epoch_batches, learning_rate, step_budget, step_seed
from stage2_prune.training.state import (
    CURVES,
    LOG,
    STATE,
    Log,
    Position,
    SavedState,
    load_state,
    read_state,
    save_state,
)
from stage2_prune.training.step import checkpointing, frozen, images_at_once, make_lesson, seeded
from stage2_prune.training.validation import right_of
from store.questions.question import Question

SAVE_SECONDS = 60.0
"""Seconds between two saved states inside an epoch; the moments of saving change no result."""
MAX_GRADIENT_NORM = 1.0
LESS_MEMORY = "go on with --train.gradient-checkpointing true, or free memory of the device"
FEWER_IMAGES = "; or begin anew with a smaller --train.images-at-once and --overwrite"
ALL_WRONG = (
    "note: no validation answer is right before training: if that stays so, compare the answers in data.questions with what the "
    "model writes (`eval` keeps its predictions), and say in data.post_prompt how short an answer should be"
)


class Trainer:
    """One training, which runs from its first step or from where it stopped."""

    def __init__(
        self,
        session: Session,
        label: str,
        pruner: TrainedPruner,
        train: Sequence[Question],
        val: Sequence[Question],
        identity: Mapping[str, Any],
        guidance: Guidance,
        ranks: Ranks,
    ) -> None:
        self.ranks, self.guidance = ranks, guidance
        self.session, self.label, self.section = session, label, session.experiment.train
        self.train, self.val, self.identity = train, val, identity
        self.folder = weights.folder(session.experiment.run_dir, label, pruner)
        self.low, self.high = self._budgets()
        patches, depth = session.features.patches, session.language.depth
        require_budgets(pruner, self.section, patches, depth, session.experiment.prune.match)
        self.spec = session.features.spec(pruner, session.language.width)
        fresh = pruner.fresh(self.spec, self.section.seed)
        self.pruner = fresh.with_module(fresh.module.to(session.features.device))
        self.optimiser = torch.optim.AdamW(
            self.pruner.module.parameters(),
            lr=self.section.learning_rate,
            weight_decay=self.section.weight_decay,
        )
        language = session.language
        self.scaler = torch.amp.GradScaler(language.device.type, enabled=language.dtype == torch.float16)
        self.at_once = images_at_once(self.section, language.device)
        self.position = Position()
        self.best: dict[str, torch.Tensor] = {}
        if (state := read_state(self.folder)) is not None:
            self._resume(state)
        self.log = Log(self.folder / LOG, self.position.log_lines) if ranks.first else None
        self.saved_at = time.monotonic()

    def _resume(self, state: SavedState) -> None:
        self.position = state.position
        self.best = load_state(state, self.pruner.module, self.optimiser)
        if self.position.scaler:
            self.scaler.load_state_dict(self.position.scaler)
        say(f"resuming {self.label} in epoch {self.position.epoch} after step {self.position.step}")

    def run(self) -> dict[str, Any]:
        """Train what is left, write the best module, and return what `pruner.json` records about the training."""
        if self.position.epoch == 0:
            self._validate()
        while self.position.epoch <= self.section.epochs:
            self._train_epoch(self.position.epoch)
            self._validate()
        return self._finish()

    def _train_epoch(self, epoch: int) -> None:
        section = self.section
        order = epoch_batches([q.image for q in self.train], section.batch_size, section.seed, epoch)
        batches = [[self.train[index] for index in batch] for batch in order]
        steps = range(self.position.step, len(batches))
        name = f"epoch {epoch}/{section.epochs}"
        self.pruner.module.train()
        with (
            frozen(self.session.language.model),
            checkpointing(self.session.language.model, section.gradient_checkpointing),
            ProgressBar(
                what=name,
                total=len(batches),
                initial=steps.start,
                unit="steps",
                file=self.folder / PROGRESS if self.ranks.first else None,
            ) as bar,
        ):
            for step, batch in zip(steps, self.session.features.batches(batches[steps.start :]), strict=True):
                loss = self._step(batch, epoch, step, len(batches))
                bar.note(loss=f"{loss:.3f}")
                bar.update()
                self.position.step = step + 1
                if time.monotonic() - self.saved_at > SAVE_SECONDS:
                    self._save()

    def _step(self, batch: FeatureBatch, epoch: int, step: int, steps: int) -> float:
        """Take one optimiser step and return its loss; all randomness is a function of (seed, epoch, step)."""
        section, language = self.section, self.session.language
        keep = step_budget(section.seed, epoch, step, self.low, self.high)
        done, planned = (epoch - 1) * steps + step, section.epochs * steps
        aim = Aim(keep, done / planned, section.kl_weight)
        rate = learning_rate(done, planned, section.learning_rate)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        post_prompt = self.session.experiment.data.post_prompt
        lessons = [make_lesson(language, question, post_prompt) for question in batch.questions]
        seed = step_seed(section.seed, epoch, step) + self.ranks.rank  # ranks draw for different images
        while (losses := self._gradients(batch, lessons, aim, seed)) is None:
            self._take_fewer(batch)
        loss = joined_loss(losses, self.pruner, aim, batch, self.ranks)
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.pruner.module.parameters(), MAX_GRADIENT_NORM)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        row = {"epoch": epoch, "step": step + 1, "keep": keep, "learning_rate": rate, "loss": loss.answer}
        if self.log is not None:
            self.log.append(
                event="step", **row, **({} if loss.divergence is None else {"kl": loss.divergence}), **loss.others
            )
        return loss.answer

    def _gradients(self, batch: FeatureBatch, lessons: Sequence[Lesson], aim: Aim, seed: int) -> torch.Tensor | None:
        """Compute this rank's gradients and losses of a step; None if the device has too little memory for so many images."""
        session = self.session
        self.optimiser.zero_grad()
        try:
            with seeded(seed, session.language.device):
                return accumulate_gradients(
                    session.reader, self.pruner, batch, lessons, aim, self.scaler, self.guidance, self.at_once, self.ranks
                )  # fmt: skip
        except torch.OutOfMemoryError:
            return None

    def _take_fewer(self, batch: FeatureBatch) -> None:
        """Halve the images per forward pass of `train.images_at_once: auto`; raise MemoryTooSmall (exit 7) if it cannot be."""
        tried = min(self.at_once, len(self.ranks.share(batch.tokens.image_ids)))
        if tried < 2 or self.section.images_at_once != "auto":
            raise MemoryTooSmall(
                f"expected memory for a training step with {counted(tried, 'image')} at once, there is less: "
                f"{LESS_MEMORY}{FEWER_IMAGES if tried > 1 else ''}"
            )
        self.at_once = -(-tried // 2)
        torch.cuda.empty_cache()
        say(
            f"train.images_at_once auto: {counted(self.at_once, 'image')} at once, because memory is too small for more"
        )

    def _validate(self) -> None:
        """Close an epoch: measure its accuracy, keep its module if no epoch was better, save the state."""
        epoch, keep = self.position.epoch, self.section.val_keep
        self.pruner.module.eval()
        right = right_of(self.pruner, self.session, self.val, self.ranks)
        accuracy = float(right.mean())
        self.position.accuracies.append(accuracy)
        self.position.step = 0
        chosen = self.position.best_epoch == epoch
        if chosen:
            self.best = {name: tensor.clone() for name, tensor in self.pruner.module.state_dict().items()}
            images, resampling = [question.image for question in self.val], self.session.experiment.eval
            self.position.best_ci95 = accuracy_interval(right, images, resampling.bootstrap, resampling.seed)
        if self.log is None:
            return
        self.log.append(event="validation", epoch=epoch, keep=keep, accuracy=accuracy, n=len(self.val))
        self._save()
        best = ", the best so far" if chosen else ""
        say(f"epoch {epoch}/{self.section.epochs}: validation accuracy {accuracy:.3f} at {keep} tokens{best}")
        if epoch == 0 and accuracy == 0:
            say(ALL_WRONG)
        title = f"{self.session.experiment.name}: {self.label}"
        curves.draw(self.log.rows, title, self.position.best_epoch, self.folder / CURVES)

    def _save(self) -> None:
        if self.log is None:
            return
        self.position.log_lines = len(self.log.rows)
        self.position.scaler = self.scaler.state_dict()
        self.log.sync()
        save_state(self.folder, self.position, self.identity, self.pruner.module, self.optimiser, self.best)
        self.saved_at = time.monotonic()

    def _finish(self) -> dict[str, Any]:
        """Write the best module, then delete the state."""
        self.pruner.module.load_state_dict(self.best)
        record = {
            "epochs": self.section.epochs,
            "best_epoch": self.position.best_epoch,
            "val_keep": self.section.val_keep,
            "val_accuracy": self.position.accuracies[self.position.best_epoch],
            "val_ci95": self.position.best_ci95,
            "val_accuracies": self.position.accuracies,
            "processes": self.ranks.size,
            "train_questions": len(self.train),
            "val_questions": len(self.val),
            "identity": dict(self.identity),
            **provenance(self.session, {"train": self.train, "val": self.val}),
            "config": portable.saved(self.session.experiment, self.folder),
        }
        if not self.ranks.first:
            return record
        belongs_to = weights.belongings(self.session.features, self.pruner, self.session.language_digest)
        weights.save(self.pruner, self.spec, self.folder, belongs_to, record)
        (self.folder / STATE).unlink()
        say(f"{self.label} of epoch {self.position.best_epoch} is in {self.folder}")
        return record

    def _budgets(self) -> tuple[int, int]:
        """Return the smallest and the largest training budget; raise PrunerMisused (exit 2) if an image has fewer tokens."""
        patches, section = self.session.features.patches, self.section
        if section.min_keep > section.max_keep or max(section.min_keep, section.val_keep) > patches:
            raise PrunerMisused(
                f"expected train.min_keep <= max_keep, and min_keep and val_keep at most {patches}, an image's "
                f"visual tokens; got {section.min_keep}, {section.max_keep}, {section.val_keep}: change these"
            )
        return section.min_keep, min(section.max_keep, patches)
