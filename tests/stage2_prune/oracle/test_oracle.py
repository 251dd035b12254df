"""The command `oracle`: what it searches, what it answers, and that a killed search ends with the same bytes."""

import csv
import json

import pytest
import torch
import yaml
from click.testing import CliRunner

from configs.errors import ConfigError
from configs.experiment import OracleSection
from stage2_prune.cli import group
from stage2_prune.compare import run as compare
from stage2_prune.compare.gap import TARGETS, BesideOracle, OnOracleQuestions
from stage2_prune.errors import DamagedRun, OtherRun, PrunerMisused
from stage2_prune.evaluation import evaluate
from stage2_prune.language.assemble import assemble
from stage2_prune.oracle import run as oracle
from stage2_prune.oracle.scoring import AnswerScorer
from stage2_prune.oracle.search import Search
from stage2_prune.session.choose import choose
from stage2_prune.session.session import open_session
from stage2_prune.sweep import report as sweep_report
from stage2_prune.sweep import rows as sweep_rows
from stage2_prune.sweep import run as sweep
from stage2_prune.training.packed import Lesson
from stage2_prune.training.step import make_lesson

SECTION = {"questions": 4, "methods": ["cls_attention", "feature_norm"], "pool": 12, "largest": 8}


@pytest.fixture
def searched(tiny):
    experiment = tiny(oracle=SECTION)
    return experiment, oracle.run(experiment)


def found_in(experiment):
    lines = (experiment.run_dir / "oracle" / "search.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_score_is_the_log_probability_of_the_answer_to_the_whole_prompt(tiny):
    session = open_session(tiny(), ())
    question = choose(session.experiment, "test")[0]
    lesson = make_lesson(session.language, question, "")
    for batch in session.features.batches([[question]]):
        sets = torch.tensor([[0, 3, 7], [1, 2, 8]])
        scores = AnswerScorer(session.language, lesson, batch.projected[0])(sets)
        joined = Lesson(lesson.prompt, lesson.answer[:-1])
        prompt = type(lesson.prompt)(joined.prompt.before, (*joined.prompt.after, *joined.answer))
        for kept, score in zip(sets, scores, strict=True):
            whole = assemble(
                session.language,
                [prompt],
                batch.projected[:, kept],
                kept[None],
                batch.projected.shape[1],
                "original",
            )
            with torch.no_grad():
                logits = session.language.model(
                    inputs_embeds=whole.inputs_embeds,
                    attention_mask=whole.attention_mask,
                    position_ids=whole.position_ids,
                    use_cache=False,
                ).logits[0, -len(lesson.answer) :]
            expected = logits.log_softmax(-1)[range(len(lesson.answer)), list(lesson.answer)].sum()
            assert score == pytest.approx(float(expected), abs=1e-4)


def test_what_was_found_is_answered_as_any_method_is_and_budgets_are_nested(searched):
    experiment, summary = searched
    assert [(row["pruner"], row["keep"], row["n"]) for row in summary["results"]] == [
        (target, keep, 4) for target in TARGETS for keep in (3, 8)
    ]
    assert all(row["tokens_per_layer_mean"] == row["keep"] for row in summary["results"])
    for line in found_in(experiment):
        assert len(line["oracle_answer"]) == len(set(line["oracle_self"])) == 8
    text = oracle.table(experiment, summary)
    assert text.count("lower bound of the ceiling") > 4


def test_a_search_raises_the_log_probability_of_its_answer_over_random_patches(searched):
    experiment, _ = searched
    session = open_session(experiment, ())
    by_id = {question.question_id: question for question in choose(experiment, "test")}
    gains = []
    for line in found_in(experiment):
        question = by_id[line["question_id"]]
        for batch in session.features.batches([[question]]):
            score = AnswerScorer(session.language, make_lesson(session.language, question, ""), batch.projected[0])
            one = score(torch.arange(batch.projected.shape[1])[:, None])
            gains.append(one[line["oracle_answer"][0]] >= one.median())
    assert all(gains)


def test_a_killed_search_ends_with_the_same_bytes(searched, tiny, tmp_path, monkeypatch):
    whole, _ = searched
    again = tiny(oracle=SECTION, run_dir=str(tmp_path / "killed"))
    real, calls = Search._found, []

    def dies(self, *arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Search, "_found", dies)
    with pytest.raises(KeyboardInterrupt):
        oracle.run(again)
    monkeypatch.undo()
    log = again.run_dir / "oracle" / "search.jsonl"
    begun = log.read_bytes()
    assert 0 < begun.count(b"\n") < 4
    log.write_bytes(begun + b'{"question_id": "torn')
    oracle.run(again)
    for name in ("search.jsonl", *(f"eval/predictions/{target}-3-original.jsonl" for target in TARGETS)):
        assert (again.run_dir / "oracle" / name).read_bytes() == (whole.run_dir / "oracle" / name).read_bytes()


def test_a_search_of_other_settings_and_a_changed_line_are_refused(searched, tiny):
    experiment, _ = searched
    with pytest.raises(OtherRun, match=r"oracle.seed 0, now 1"):
        oracle.run(tiny(oracle={**SECTION, "seed": 1}))
    log = experiment.run_dir / "oracle" / "search.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"oracle_self": [', b'"oracle_self": [1', 1))
    with pytest.raises(DamagedRun, match="line 1 of"):
        oracle.run(experiment)
    oracle.run(experiment, overwrite=True)


def test_a_search_needs_a_budget_methods_that_select_and_a_pool_that_fills_it(tiny):
    with pytest.raises(PrunerMisused, match=r"expected a budget of at most 2 tokens"):
        oracle.run(tiny(oracle={**SECTION, "largest": 2}))
    for name in ("fastv", "learned_scorer", "keep_all"):
        with pytest.raises(PrunerMisused, match=f"oracle.methods: .*{name} is none"):
            oracle.run(tiny(oracle={**SECTION, "methods": [name]}))
    with pytest.raises(ValueError, match="expected a pool of at least `largest` patches"):
        OracleSection(pool=10, largest=11)


def test_eval_and_sweep_results_are_placed_between_random_and_the_search(searched, tiny, tmp_path):
    experiment = searched[0].model_copy(
        update={"sweep": searched[0].sweep.model_copy(update={"methods": ("configured"), "workers": 1, "rounds": 1})}
    )
    evaluate.run(experiment)
    text = oracle.table(experiment, json.loads((experiment.run_dir / "oracle" / "summary.json").read_text()))
    assert "cls_attention, compact" in text and "oracle_self, original (lower bound of the ceiling)" in text
    names = compare.run([experiment.run_dir, experiment.run_dir / "oracle"], only=["*-8-*"], factors=["positions"])[
        "results"
    ]
    assert {"random-8-original", "oracle_self-8-original"} <= {row["result"] for row in names}
    summary = sweep.run(experiment)
    rows = list(csv.DictReader((experiment.run_dir / "sweep" / "results.csv").read_text().splitlines()))
    ceiling = [row for row in rows if row["reason"] == "lower bound of the ceiling"]
    assert {(row["method"], row["budget"], row["n"]) for row in ceiling} == {
        (target, keep, "4") for target in TARGETS for keep in ("3", "8")
    }
    assert {row["gap_closed"] for row in ceiling} == {""}
    unpruned = next(row for row in summary["results"] if row["label"] == "keep_all")
    random = next(row for row in summary["results"] if row["label"] == "random" and row["keep"] == 8)
    measured = BesideOracle(
        4,
        3,
        {
            "random-8-original": OnOracleQuestions(0.5, None, 0.25, (-0.5, 1.5)),
            "oracle_self-8-original": OnOracleQuestions(0.75, [0.5, 1.0], None, None),
        },
        {"random-8-original": 8, "oracle_self-8-original": 8},
        ("x is not compared",),
    )
    made = sweep_rows.with_gaps(summary, measured)
    assert (random["gap_closed"], random["gap_low"], random["gap_high"], random["gap_n"]) == (0.25, -0.5, 1.5, 4)
    assert unpruned["gap_closed"] is None and ",0.25,-0.5,1.5,4\n" in sweep_rows.csv_text(made)
    text = sweep_report.table(made)
    assert "oracle_self (lower bound of the ceiling, 4 questions)" in text and "0.750 [0.500, 1.000]" in text
    assert "0.25 [-0.50, 1.50]" in text and "- x is not compared." in text


def test_without_a_search_the_columns_of_a_sweep_are_empty(tiny):
    experiment = tiny(sweep={"methods": ["random", "cls_attention"], "workers": 1, "rounds": 1})
    sweep.run(experiment)
    rows = list(csv.DictReader((experiment.run_dir / "sweep" / "results.csv").read_text().splitlines()))
    assert rows and all(row["gap_closed"] == row["gap_low"] == row["gap_high"] == "" for row in rows)


def test_the_command_prints_the_table_and_says_the_price_first(tiny, tmp_path):
    experiment = tiny(oracle=SECTION)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(experiment.model_dump(mode="json", exclude_unset=True)))
    done = CliRunner().invoke(group, ["oracle", "--config", str(path), "--oracle.questions", "2"])
    assert done.exit_code == 0, done.output
    assert "oracle: 2 questions to search" in done.stderr and "gap closed" in done.stdout
    refused = CliRunner().invoke(group, ["oracle", "--config", str(path), "--oracle.pool", "3"])
    assert isinstance(refused.exception, ConfigError) and "oracle" in str(refused.exception)
