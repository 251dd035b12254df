"""Evaluation from the store: the right numbers, resumable, and refused where it would mislead."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from configs import plugin
from stage2_prune import pruners
from stage2_prune.errors import Infeasible, NotComparable, NotExtracted, OtherRun, PrunerMisused, StoreMismatch
from stage2_prune.evaluation import answering, evaluate, report
from stage2_prune.evaluation.cells import check_budgets, configured_pruners, plan
from stage2_prune.find_family import open_text
from stage2_prune.language import price as budget
from stage2_prune.language.score import is_right
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.pruning.schedule import Schedule
from stage2_prune.session.session import open_session
from store.errors import StoreError
from store.questions.answers import normalise
from store.questions.question import read_questions
from store.questions.splits import select
from tests.helpers.checkpoints import tiny_llava
from tests.stage2_prune.conftest import extract


def files(experiment):
    folder = experiment.run_dir / "eval" / "predictions"
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def answers(experiment):
    """The predictions without the settings that each line names and its seal: what stores made otherwise may share."""
    return {
        name: re.sub(r', "made_with": "[^"]*", "crc32c": "[^"]*"', "", text) for name, text in files(experiment).items()
    }


def rows(experiment, cell):
    return [json.loads(line) for line in files(experiment)[f"{cell}.jsonl"].splitlines()]


def asked(experiment):
    return select(read_questions(experiment.data), experiment.data, "test")


@pytest.fixture(scope="module")
def finished(home, tmp_path_factory):
    """One whole evaluation."""
    from configs.experiment import Experiment
    from tests.stage2_prune.conftest import settings

    experiment = Experiment.model_validate(settings(home, run_dir=str(tmp_path_factory.mktemp("finished"))))
    return experiment, evaluate.run(experiment)


def test_the_summary_has_the_promised_schema_and_agrees_with_the_predictions(finished):
    experiment, summary = finished
    assert json.loads((experiment.run_dir / "eval" / "summary.json").read_text()) == summary
    assert (summary["schema"], summary["split"], summary["primary"]) == (1, "test", "generate")
    assert summary["exact"] is True and summary["excluded"] == []
    questions = asked(experiment)
    assert summary["n_questions"] == len(questions)
    assert summary["n_images"] == len({question.image for question in questions})
    keys = [(row["pruner"], row["keep"], row["positions"]) for row in summary["results"]]
    assert len(set(keys)) == len(keys) == 2 + 4 * 2
    for row in summary["results"]:
        cells = [f"-seed{seed}" for seed in row["seeds"]] or [""]
        lines = [rows(experiment, f"{row['pruner']}-{row['keep']}-{row['positions']}{cell}") for cell in cells]
        right = [is_right(line["prediction"], line["answers"]) for cell in lines for line in cell]
        ranked = [
            is_right(line["ranked"], line["answers"]) for cell in lines for line in cell if line["ranked"] is not None
        ]
        assert row["accuracy"] == pytest.approx(np.mean(right))
        assert row["accuracy_ranked"] == (pytest.approx(np.mean(ranked)) if ranked else None)
        assert row["disagree"] == sum(
            line["ranked"] is not None and normalise(line["ranked"]) != normalise(line["prediction"])
            for cell in lines
            for line in cell
        )
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
        assert row["tokens_per_layer_mean"] == row["keep"] and row["n"] == len(questions)
        assert set(row["by_kind"]) == {question.kind for question in questions if question.kind}


def test_all_and_none_appear_once_and_random_is_averaged_over_its_seeds(finished):
    results = {(row["pruner"], row["keep"]): row for row in finished[1]["results"]}
    patches = max(keep for _, keep in results)
    assert ("keep_all", patches) in results and ("keep_none", 0) in results
    assert results["random", 3]["seeds"] == [0, 1]
    assert results["cls_attention", 3]["seeds"] == [] and results["cls_attention", 3]["positions"] == "compact"
    assert results["uniform_grid", 3]["positions"] == "original"


def test_every_result_says_what_the_tokens_that_entered_cost(finished):
    experiment, summary = finished
    shape = budget.LanguageShape(layers=2, width=48, heads=4, kv_heads=2, head=12, mlp=96, itemsize=4)
    text = open_text(experiment.model)
    prompts = [text.prompt(question.question) for question in asked(experiment)]
    for row in summary["results"]:
        schedule = Schedule(2, row["keep"])
        lengths = [len(prompt.before) + len(prompt.after) for prompt in prompts]
        expected = budget.price(shape, [(schedule, length) for length in lengths])
        assert row["tokens_per_layer"] == [row["keep"]] * 2
        assert row["kv_bytes"] == expected.kv_bytes == row["keep"] * 2 * 2 * 2 * 12 * 4
        assert row["flops"] == expected.flops and row["flops_convention"] == "macs_vision"
        assert row["selector_ms_per_image"] > 0


def test_the_convention_that_counts_is_named_in_the_tables_column_and_can_be_chosen(tiny):
    methods = [{"name": "keep_all"}, {"name": "keep_none"}]
    summary = evaluate.run(tiny(prune__methods=methods))
    assert "| macs_vision |" in report.table(summary)
    other = evaluate.run(tiny(prune__methods=methods, eval__flops="flops_all"))
    assert "| flops_all |" in report.table(other)
    with pytest.raises(NotComparable, match="one FLOPs convention"):
        report.table(summary | {"results": [*summary["results"], *other["results"]]})


def test_a_prediction_holds_its_question_its_tokens_and_how_likely_each_choice_was(finished):
    experiment, _ = finished
    for line, question in zip(rows(experiment, "cls_attention-3-compact"), asked(experiment), strict=True):
        assert line["question"] == question.question and line["visual_tokens"] == 3
        if question.choices is None:
            assert line["choices"] is None
        else:
            assert list(line["choices"]) == list(dict.fromkeys(question.choices))
            assert max(line["choices"].values()) == line["choices"][line["ranked"]]


def test_every_method_that_is_not_trained_and_needs_no_side_array_is_evaluated_with_defaults(tiny):
    found = plugin.find_all(pruners, Pruner)
    stored = set(tiny().store.arrays)  # test_side_arrays: the rest
    names = [name for name, one in found.items() if not issubclass(one, TrainedPruner) and one.needs <= stored]
    methods = {"methods": [{"name": name} for name in names], "budgets": [7], "seeds": 1}
    summary = evaluate.run(tiny(prune=methods, eval={"batch_size": 4, "max_new_tokens": 1, "bootstrap": 50}))
    results = {row["pruner"]: row for row in summary["results"]}
    infeasible = {one["pruner"] for one in summary["infeasible"]}
    assert {found[name].place for name in infeasible} == {"in_llm"}  # two layers cannot average 7 of 16 tokens
    assert results.keys() | infeasible == set(names) and not results.keys() & infeasible
    for name, row in results.items():
        mean, kind = row["tokens_per_layer_mean"], found[name].budget
        assert kind == "fixed" or mean == 7 or (kind == "schedule" and 6 < mean < 7)  # whole tokens in each layer
        assert row["positions"] == found[name].positions


def test_the_table_and_the_plot_are_written(finished):
    folder = finished[0].run_dir / "eval"
    assert "| keep_all" in (folder / "table.md").read_text()
    with Image.open(folder / "accuracy_vs_tokens.png") as picture:
        assert picture.width > 800
    assert (folder / "config.yaml").is_file()


@torch.no_grad()
def test_fault_39_unpruned_answers_from_the_store_are_those_of_the_stock_model_on_the_pictures(finished):
    experiment, _ = finished
    checkpoint = experiment.model.checkpoint
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(checkpoint, backend="pil")
    processor.tokenizer.padding_side = "left"
    questions = asked(experiment)[: experiment.eval.batch_size]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.question}]}],
            add_generation_prompt=True,
        )
        for question in questions
    ]
    pictures = [Image.open(experiment.data.images / question.image).convert("RGB") for question in questions]
    inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=experiment.eval.max_new_tokens, do_sample=False)
    expected = processor.batch_decode(said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    patches = max(row["keep"] for row in finished[1]["results"])
    found = [row["prediction"] for row in rows(experiment, f"keep_all-{patches}-original")[: len(questions)]]
    assert found == [text.strip() for text in expected]


def test_a_finished_evaluation_is_not_computed_again(tiny, monkeypatch):
    experiment = tiny(prune__methods=[{"name": "keep_all"}, {"name": "random"}])
    first = evaluate.run(experiment)
    monkeypatch.setattr(answering, "ask", lambda *_: pytest.fail("asked again"))
    assert evaluate.run(experiment) == first


def test_an_interrupted_evaluation_resumes_to_the_same_files(tiny, monkeypatch, tmp_path):
    whole = tiny(run_dir=str(tmp_path / "whole"))
    evaluate.run(whole)
    experiment, calls, ask = tiny(), [], answering.ask

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 17:
            raise KeyboardInterrupt
        return ask(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(answering, "ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(experiment)
    assert any(name.endswith(".partial") for name in files(experiment))
    evaluate.run(experiment)
    assert files(experiment) == files(whole)


def test_results_of_other_settings_are_kept_unless_overwriting_is_asked_for(tiny):
    methods = [{"name": "keep_none"}]
    evaluate.run(tiny(prune__methods=methods))
    before = files(tiny())
    with pytest.raises(OtherRun, match=r"eval\.batch_size 4, now 2"):
        evaluate.run(tiny(prune__methods=methods, eval__batch_size=2, eval__max_new_tokens=3, eval__bootstrap=50))
    assert files(tiny()) == before
    evaluate.run(tiny(prune__methods=methods, eval__batch_size=2), overwrite=True)


def test_another_budget_adds_to_the_results_that_are_there(tiny):
    methods = [{"name": "uniform_grid"}]
    evaluate.run(tiny(prune__methods=methods, prune__budgets=[3]))
    before = files(tiny())
    summary = evaluate.run(tiny(prune__methods=methods, prune__budgets=[3, 8]))
    assert before.items() <= files(tiny()).items()
    assert [row["keep"] for row in summary["results"]] == [3, 8]


def test_a_question_whose_image_could_not_be_encoded_is_excluded_with_the_reason(home, tiny, tmp_path):
    shutil.copytree(home / "data", tmp_path / "data")
    data = {
        "images": str(tmp_path / "data" / "images"),
        "questions": str(tmp_path / "data" / "questions.jsonl"),
    }
    experiment = tiny(
        data=data, store={"path": str(tmp_path / "store")}, extract={"max_failures": 1},
        prune__methods=[{"name": "keep_none"}],
    )  # fmt: skip
    questions = asked(experiment)
    broken = questions[0].image
    (experiment.data.images / broken).write_bytes(b"not an image")
    extract(experiment, tmp_path)
    summary = evaluate.run(experiment)
    about = {question.question_id for question in questions if question.image == broken}
    assert {row["question_id"] for row in summary["excluded"]} == about
    assert all(row["reason"] for row in summary["excluded"])
    assert summary["n_questions"] == len(questions) - len(about)
    assert all(row["question_id"] not in about for row in rows(experiment, "keep_none-0-original"))


def test_a_question_about_an_image_that_was_never_extracted_names_make_extract(tiny, tmp_path):
    questions = tmp_path / "questions.jsonl"
    row = {"question_id": "1", "image": "new.png", "question": "?", "answers": ["red"], "split": "test"}
    questions.write_text(json.dumps(row) + "\n")
    with pytest.raises(NotExtracted, match=r"new\.png.*make extract") as caught:
        evaluate.run(tiny(data__questions=str(questions), data__images=str(tmp_path)))
    assert caught.value.exit_code == 5


def test_a_store_without_an_array_that_a_pruner_needs_is_refused_before_anything_runs(tiny, tmp_path):
    experiment = tiny(store={"path": str(tmp_path / "store"), "arrays": ["projected"]})
    extract(experiment, tmp_path)
    with pytest.raises(StoreError, match="cls_attention"):
        evaluate.run(experiment)


def test_a_store_of_raw_features_only_gives_the_same_predictions(finished, tiny, tmp_path):
    experiment = tiny(store={"path": str(tmp_path / "store"), "arrays": ["raw", "cls_attention"]})
    extract(experiment, tmp_path)
    evaluate.run(experiment)
    assert answers(experiment) == answers(finished[0])


def test_a_store_of_another_projector_is_refused(tiny, tmp_path):
    other = tiny_llava(tmp_path / "checkpoint")
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if name.endswith("linear_2.weight"))
    weights[name] = weights[name] * 2
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(StoreMismatch, match="projector") as caught:
        evaluate.run(tiny(model__checkpoint=str(other)))
    assert caught.value.exit_code == 4


def test_a_store_of_another_layer_is_refused_with_both_values(tiny, tmp_path):
    other = tiny_llava(tmp_path / "checkpoint", feature_layer=-1)
    with pytest.raises(StoreMismatch, match=r"vision_feature_layer: expected -1, found -2"):
        evaluate.run(tiny(model__checkpoint=str(other)))


def test_the_store_opens_without_images_tower_and_projector(finished, tiny, tmp_path):
    stripped = tiny_llava(tmp_path / "checkpoint")
    weights = load_file(stripped / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "language_model" in name or "lm_head" in name}
    save_file(kept, stripped / "model.safetensors", {"format": "pt"})
    experiment = tiny(model__checkpoint=str(stripped), data__images=str(tmp_path / "deleted"))
    evaluate.run(experiment)
    assert answers(experiment) == answers(finished[0])


def test_features_rounded_on_their_way_into_the_model_are_not_called_exact(tiny):
    experiment = tiny(model__dtype="bfloat16", prune__methods=[{"name": "keep_all"}])
    assert not open_session(experiment, frozenset()).exact


def test_fault_40_budgets_beyond_the_patches_are_a_config_error(tiny):
    experiment = tiny(prune__budgets=[4, 10_000])
    with pytest.raises(PrunerMisused, match="10000") as caught:
        check_budgets(experiment, 16)
    assert caught.value.exit_code == 2


def test_a_budget_is_matched_by_what_the_config_says(tiny):
    def schedules(match):
        experiment = tiny(prune={"methods": [{"name": "fastv"}], "budgets": [5], "match": match})
        cells, unmet = plan(experiment, configured_pruners(experiment), 16, 4)
        return [cell.schedule.tokens_per_layer for cell in cells], [one.reason for one in unmet]

    assert schedules("kept") == ([(16, 5, 5, 5)], [])
    assert schedules("mean-tokens")[0] == [(16, 1, 1, 1)] or "mean" in schedules("mean-tokens")[1][0]


def test_predictions_of_a_method_whose_code_has_changed_are_not_taken_for_its_own(tiny, monkeypatch):
    experiment = tiny(prune={"methods": [{"name": "uniform_grid"}], "budgets": [5]})
    evaluate.run(experiment)
    evaluate.run(experiment)
    monkeypatch.setattr(Pruner, "code", "edited")
    with pytest.raises(OtherRun, match="code_with_imports .*, now 'edited'"):
        evaluate.run(experiment)


def test_one_method_may_be_named_twice_with_different_parameters_only(tiny):
    methods = configured_pruners(tiny(prune__methods=[{"name": "random", "seed": 3}, {"name": "random"}]))
    assert list(methods) == ["random@seed=3", "random"]
    cells, _ = plan(tiny(prune__budgets=[2], prune__seeds=2), methods, 16, 2)
    assert [cell.seed for cell in cells] == [3, 4, 0, 1]
    with pytest.raises(PrunerMisused, match="twice"):
        configured_pruners(tiny(prune__methods=[{"name": "random"}, {"name": "random"}]))


def test_both_kinds_of_positions_are_evaluated_where_asked_and_fixed_methods_still_once(tiny):
    methods = configured_pruners(tiny())
    experiment = tiny(prune__positions=["original", "compact"], prune__budgets=[2], prune__seeds=1)
    cells, _ = plan(experiment, methods, 16, 2)
    assert len([cell for cell in cells if cell.label == "keep_all"]) == 1
    assert [cell.positions for cell in cells if cell.label == "cls_attention"] == ["original", "compact"]


def test_methods_inside_the_language_model_are_evaluated_like_any_other_and_what_cannot_be_met_is_named(tiny):
    methods = ["fastv", "sparse_vlm", "vtw", "combination", "cls_attention"]
    experiment = tiny(prune__methods=[{"name": name} for name in methods], prune__budgets=[16, 12, 5])
    summary = evaluate.run(experiment)
    rows = {(row["pruner"], row["keep"]): row for row in summary["results"]}
    assert rows["fastv", 12]["tokens_per_layer"] == [16, 8] and rows["fastv", 12]["drop_layers"] == [1]
    assert rows["fastv", 12]["tokens_per_layer_mean"] == 12 and rows["fastv", 16]["tokens_per_layer"] == [16, 16]
    assert rows["vtw", 8]["tokens_per_layer"] == [16, 0]
    assert rows["combination", 5]["tokens_per_layer"] == [8, 3] and rows["combination", 5]["parameters"]["layers"] == (
        16,
    )
    assert rows["cls_attention", 5]["tokens_per_layer"] == [5, 5] and rows["cls_attention", 5]["drop_layers"] == []
    assert rows["fastv", 12]["kv_bytes"] < rows["fastv", 16]["kv_bytes"]
    assert rows["fastv", 12]["selector_ms_per_image"] > 0
    assert [(one["pruner"], one["keep"]) for one in summary["infeasible"]] == [
        ("fastv", 5),
        ("sparse_vlm", 5),
        ("combination", 12),
    ]
    assert (
        "fastv at 5 tokens, original positions, is infeasible" in (experiment.run_dir / "eval" / "table.md").read_text()
    )
    before = files(experiment)
    assert evaluate.run(experiment) == json.loads(json.dumps(summary)) | {"results": summary["results"]}
    assert files(experiment) == before


def test_merged_tokens_at_original_positions_are_named_infeasible_and_the_other_cells_run(tiny):
    methods = configured_pruners(tiny(prune__methods=[{"name": "sparse_vlm"}]))
    cells, unmet = plan(tiny(prune__budgets=[12], prune__positions=["original", "compact"]), methods, 16, 2)
    assert [cell.positions for cell in cells] == ["compact"]
    with pytest.raises(Infeasible, match="none can: fastv"):
        evaluate.run(tiny(prune__methods=[{"name": "fastv"}], prune__budgets=[5]))
    assert [(one.keep, one.positions) for one in unmet] == [(12, "original")] and "compact" in unmet[0].reason


def test_parity_passes_over_methods_inside_the_language_model_and_training_refuses_them(tiny):
    from stage2_prune.parity.run import soft_pruner
    from stage2_prune.training import train

    assert soft_pruner(tiny(prune__methods=[{"name": "fastv"}, {"name": "cls_attention"}]))[0] == "cls_attention"
    inside = tiny(prune__methods=[{"name": "fastv"}], train__pruner="fastv")
    with pytest.raises(PrunerMisused, match="before the language model"):
        soft_pruner(inside)
    with pytest.raises(PrunerMisused, match="'fastv' has no weights to train"):
        train.run(inside)
