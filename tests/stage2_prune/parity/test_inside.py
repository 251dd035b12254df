"""Parity with a trained method inside the language model: it scores at each of its layers, and changes no bit."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from configs.experiment import Experiment
from stage1_extract.checking import reference
from stage1_extract.extract import extract
from stage2_prune.contract.small_llama import LAYERS, PATCHES, WIDTH, small_language
from stage2_prune.errors import PrunerMisused
from stage2_prune.language.assemble import lay_out
from stage2_prune.language.generate import generate
from stage2_prune.parity import run as parity
from stage2_prune.parity.inside import scored_inside
from stage2_prune.pruners.layer_pruner import LayerPruner
from stage2_prune.pruning.pruner import ModuleSpec
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions
from tests.stage2_prune.small_llama import PROMPTS, questions

SPEC = ModuleSpec((4, 6), {"projected": (PATCHES, WIDTH)}, WIDTH)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def home(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny_llava(folder / "checkpoint")
    tiny_questions(folder, images=3, per_image=2)
    extract(experiment(folder, {"name": "keep_all"}, request.param), overwrite=False)
    return folder, request.param


def experiment(folder: Path, method: dict, dtype: str) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(folder / "run"),
            "model": {"checkpoint": str(folder / "checkpoint"), "device": "cpu", "dtype": dtype},
            "data": {"images": str(folder / "images"), "questions": str(folder / "questions.jsonl")},
            "prune": {"methods": [{"name": "keep_all"}, method]},
            "train": {"val_keep": 12, "pruner": method["name"]},
            "eval": {"max_new_tokens": 3},
        }
    )


METHODS = [
    {"name": "layer_pruner"},
    {"name": "layer_pruner", "asking": True},
    {"name": "twig_vlm"},
    {"name": "dynamic_llava"},
    {"name": "lv_pruning"},
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_parity_is_identical_where_a_method_really_scores_before_each_of_its_layers(home, method, monkeypatch, capsys):
    def here(command: list[str], **streams):
        reference.run(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", here)
    folder, dtype = home
    assert parity.run(experiment(folder, method, dtype), limit=None, as_json_text=False) == parity.IDENTICAL
    assert f"soft_pruning scored by {method['name']}" in capsys.readouterr().out
    written = json.loads((folder / "run" / "parity.json").read_text())["scored_by"]
    assert (written["label"], written["weights"]) == (method["name"], "freshly seeded")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_are_those_of_the_hidden_states_that_enter_each_layer_and_the_hooks_are_gone_afterwards(dtype):
    language, scored = small_language(dtype), []

    class Watched(LayerPruner):
        def score(self, site):
            scored.append((site.layer, site.start, super().score(site), site.hidden.clone()))
            return scored[-1][2]

    pruner = Watched(asking=True, hidden=8).fresh(SPEC, seed=0)
    layout = lay_out(language, PROMPTS, [PATCHES] * 3, torch.arange(PATCHES).expand(3, -1), PATCHES, "original")
    batch = questions(language)
    stock = generate(language, batch, 3)
    with scored_inside(language, pruner, layout):
        found = generate(language, batch, 3)
    assert torch.equal(stock.logits, found.logits) and torch.equal(stock.tokens, found.tokens)
    layers = pruner.scored_layers(LAYERS)
    assert [layer for layer, *_ in scored] == [layer for layer in layers for _ in PROMPTS]
    seen = language.model.model(
        inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, position_ids=batch.position_ids,
        output_hidden_states=True,
    ).hidden_states  # fmt: skip
    for number, (layer, start, scores, hidden) in enumerate(scored):
        prompt = seen[layer][number % 3, -len(hidden) :]
        assert torch.equal(hidden, prompt) and start == len(PROMPTS[number % 3].before)
        own = pruner.module.networks[1 + number // 3]
        again = own.of(prompt[start : start + PATCHES]) if own.last is None else own(_site(prompt, start))
        torch.testing.assert_close(scores, again)
    with scored_inside(language, pruner, layout):
        pass
    assert not any(layer._forward_pre_hooks for layer in language.model.model.layers)


def _site(prompt, start):
    from stage2_prune.pruning.in_llm import Site

    nothing = torch.zeros(len(prompt), 2, dtype=prompt.dtype)
    return Site.entering(1, start, PATCHES, prompt, prompt, (nothing, nothing), None)


def test_a_mask_that_is_not_all_ones_would_be_noticed(monkeypatch):
    language = small_language()
    layout = lay_out(language, PROMPTS, [PATCHES] * 3, torch.arange(PATCHES).expand(3, -1), PATCHES, "original")
    batch = questions(language)
    stock = generate(language, batch, 1)
    monkeypatch.setattr(torch, "ones_like", lambda scores: torch.full_like(scores, 0.99))
    with scored_inside(language, LayerPruner(hidden=8).fresh(SPEC, seed=0), layout):
        assert not torch.equal(generate(language, batch, 1).logits, stock.logits)


def test_scores_that_are_not_numbers_are_refused():
    language = small_language()
    layout = lay_out(language, PROMPTS, [PATCHES] * 3, torch.arange(PATCHES).expand(3, -1), PATCHES, "original")
    pruner = LayerPruner(hidden=8).fresh(SPEC, seed=0)
    with torch.no_grad():
        pruner.module.networks[1].own.weight.fill_(torch.nan)
    with pytest.raises(PrunerMisused, match="before layer 2"), scored_inside(language, pruner, layout):
        generate(language, questions(language), 1)
