"""`check-pruner` holds a method to the contract: each rule has a pruner that breaks it, and the rule is named with an example."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from configs.cli import run_to_exit_code
from stage2_prune.cli import group

ROOT = Path(__file__).parents[2]
HEAD = """
from dataclasses import dataclass, replace

import torch
from torch import nn

from stage2_prune.primitives.top_k import top_k
from stage2_prune.pruning.in_llm import Drop, InLLMPruner, highest
from stage2_prune.pruning.practice import Shown
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.pruning.schedule import Schedule, Stage, fit, staged
from stage2_prune.pruning.tokens import Merge, Pruned
from stage2_prune.pruning.trained_inside import Decision, TrainedInside

CALLS = []


def turned():
    CALLS.append(1)
    return (-1) ** len(CALLS)

"""


def method(body: str, base: str = "Pruner", decorator: str = "@dataclass(frozen=True)") -> str:
    """The text of a file with one pruner."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    return f"{HEAD}\n{decorator}\nclass Mine({base}):\n{lines}\n"


def selecting(expression: str, needs: str = "raw", fields: str = "") -> str:
    """A selection that returns what an expression says of `raw`, `keep` and `tokens`."""
    body = (
        f"needs = frozenset({{'{needs}'}})\n{fields}\ndef select(self, tokens, keep):\n    raw = tokens.arrays['raw']\n"
    )
    return method(f"{body}    return {expression}")


def merging(lines: str, merge: str = "Merge(weights, 'projected')", index: str = "None") -> str:
    """A method that starts from the weights that keep the first patches, and changes them."""
    return method(
        "needs = frozenset({'projected'})\n"
        "def prune(self, tokens, keep):\n"
        "    features, images = tokens.arrays['projected'], len(tokens.image_ids)\n"
        "    weights = torch.eye(tokens.patches)[:keep].expand(images, -1, -1).clone()\n"
        f"    {lines}\n"
        f"    return Pruned({index}, merge={merge})"
    )


def inside(schedule: str, drop: str = "highest(site.hidden[site.image].norm(dim=-1), keep)", more: str = "") -> str:
    return method(
        f"{more}\ndef schedule(self, patches, depth, keep, match='mean-tokens'):\n    {schedule}\n"
        f"def drop(self, site, keep):\n    return {drop}",
        "InLLMPruner",
    )


def learned_inside(share: str, scored: str = "self.module(site.hidden[site.image].float())[:, 0]") -> str:
    """A method with a learned layer before layer 2."""
    return method(
        "def schedule(self, patches, depth, keep, match='mean-tokens'):\n"
        "    return fit(keep, patches, depth, lambda share: staged(patches, depth, [min(2, depth - 1)], [share * patches]))\n"
        "def scored_layers(self, depth):\n    return (2,)\n"
        "def build(self, spec):\n    return nn.Linear(spec.embed, 1)\n"
        f"def score(self, site):\n    return {scored}\n"
        f"def decide(self, scores, present, keep, practice):\n    return {share}",
        "TrainedInside",
    )


def learned(soft: str, practise: str = "") -> str:
    return method(
        "needs = frozenset({'raw'})\n"
        "def build(self, spec):\n    return nn.Linear(spec.shapes['raw'][-1], 1)\n"
        "def scores(self, tokens):\n"
        "    return torch.stack([self.module(raw.float())[:, 0] for raw in tokens.arrays['raw']])\n"
        "def select(self, tokens, keep):\n    return top_k(self.scores(tokens), keep)\n"
        f"def soft(self, tokens, keep):\n    return {soft}"
        + (f"\ndef practise(self, tokens, practice):\n    return {practise}" if practise else ""),
        "TrainedPruner",
    )


def adaptive(counts: str, more: str = "") -> str:
    return method(
        "budget = 'adaptive'\nneeds = frozenset({'raw'})\n"
        "def prune(self, tokens, keep):\n"
        "    images = len(tokens.image_ids)\n"
        f"    counts = {counts}\n"
        f"    {more or 'pass'}\n"
        "    return Pruned(torch.arange(int(counts.max())).expand(images, -1), counts=counts)"
    )


NORM = "top_k(raw.float().norm(dim=-1), keep)"
FIT = "return fit(keep, patches, depth, lambda share: staged(patches, depth, [2], [share * patches]), match)"
SOFT = "torch.ones_like(self.scores(tokens))"
SMOOTH = "self.scores(tokens).sigmoid()"
GOOD = f"{SMOOTH} if keep < tokens.patches else {SOFT}"
BROKEN = {
    "no dataclass": (
        method("def select(self, tokens, keep):\n    return 0", decorator=""),
        "parameters are",
        "not a frozen",
    ),
    "not frozen": (
        method("skip: int = 0", decorator="@dataclass"),
        "parameters are",
        "cannot inherit non-frozen|not a frozen",
    ),
    "no default": (method("skip: int"), "parameters are", "skip has no default"),
    "no row for each image": (
        selecting("torch.arange(keep)"),
        "`select` returns",
        r"expected an integer tensor \(image, keep\) = \(3, 8\) from Mine.select \(.*mine.py, line \d+\), got shape \(8,\)",
    ),
    "a list": (selecting("[0] * keep"), "`select` returns", "got a list"),
    "neither method": (method("def selekt(self, tokens, keep):\n    return 0"), "`select` returns", "Mine has neither"),
    "no result": (
        method("def prune(self, tokens, keep):\n    pass"),
        "`select` returns",
        "expected a Pruned .* got None",
    ),
    "no places": (merging("pass"), "Merged tokens have", "have no original positions: write `positions"),
    "undeclared array": (selecting(NORM, needs="projected"), "looks at nothing but", "raised KeyError .'raw'."),
    "undeclared question": (
        selecting(f"{NORM} + 0 * tokens.question.shape[0]"),
        "looks at nothing but",
        "raised AttributeError",
    ),
    "undeclared, if there": (
        selecting(
            "top_k((tokens.arrays.get('keys', -tokens.arrays['raw'])[:, -tokens.patches:]).float().sum(-1), keep)"
        ),
        "looks at nothing but",
        "beside other arrays",
    ),
    "no such array": (
        selecting(NORM, needs="raww"),
        "looks at nothing but",
        "raww, which no store has: did you mean raw?",
    ),
    "too many": (
        selecting("top_k(raw.float().norm(dim=-1), min(keep + (keep == 3), raw.shape[1]))"),
        "Every budget",
        r"keep 3: .* came \(3, 4\)",
    ),
    "wrong type": (selecting(f"{NORM}.int()"), "Every budget", "came .* of int32"),
    "one patch twice": (
        selecting(f"{NORM} * (keep != 5)"),
        "Every budget",
        r"keep 5, image 0: it kept \[0, 0, 0, 0, 0\].* one patch twice",
    ),
    "out of range": (selecting(f"{NORM} + 1"), "Every budget", "patches are 0 to 15"),
    "not ascending": (selecting(f"{NORM}.flip(-1)"), "Every budget", "not ascending"),
    "only even budgets": (
        selecting(f"{NORM}[:, torch.arange(keep).view(2, -1).flatten()]"),
        "Every budget",
        r"raised RuntimeError .* in .*mine.py, line \d+",
    ),
    "half precision": (
        selecting("top_k(raw.float().norm(dim=-1)[:, : 99 if raw.dtype == torch.float32 else 2], keep)"),
        "Every budget",
        "4x4 patches in bfloat16",
    ),
    "not all": (selecting(f"{NORM} if keep < raw.shape[1] else {NORM}[:, :-1]"), "Every patch is kept", "keep 16"),
    "of the batch": (
        selecting("top_k((raw - raw.mean((0, 1))).float().norm(dim=-1), keep)"),
        "alone and in a batch",
        "alone it kept .* among 3",
    ),
    "of the first image": (
        selecting("top_k((raw - raw[:1]).float().norm(dim=-1) + 1e-3 * raw.float().norm(dim=-1), keep)"),
        "The order of the images",
        "reverse order",
    ),
    "global draws": (
        selecting("top_k(torch.rand(raw.shape[:2]), keep)"),
        "pruned alike twice",
        "torch's global generator",
    ),
    "remembers": (
        selecting("top_k(raw.float().norm(dim=-1) * turned(), keep)"),
        "pruned alike twice",
        "the second time",
    ),
    "writes": (
        selecting("top_k(raw.abs_().float().norm(dim=-1), keep)"),
        "not written to",
        "it wrote to the array raw",
    ),
    "one seed": (
        selecting(NORM, fields="randomised = True\nseed: int = 0"),
        "A draw depends",
        "seeds 0 and 1 both kept",
    ),
    "no seed": (selecting(NORM, fields="randomised = True"), "A draw depends", "no field `seed`"),
    "soft beyond 1": (learned(f"{SMOOTH} * 2 if keep < tokens.patches else {SOFT}"), "Soft weights", "weights from"),
    "soft below 1": (learned(SMOOTH), "Soft weights", "where everything is kept"),
    "soft without gradient": (
        learned(f"{SMOOTH}.detach() if keep < tokens.patches else {SOFT}"),
        "Soft weights",
        "no gradient",
    ),
    "soft shape": (learned(f"{SMOOTH}[:, :-1]"), "Soft weights", "expected weights of the shape"),
    "other losses": (
        learned(GOOD, "Shown(self.soft(tokens, practice.keep), losses={'mine': self.scores(tokens).sum(1)})"),
        "In training",
        "expected the losses that the class names .*, came mine",
    ),
    "always a scale": (
        learned(GOOD, "Shown(visual=practice.projected * self.scores(tokens)[..., None])"),
        "In training",
        "other features than the image's own where everything is kept",
    ),
    "of nothing": (merging("weights[:, 0] = 0"), "every token is made of something", "made of nothing"),
    "not finite": (merging("weights[:, 0] /= 0"), "every token is made of something", "not finite"),
    "merge of raw": (merging("pass", "Merge(weights, 'raw')"), "every token is made of something", "`needs` lacks raw"),
    "stands nowhere": (
        merging("pass", index="torch.arange(keep).flip(-1).expand(images, -1)"),
        "every token is made of something",
        "not ascending",
    ),
    "stands for others": (
        merging("pass", index="torch.arange(keep).expand(images + 1, -1)"),
        "every token is made of something",
        r"expected an index of the shape \(3, 1\) in int64, came \(4, 1\)",
    ),
    "stands in 32 bit": (
        merging("pass", index="torch.arange(keep).int().expand(images, -1)"),
        "every token is made of something",
        "in int64, came .* of int32",
    ),
    "stands elsewhere": (
        merging("pass", index="(torch.arange(keep) + (keep < tokens.patches)).expand(images, -1)"),
        "every token is made of something",
        "has no part",
    ),
    "rounded": (
        merging("weights[:, 0, 0] = features.pow(2).sum((1, 2)).float().sqrt() + 1"),
        "merged in float32",
        "bfloat16 features gave",
    ),
    "blank": (
        merging("weights /= features.float().norm(dim=-1).amin(-1)[:, None, None]"),
        "of equal patches",
        "every value 0: a weight is not finite",
    ),
    "too large": (merging("weights[:, 0] *= 3e38"), "tokens can be made", "not finite"),
    "counts of others": (adaptive("torch.full((images,), images)"), "as many tokens alone", "alone it kept"),
    "no counts": (
        adaptive("torch.ones(images).long()", "return Pruned(torch.zeros(images, 1).long())"),
        "What is reported",
        "no `counts`",
    ),
    "counts too large": (
        adaptive("torch.full((images,), 99)"),
        "What is reported",
        "counts .99, 99, 99. of 16 patches",
    ),
    "never feasible": (
        inside("return fit(-9, patches, depth, lambda share: Schedule(depth, patches))"),
        "Every budget is met",
        "meets 0 budgets",
    ),
    "another mean": (
        inside("return staged(patches, depth, [2], [keep])"),
        "Every budget is met",
        "a mean of .* use `fit`",
    ),
    "growing": (
        inside(
            "return Schedule(depth, keep, (Stage(1, keep + 1), Stage(2, keep - 1))) if keep < patches else Schedule(depth, keep)"
        ),
        "Every budget is met",
        "a later layer has more",
    ),
    "exact inside": (inside(FIT, more="budget = 'exact'"), "Every budget is met", "with the budget `exact`"),
    "merging before its layers": (
        inside(
            FIT,
            more="def prune(self, tokens, keep):\n    weights = torch.eye(tokens.patches)[:keep]\n"
            "    return Pruned(merge=Merge(weights.expand(len(tokens.image_ids), -1, -1), 'projected'))",
        ),
        "to the token, in raster order",
        "^expected an index alone .* returned a merge",
    ),
    "other drop": (
        inside(FIT, "Drop(torch.arange(max(keep - 1, 1)))"),
        "to the token, in raster order",
        "did not keep to its schedule",
    ),
    "unsorted drop": (
        inside(FIT, "Drop(torch.arange(keep).flip(0))"),
        "to the token, in raster order",
        "not ascending",
    ),
    "remembering drop": (
        inside(FIT, "highest(torch.arange(site.visual).float() * turned(), keep)"),
        "A question keeps the same",
        "alone it kept",
    ),
    "forgetful drop": (
        inside(FIT, "highest(torch.arange(site.visual).float() * turned(), keep)"),
        "answered alike twice",
        "other logits the second time",
    ),
    "never everything": (
        inside(
            "if keep == patches > 1:\n        return Schedule(depth, patches, (Stage(depth - 1, patches - 1),))\n"
            f"    {FIT}"
        ),
        "stock model's to the bit",
        "other logits",
    ),
    "learns nothing inside": (
        learned_inside("Decision(torch.ones_like(scores))"),
        "A training reaches",
        "nothing has a gradient",
    ),
    "infinite inside": (learned_inside("Decision(scores / 0)"), "A training reaches", "not finite"),
}
SOUND = {
    "selecting": selecting(NORM),
    "merging": merging("pass", index="torch.arange(keep).expand(images, -1)"),
    "learned": learned(GOOD),
    "inside": inside(FIT),
    "learned inside": learned_inside("Decision(scores.sigmoid())"),
    "adaptive": adaptive("(tokens.arrays['raw'].float()[..., 0] > 0).sum(-1).clamp_min(1)"),
}


def check(path, *flags):
    """The verdicts by rule, and the exit code."""
    done = CliRunner().invoke(group, ["check-pruner", str(path), "--json", *flags], standalone_mode=False)
    assert done.exception is None, done.exception
    told = json.loads(done.output)
    return {rule["rule"]: rule for rule in told["rules"]}, done.return_value, told


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_has_a_pruner_that_breaks_it_and_is_named_with_an_example(tmp_path, name):
    text, rule, example = BROKEN[name]
    path = tmp_path / "mine.py"
    path.write_text(text)
    rules, code, told = check(path)
    broken = {says: verdict["example"] for says, verdict in rules.items() if not verdict["ok"]}
    assert code == 4 and not told["holds"]
    (example_of_rule,) = (said for says, said in broken.items() if rule in says)
    assert re.search(example, example_of_rule), example_of_rule


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_pruner_of_each_kind_keeps_every_rule(tmp_path, name):
    path = tmp_path / "mine.py"
    path.write_text(SOUND[name])
    rules, code, told = check(path)
    assert code == 0 and told["holds"] and len(rules) > 5, [rule for rule in rules.values() if not rule["ok"]]


def test_every_rule_of_the_contract_is_broken_by_one_of_these_pruners():
    from stage2_prune.contract import check, every

    rules = (
        check.SELECTING
        + check.MERGING
        + check.DECIDING
        + check.BEFORE
        + check.RANDOMISED
        + check.TRAINED
        + check.INSIDE
        + check.TRAINED_INSIDE
    )
    says = [rule.says for rule, _ in rules] + [rule.says for rule in check.DECLARED] + [every.PARAMETERS]
    assert not {one for one in says if not any(named in one for _, named, _ in BROKEN.values())}


@pytest.mark.parametrize(("name", "rules"), [("my_pruner", 9), ("my_scorer", 11), ("top_rows", 9)])
def test_the_pruners_that_the_pages_show_keep_the_contract_in_words_and_json(tmp_path, name, rules):
    path = ROOT / "docs" / "examples" / f"{name}.py"
    if name == "top_rows":
        path = tmp_path / "top_rows.py"
        path.write_text(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[-1])
    done = CliRunner().invoke(group, ["check-pruner", str(path)], standalone_mode=False)
    assert done.return_value == 0 and f"{name} (selecting)" in done.output and "failed" not in done.output
    assert done.output.count("\nok ") == rules


def test_a_built_in_method_is_checked_by_its_name_and_with_other_parameters():
    rules, code, told = check("pru_merge", "--parameters", "{count: outliers}")
    assert code == 0 and told["kind"] == "deciding its number of tokens"
    rules, code, told = check("random")
    assert code == 0 and any("A draw depends" in rule for rule in rules)


def test_what_is_no_pruner_is_refused_in_a_sentence(tmp_path, capsys):
    (tmp_path / "bad.py").write_text("import torchh\n")
    for arguments, said in (
        ([str(tmp_path / "bad.py")], "bad.py, line 1"),
        (["keep_al"], "did you mean keep_all?"),
        (["random", "--parameters", "{sed: 1}"], "unknown key: did you mean seed?"),
        (["random", "--parameters", "[1]"], "--parameters: expected a mapping"),
    ):
        run = ["check-pruner", *arguments]
        assert run_to_exit_code(lambda run=run: group.main(run, standalone_mode=False)) == 2
        assert said in capsys.readouterr().err
