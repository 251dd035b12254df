"""The canary: a layer loop that does not answer as the stock model does is refused before anything is pruned inside."""

from dataclasses import replace

import pytest
import torch
import transformers
import yaml

from configs.cli import run_to_exit_code
from stage2_prune.cli import group
from stage2_prune.errors import StockDiffers
from stage2_prune.evaluation import canary
from stage2_prune.evaluation.canary import compare_with_stock
from stage2_prune.language.cache_argument import CACHE
from stage2_prune.language.generate import Answers, generate
from stage2_prune.language.layer_loop import LayerLoop
from store.checkpoint.versions import NEWEST_TESTED
from tests.stage2_prune.small_llama import PROMPTS, questions, small_language

INSIDE = [{"name": "keep_all"}, {"name": "fastv"}]


@pytest.fixture
def loses_its_cache(monkeypatch):
    """The layer loop as it was under transformers 5.24: the cache came under a new name, and each step began an empty one."""
    sound = LayerLoop.forward

    def forward(loop, **given):
        return sound(loop, **{name: value for name, value in given.items() if name != CACHE})

    monkeypatch.setattr(LayerLoop, "forward", forward)


@pytest.fixture
def hands_over_more(monkeypatch):
    """The layer loop under a transformers that hands it an argument which it does not know."""
    sound = LayerLoop.forward
    monkeypatch.setattr(LayerLoop, "forward", lambda loop, **given: sound(loop, memory=None, **given))


def run(tiny, tmp_path, command, *arguments, **changes):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny(**changes).model_dump(mode="json")))
    line = [command, "--config", str(config), *arguments]
    return run_to_exit_code(lambda: group.main(line, standalone_mode=False))


@pytest.mark.parametrize("broken", ["loses_its_cache", "hands_over_more"])
@pytest.mark.parametrize("command", [("eval",), ("sweep",), ("calibrate", "--keep", "12", "--limit", "2")])
def test_a_broken_layer_loop_is_refused_by_every_command_that_runs_it(tiny, tmp_path, capsys, request, command, broken):
    request.getfixturevalue(broken)
    changes = {"prune__methods": INSIDE, "sweep": {"methods": "configured", "workers": 1}}
    assert run(tiny, tmp_path, *command, **changes) == 4
    said = capsys.readouterr().err
    assert "layer loop" in said and "Traceback" not in said
    assert f"transformers {transformers.__version__} is installed" in said and f"tested is {NEWEST_TESTED}" in said
    assert not list((tmp_path / "run").rglob("*.jsonl"))


def test_methods_before_the_language_model_need_no_layer_loop(tiny, tmp_path, loses_its_cache):
    assert run(tiny, tmp_path, "eval", prune__methods=[{"name": "keep_all"}, {"name": "random"}]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sound_layer_loop_passes(dtype):
    language = small_language(dtype)
    compare_with_stock(language, questions(language, prompts=PROMPTS[:1]))


@pytest.mark.usefixtures("loses_its_cache")
def test_a_model_that_would_end_its_answer_at_once_is_compared_over_three_tokens_all_the_same():
    language = small_language()
    prompt = questions(language, prompts=PROMPTS[:1])
    first = int(generate(language, prompt, 1).tokens[0, 0])
    with pytest.raises(StockDiffers, match="layer loop"):
        compare_with_stock(replace(language, eos_token_ids=(first,)), prompt)


@pytest.mark.parametrize(
    ("device", "dtype", "relative", "accepted"),
    [
        ("cpu", torch.float32, 0.0, True),
        ("cpu", torch.float32, 1e-7, False),
        ("cuda", torch.float32, 5e-5, True),
        ("cuda", torch.float32, 2e-4, False),
        ("cuda", torch.bfloat16, 5e-3, True),
        ("cuda", torch.bfloat16, 2e-2, False),
        ("cuda", torch.float16, 5e-3, True),
        ("cuda", torch.float16, 2e-2, False),
    ],
)
def test_logits_are_equal_to_the_bit_on_a_cpu_and_up_to_rounding_elsewhere(device, dtype, relative, accepted):
    language = replace(small_language(dtype), device=torch.device(device))
    stock = Answers(torch.tensor([[5, 6, 7]]), torch.tensor([[[1.0, 8.0], [2.0, -4.0], [0.5, 1.0]]]))
    own = Answers(stock.tokens, stock.logits.clone())
    own.logits[0, 1, 0] += 8.0 * relative * (1 if relative > 1e-6 else 3)
    assert (canary._difference(stock, own, language) is None) == accepted


def test_other_tokens_are_a_difference_on_every_device():
    language = replace(small_language(), device=torch.device("cuda"))
    logits = torch.zeros(1, 3, 2)
    found = canary._difference(
        Answers(torch.tensor([[5, 6, 7]]), logits), Answers(torch.tensor([[5, 6, 8]]), logits), language
    )
    assert found == "it says the tokens [5, 6, 8], the stock model [5, 6, 7]"
