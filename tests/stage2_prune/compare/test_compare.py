"""Comparing saved predictions: the right numbers, and a refusal where they would mislead."""

import json
import math
from typing import get_args

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.cli import run_to_exit_code
from stage2_prune import cli
from stage2_prune.compare import report as compare_report
from stage2_prune.compare import run as compare
from stage2_prune.compare.conditions import Factor
from stage2_prune.compare.significance import holm, mcnemar, sign_flips
from stage2_prune.errors import DamagedRun, NotComparable, ResultsMissing
from stage2_prune.evaluation import evaluate
from stage2_prune.evaluation.intervals import interval
from stage2_prune.session.ask import Prediction

MADE = {
    "language_model": "m",
    "features": {"projected": "p"},
    "template": "t",
    "data.post_prompt": "",
    "positions": "original",
    "model.dtype": "float32",
    "eval.max_new_tokens": 4,
    "torch": "2",
}


def rows(right, per_image=2, choices=None):
    return [
        Prediction(
            f"q{number}", f"{number // per_image}.png", None, ("yes",), "yes" if one else "no", bool(one), None, None,
            f"number {number} ?", 3, choices,
        )
        for number, one in enumerate(right)
    ]  # fmt: skip


def write(run, name, predictions, **made):
    """A cell of a run folder, as eval leaves it."""
    folder = run / "eval" / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(vars(row)) + "\n" for row in predictions))
    cells = run / "eval" / "cells.json"
    recorded = json.loads(cells.read_text()) if cells.is_file() else {}
    cells.write_text(json.dumps(recorded | {name: {"identity": MADE | {"seed": None} | made}}))
    return path


def by_name(found):
    return {row["result"]: row for row in found["results"]}


def test_a_pair_has_its_difference_interval_flips_and_p_as_computed_apart(tmp_path):
    generator = np.random.default_rng(0)
    a, b = generator.random(80) < 0.9, generator.random(80) < 0.6
    write(tmp_path, "first-8-original", rows(a))
    write(tmp_path, "second-8-original", rows(b))
    found = compare.run([tmp_path], resamples=200, seed=3)
    (pair,) = found["pairs"]
    lost = sum(x and not y for x, y in zip(a, b, strict=True))
    won = sum(y and not x for x, y in zip(a, b, strict=True))
    assert (pair["a"], pair["b"]) == ("first-8-original", "second-8-original")
    assert (pair["right_to_wrong"], pair["wrong_to_right"]) == (lost, won)
    assert pair["difference"] == pytest.approx((won - lost) / 80)
    assert pair["ci95"] == list(interval(b.astype(float) - a, np.arange(80) // 2, 200, 3))
    assert pair["mcnemar_p"] == pair["holm_p"] == mcnemar(lost, won)
    assert pair["by_image_p"] == sign_flips((b.astype(int) - a).reshape(40, 2).sum(1))
    assert (found["n_questions"], found["n_images"]) == (80, 40)


def test_holms_correction_runs_over_all_pairs_or_those_against_one(tmp_path):
    generator = np.random.default_rng(0)
    for name, level in {"a": 0.9, "b": 0.7, "c": 0.5, "d": 0.5}.items():
        write(tmp_path, f"{name}-8-original", rows(generator.random(60) < level))
    every = compare.run([tmp_path], resamples=20)["pairs"]
    assert len(every) == 6
    assert [pair["holm_p"] for pair in every] == holm([pair["mcnemar_p"] for pair in every])
    assert [pair["by_image_holm_p"] for pair in every] == holm([pair["by_image_p"] for pair in every])
    some = compare.run([tmp_path], against="b-8-original", resamples=20)["pairs"]
    assert [(pair["a"], pair["b"][0]) for pair in some] == [("b-8-original", other) for other in "acd"]
    assert [pair["holm_p"] for pair in some] == holm([pair["mcnemar_p"] for pair in some])


def test_seeds_are_averaged_and_few_of_them_are_remarked_upon(tmp_path):
    generator = np.random.default_rng(0)
    seeds = generator.random((3, 40)) < 0.5
    for seed, right in enumerate(seeds):
        write(tmp_path, f"random-8-original-seed{seed}", rows(right), seed=seed)
    write(tmp_path, "second-8-original", rows([1] * 40))
    found = compare.run([tmp_path], resamples=20)
    random = by_name(found)["random-8-original"]
    assert random["n_seeds"] == 3 and random["accuracy"] == pytest.approx(seeds.mean())
    (pair,) = found["pairs"]
    assert pair["difference"] == pytest.approx(1 - seeds.mean())
    assert (pair["right_to_wrong"], pair["wrong_to_right"]) == (0, pytest.approx((~seeds).sum() / 3))
    assert pair["mcnemar_p"] == sign_flips((~seeds).sum(0))
    assert pair["by_image_p"] == sign_flips((~seeds).sum(0).reshape(20, 2).sum(1))
    assert any("random-8-original is random and has 3 seeds" in note for note in found["notes"])


def test_identical_results_differ_by_nothing(tmp_path):
    for name in ("a-8-original", "b-8-original"):
        write(tmp_path, name, rows([1, 0, 1, 1]))
    (pair,) = compare.run([tmp_path], resamples=20)["pairs"]
    assert pair["difference"] == pair["right_to_wrong"] == pair["wrong_to_right"] == 0
    assert pair["ci95"] == [0, 0] and pair["mcnemar_p"] == pair["holm_p"] == 1


def test_one_image_has_no_interval(tmp_path):
    write(tmp_path, "a-8-original", rows([1, 0, 1, 1], per_image=4))
    write(tmp_path, "b-8-original", rows([1, 0, 0, 1], per_image=4))
    found = compare.run([tmp_path])
    assert found["pairs"][0]["ci95"] is None and found["results"][0]["ci95"] is None
    assert any("one image" in note for note in found["notes"])
    assert " - |" in compare_report.as_text(found)


def test_agreement_and_divergence_are_from_the_unpruned_answers_of_the_same_run(tmp_path):
    even, uneven = ({"yes": math.log(p), "no": math.log(1 - p)} for p in (0.5, 0.25))
    write(tmp_path, "keep_all-16-original", rows([1, 1, 0, 0], choices=even))
    path = write(tmp_path, "a-8-compact", rows([1, 0, 0, 1], choices=uneven), positions="compact")
    other = write(tmp_path, "b-8-compact", rows([1, 1, 0, 0]), positions="compact")
    found = by_name(compare.run([path, other], resamples=20))
    assert found["a-8-compact"]["agreement"] == 0.5
    assert found["a-8-compact"]["kl_to_unpruned"] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert found["a-8-compact"]["n_kl"] == 4 and found["a-8-compact"]["unpruned"] == "keep_all-16-original"
    assert found["b-8-compact"]["agreement"] == 1 and found["b-8-compact"]["kl_to_unpruned"] is None


def test_without_unpruned_answers_that_were_made_alike_nothing_is_said_of_them(tmp_path):
    for name in ("a-8-original", "b-8-original"):
        write(tmp_path / "one", name, rows([1, 0]))
    found = compare.run([tmp_path / "one"])
    assert by_name(found)["a-8-original"]["agreement"] is None
    assert any("no keep_all beside a-8-original, b-8-original" in note for note in found["notes"])
    write(tmp_path / "two", "keep_all-16-original", rows([1, 1]))
    found = compare.run([tmp_path / "one", tmp_path / "two"])
    assert by_name(found)["a-8-original"]["agreement"] == 0.5
    write(tmp_path / "two", "keep_all-16-original", rows([1, 1]), language_model="other")
    found = compare.run([tmp_path / "one", tmp_path / "two"], factors=["model"])
    assert by_name(found)["a-8-original"]["agreement"] is None


def test_questions_that_one_result_lacks_are_named_and_left_out_of_all(tmp_path):
    write(tmp_path, "a-8-original", rows([1, 1, 1, 0]))
    write(tmp_path, "b-8-original", rows([1, 0, 1, 0])[:3])
    found = compare.run([tmp_path], resamples=20)
    assert found["n_questions"] == 3 and by_name(found)["a-8-original"]["accuracy"] == 1
    assert any("1 of 4 questions are not in b-8-original (q3): left out of all" in note for note in found["notes"])


def test_results_without_a_question_in_common_are_refused(tmp_path):
    write(tmp_path, "a-8-original", rows([1, 1, 1, 0])[:2])
    write(tmp_path, "b-8-original", rows([1, 1, 1, 0])[2:])
    with pytest.raises(NotComparable, match="all results answered"):
        compare.run([tmp_path])


@pytest.mark.parametrize(
    ("made", "factor"),
    [
        ({"language_model": "n"}, "model"),
        ({"features": {"projected": "other"}}, "store"),
        ({"features": {"raw": "r"}}, "store"),
        ({"template": "u"}, "prompt"),
        ({"data.post_prompt": " one word ."}, "prompt"),
        ({"positions": "compact"}, "positions"),
        ({"model.dtype": "bfloat16"}, "dtype"),
        ({"eval.max_new_tokens": 5}, "answer-length"),
    ],
)
def test_what_was_made_otherwise_is_refused_unless_it_is_what_is_compared(tmp_path, made, factor):
    write(tmp_path, "a-8-original", rows([1, 0]))
    write(tmp_path, "b-8-original", rows([1, 0]), **made)
    with pytest.raises(NotComparable, match=rf"also differ in {factor} \(.* and .*--factor {factor} ") as caught:
        compare.run([tmp_path])
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    assert compare.run([tmp_path], factors=[factor], resamples=20)["factors"] == [factor]


def test_methods_that_read_different_arrays_of_one_store_are_made_alike(tmp_path):
    write(tmp_path, "a-8-original", rows([1, 0]))
    write(tmp_path, "b-8-original", rows([1, 0]), features={"projected": "p", "cls_attention": "c"})
    assert len(compare.run([tmp_path], resamples=20)["pairs"]) == 1


def test_the_same_id_on_another_question_is_refused(tmp_path):
    write(tmp_path, "a-8-original", rows([1, 0]))
    write(tmp_path, "b-8-original", [rows([1])[0], *rows([1, 0, 1], per_image=1)[1:2]])
    with pytest.raises(NotComparable, match=r"same ids, q1 is .*0\.png.* and .*1\.png"):
        compare.run([tmp_path])


def test_other_versions_and_unrecorded_settings_are_said(tmp_path):
    write(tmp_path, "a-8-original", rows([1, 0]))
    write(tmp_path, "b-8-original", rows([1, 0]), torch="3")
    lone = tmp_path / "lone.jsonl"
    lone.write_text("".join(json.dumps(vars(row)) + "\n" for row in rows([1, 1])))
    notes = compare.run([tmp_path, lone], resamples=20)["notes"]
    assert any("torch differs between results (2, 3)" in note for note in notes)
    assert any("what lone was made with is not recorded" in note for note in notes)


def test_results_of_one_name_are_told_apart_by_their_run(tmp_path):
    for run in ("one", "two"):
        write(tmp_path / run, "a-8-original", rows([1, 0]))
    found = compare.run([tmp_path / "one", tmp_path / "two", tmp_path / "one"])
    assert list(by_name(found)) == ["one/a-8-original", "two/a-8-original"]


def test_only_some_results_are_compared_where_names_are_given(tmp_path):
    for name in ("a-8-original", "b-8-original", "b-4-original"):
        write(tmp_path, name, rows([1, 0]))
    found = compare.run([tmp_path], only=["*-8-*"])
    assert list(by_name(found)) == ["a-8-original", "b-8-original"]
    with pytest.raises(ResultsMissing, match=r"match \*-9-\*, there are only a-8"):
        compare.run([tmp_path], only=["*-9-*"])
    with pytest.raises(NotComparable, match="--against: no such result .got 'c'."):
        compare.run([tmp_path], against="c")
    with pytest.raises(NotComparable, match="two results or more"):
        compare.run([tmp_path], only=["a-8-original"])


def test_missing_unfinished_and_damaged_predictions_are_said(tmp_path):
    with pytest.raises(ResultsMissing, match="make eval") as caught:
        compare.run([tmp_path / "nowhere"])
    assert caught.value.exit_code == 5
    write(tmp_path, "a-8-original", rows([1, 0]))
    path = write(tmp_path, "b-8-original", rows([1, 0]))
    path.with_name("c-8-original.jsonl.partial").write_text("")
    assert any("c-8-original.jsonl.partial is unfinished" in note for note in compare.run([tmp_path])["notes"])
    whole = path.read_text()
    for damaged in (whole[:-9], whole + whole, whole.replace("prediction", "said")):
        path.write_text(damaged)
        with pytest.raises((NotComparable, DamagedRun), match="b-8-original") as caught:
            compare.run([tmp_path])
        assert caught.value.exit_code == 4


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_turning_a_pair_round_turns_its_numbers_round(tmp_path_factory, answers):
    run = tmp_path_factory.mktemp("turned")
    for name, right in zip(("a", "b"), zip(*answers, strict=True), strict=True):
        write(run, f"{name}-8-original", rows(right))
    (there,) = compare.run([run], resamples=30)["pairs"]
    (back,) = compare.run([run], against="b-8-original", resamples=30)["pairs"]
    assert back["difference"] == pytest.approx(-there["difference"])
    assert (back["right_to_wrong"], back["wrong_to_right"]) == (there["wrong_to_right"], there["right_to_wrong"])
    assert back["mcnemar_p"] == there["mcnemar_p"]
    assert there["difference"] == pytest.approx((there["wrong_to_right"] - there["right_to_wrong"]) / len(answers))
    if there["ci95"] is not None:
        low, high = there["ci95"]
        assert low <= there["difference"] <= high
        np.testing.assert_allclose(back["ci95"], [-high, -low], atol=1e-12)


def test_an_evaluation_is_compared_by_the_command_line(tiny):
    experiment = tiny()
    evaluate.run(experiment)
    arguments = ["compare", str(experiment.run_dir), "--factor", "positions", "--resamples", "50"]
    found = json.loads(CliRunner().invoke(cli.group, [*arguments, "--json"]).output)
    assert len(found["results"]) == 2 + 4 * 2 and len(found["pairs"]) == 45
    unpruned = next(row for row in found["results"] if row["result"].startswith("keep_all"))
    assert unpruned["agreement"] == 1 and unpruned["kl_to_unpruned"] == 0
    assert all(row["kl_to_unpruned"] >= 0 for row in found["results"])
    text = CliRunner().invoke(cli.group, arguments).output
    assert "| random-3-original" in text and "right -> wrong" in text and "note: random-3-original is random" in text
    refused = run_to_exit_code(lambda: cli.group.main(arguments[:2], standalone_mode=False))
    assert refused == 4


def test_the_factors_of_the_command_line_are_those_that_are_checked():
    (option,) = [one for one in cli.compare.params if one.name == "factors"]
    assert tuple(option.type.choices) == get_args(Factor)


def test_a_file_that_holds_no_predictions_at_all_is_not_called_damaged(tmp_path):
    path = write(tmp_path, "keep_all-4", rows([1, 0]))
    other = tmp_path / "eval" / "cells.json"
    with pytest.raises(ResultsMissing, match="expected a file of predictions, .*cells.json holds none"):
        compare.run([path, other])
    path.write_text(path.read_text().replace('"q0",', '"q0"'))
    with pytest.raises(DamagedRun, match="line 1 of"):
        compare.run([path, path])
