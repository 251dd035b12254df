"""Evaluation in bulk: what a method chose of an image serves all questions about it, and questions share a prefix or a batch."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from stage2_prune.errors import MemoryTooSmall, OtherRun
from stage2_prune.evaluation import answering, evaluate
from stage2_prune.evaluation.batching import WINDOW_BATCHES, Batching
from stage2_prune.evaluation.fit_batch import LARGEST, largest, with_batch_size
from stage2_prune.evaluation.predictions import PredictionFile
from stage2_prune.parity.run import _batches
from stage2_prune.pruners.cls_attention import ClsAttention
from stage2_prune.pruners.uniform_grid import UniformGrid
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import Merge, Pruned
from stage2_prune.session import selections
from stage2_prune.session.batch_size import AUTO, batch_size, settled, write_size
from stage2_prune.session.prune_batch import prune_batch
from stage2_prune.session.selections import Pruning, Selections
from stage2_prune.session.session import open_session
from store.questions.question import Question
from tests.stage2_prune.test_evaluate import answers, asked, files
from tests.stage2_prune.test_predictions import prediction
from tests.stage2_prune.test_prune_batch import AboveTheMean, WordReader, a_batch


def forgetful(self, pruner, batch, keep, reader, met):
    """As `Selections.prune`, remembering nothing."""
    batch, pruned = prune_batch(pruner, batch, keep, reader)
    return Pruning(batch, pruned, 1.0, len(batch.tokens.image_ids))


def test_predictions_are_the_same_bytes_whether_choices_are_remembered_or_not(tiny, tmp_path, monkeypatch):
    methods = [{"name": name} for name in ("cls_attention", "div_prune", "random", "uniform_grid", "average_pooling")]
    changes = {"prune__methods": methods, "eval__batch_size": 3, "prune__budgets": [8, 4]}
    remembering = tiny(**changes, run_dir=str(tmp_path / "remembering"))
    evaluate.run(remembering)
    monkeypatch.setattr(Selections, "prune", forgetful)
    anew = tiny(**changes, run_dir=str(tmp_path / "anew"))
    evaluate.run(anew)
    assert files(remembering) == files(anew)


def test_an_image_is_ranked_once_for_all_questions_and_budgets_of_a_nested_method(tiny, monkeypatch):
    ranked, ranking = Counter[str](), ClsAttention.ranking

    def counted(self, tokens, keep):
        ranked.update(tokens.image_ids)
        assert keep == 8
        return ranking(self, tokens, keep)

    monkeypatch.setattr(ClsAttention, "ranking", counted)
    experiment = tiny(prune__methods=[{"name": "cls_attention"}], prune__budgets=[3, 8, 5], eval__batch_size=2)
    summary = evaluate.run(experiment)
    images = {question.image for question in asked(experiment)}
    assert set(ranked.values()) == {1} and len(ranked) == len(images) < len(asked(experiment))
    assert (
        len({row["selector_ms_per_image"] for row in summary["results"]}) == 3
    )  # each has its share of the same ranking
    assert all(row["selector_ms_per_image"] > 0 for row in summary["results"])


def test_an_image_is_pruned_once_per_budget_by_a_method_that_is_not_nested(tiny, monkeypatch):
    pruned, select = Counter[tuple[str, int]](), UniformGrid.select

    def counted(self, tokens, keep):
        pruned.update((image, keep) for image in tokens.image_ids)
        return select(self, tokens, keep)

    monkeypatch.setattr(UniformGrid, "select", counted)
    experiment = tiny(prune__methods=[{"name": "uniform_grid"}], prune__budgets=[3, 8], eval__batch_size=2)
    evaluate.run(experiment)
    assert set(pruned.values()) == {1}
    assert len(pruned) == 2 * len({question.image for question in asked(experiment)})


@dataclass(frozen=True)
class HalfSums(Pruner):
    """Sums of halves of the patches."""

    needs: ClassVar = frozenset({"raw"})

    def prune(self, tokens, keep):
        weights = torch.rand(len(tokens.image_ids), keep, 12, generator=torch.Generator().manual_seed(0))
        return Pruned(merge=Merge(weights[:1].expand(len(tokens.image_ids), -1, -1), "projected"))


@pytest.mark.parametrize("limit", [0, 200, 10**9])
@pytest.mark.parametrize(("pruner", "keep"), [(AboveTheMean(), 12), (HalfSums(), 5)])
def test_mixed_batches_get_what_is_known_and_what_is_chosen_now_however_little_is_remembered(
    monkeypatch, pruner, keep, limit
):
    monkeypatch.setattr(selections, "LIMIT", limit)
    remembered, reader, batch = Selections([(pruner, keep)]), WordReader(), a_batch()
    for images in ([0, 1], [1, 2], [2, 0], [0, 1, 2], [2]):
        part = replace(batch, tokens=batch.tokens.at(images), projected=batch.projected[images])
        made = remembered.prune(pruner, part, keep, reader, set()).pruned
        _, expected = prune_batch(pruner, part, keep, reader)
        assert made.kept >= expected.kept
        for image in range(len(images)):
            count = expected.kept if expected.counts is None else int(expected.counts[image])
            for given, anew in ((made.index, expected.index), (made.tokens, expected.tokens)):
                assert (given is None) == (anew is None)
                assert given is None or anew is None or torch.equal(given[image, :count], anew[image, :count])
        assert made.counts is None or expected.counts is None or torch.equal(made.counts, expected.counts)


def test_shared_prefixes_give_the_same_answers_marked_as_not_exact_and_never_mixed_with_others(tiny, tmp_path):
    methods = [{"name": name} for name in ("keep_all", "keep_none", "cls_attention", "random", "fastv")]
    plain, shared = (
        tiny(run_dir=str(tmp_path / str(share)), prune__methods=methods, prune__budgets=[12], eval__share_prefix=share)
        for share in (False, True)
    )
    exact, close = evaluate.run(plain), evaluate.run(shared)
    assert exact["exact"] and not close["exact"]
    assert {row["pruner"]: row["exact"] for row in close["results"]} == {
        "keep_all": False, "keep_none": True, "cls_attention": False, "random": False, "fastv": True
    }  # fmt: skip
    without_scores = [
        {name: [{**json.loads(line), "choices": None} for line in text.splitlines()] for name, text in run.items()}
        for run in (answers(plain), answers(shared))
    ]
    assert without_scores[0] == without_scores[1]
    with pytest.raises(OtherRun, match=r"eval\.share_prefix"):
        evaluate.run(tiny(run_dir=str(tmp_path / "False"), prune__methods=methods, eval__share_prefix=True))


def questions(lengths, image="i.png"):
    return [Question(question_id=f"q{n}", image=image, question="x" * length) for n, length in enumerate(lengths)]


def ids(batches):
    return [[question.question_id for question in batch] for batch in batches]


def test_questions_of_like_length_stand_together_within_windows_that_later_questions_do_not_change():
    batching, window = Batching(2, by_length=True), 2 * WINDOW_BATCHES
    lengths = [7 * n % 50 for n in range(2 * window + 5)]
    batches = batching.cut(questions(lengths))
    for number in range(2):
        inside = [int(name[1:]) for batch in ids(batches[number * 32 : (number + 1) * 32]) for name in batch]
        assert sorted(inside) == list(range(number * window, (number + 1) * window))
        assert [lengths[n] for n in inside] == sorted(lengths[n] for n in inside)
    fewer = batching.cut(questions(lengths[: window + 3]))
    assert ids(fewer)[:WINDOW_BATCHES] == ids(batches)[:WINDOW_BATCHES]


def test_a_split_that_has_grown_is_asked_again_from_its_last_window_on(tmp_path, monkeypatch):
    monkeypatch.setattr("stage2_prune.evaluation.batching.WINDOW_BATCHES", 2)
    path, batching = tmp_path / "cell.jsonl", Batching(2, by_length=True)

    def opened(count):
        numbered = [
            Question(question_id=f"q{n}", image="i.png", question=f"number {n}?", answers=("röt", "red"))
            for n in range(count)
        ]
        return PredictionFile(path, batching, numbered, {})

    def answer(file):
        for batch in file.left:
            file.append([prediction(int(question.question_id[1:])) for question in reversed(batch)])
        file.finish()

    answer(first := opened(6))
    assert ids(first.left) == [["q0", "q1"], ["q2", "q3"], ["q4", "q5"]]
    assert [row.question_id for row in opened(6).rows] == [f"q{n}" for n in range(6)] and opened(6).finished
    grown = opened(7)
    assert ids(grown.left) == [["q4", "q5"], ["q6"]]
    answer(grown)
    assert opened(7).finished and len(path.read_text().splitlines()) == 7


def test_a_batch_size_is_halved_until_the_memory_carries_it():
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 20:
            raise torch.OutOfMemoryError

    assert largest(attempt, LARGEST) == 16 and tried == [128, 64, 32, 16]
    with pytest.raises(MemoryTooSmall):
        largest(lambda size: attempt(100), 4)


def test_a_batch_that_the_memory_does_not_carry_ends_with_the_way_out_and_keeps_the_answers(tiny, monkeypatch):
    experiment, calls, ask = tiny(prune__methods=[{"name": "keep_none"}]), [], answering.ask

    def exhausted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return ask(*arguments)

    monkeypatch.setattr(answering, "ask", exhausted)
    with pytest.raises(MemoryTooSmall, match=r"for 4 questions at once .*--eval\.batch-size 2 --overwrite"):
        evaluate.run(experiment)
    (begun,) = (experiment.run_dir / "eval" / "predictions").iterdir()
    assert len(begun.read_text().splitlines()) == 4


def test_auto_is_a_fixed_number_on_a_cpu_and_otherwise_what_was_found_for_the_run(tiny):
    experiment = tiny(eval__batch_size="auto", prune__methods=[{"name": "keep_none"}])
    assert batch_size(experiment) == AUTO
    session = with_batch_size(open_session(experiment, frozenset()), asked(experiment))
    assert session.experiment.eval.batch_size == AUTO == session.conditions["eval.batch_size"]
    assert evaluate.run(experiment)["config"]["eval"]["batch_size"] == AUTO
    assert not (experiment.run_dir / "batch_size.json").exists()
    write_size(experiment.run_dir, 3)
    assert batch_size(settled(experiment)) == 3 and batch_size(experiment) == AUTO
    assert [len(batch.questions) for batch in _batches(experiment, session.features, asked(experiment))] == [3, 3]
    with pytest.raises(OtherRun, match=r"eval\.batch_size 20, now 3"):
        evaluate.run(experiment)
