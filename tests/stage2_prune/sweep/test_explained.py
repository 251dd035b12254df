"""A cell's latency is explained: measured with graphs, predicted by FLOPs, bytes and roofline, and bound by one of three."""

import json
from dataclasses import asdict

import pytest

from stage2_prune.errors import NotCaptured
from stage2_prune.language.price import CONVENTIONS, shape_of
from stage2_prune.language.roofline import Peaks, Roofline
from stage2_prune.sweep import explained as module
from stage2_prune.sweep import latency, report
from stage2_prune.sweep.explained import INSIDE, Explainer, Explanation, explained
from stage2_prune.sweep.latency import Latency
from tests.stage2_prune.small_llama import LAYERS, small_language

ROW = {"place": "before_llm", "label": "div_prune", "method": "div_prune", "match": None, "budget": 64, "kept": 64.0}


@pytest.fixture(scope="module")
def language():
    return small_language()


def pair(compute, memory, graph, whole_graph, reason=None):
    return Explanation(Roofline(compute, memory), graph, reason), Explanation(Roofline(0.014, 0.004), whole_graph, None)


def test_ratios_are_medians_over_questions_and_the_binding_term_is_named():
    pairs = [pair(0.002, 0.003, graph, 0.016) for graph in (0.003, 0.004, 0.005)]
    found = explained(0.040, pairs)
    assert found.prefill_graph_ms == pytest.approx(4) and found.graph_ratio == pytest.approx(0.25)
    assert found.flops_ratio == pytest.approx(1 / 7) and found.memory_ratio == pytest.approx(0.75)
    assert found.roofline_ratio == pytest.approx(3 / 14) and found.roofline_ms == pytest.approx(3)
    assert (found.bound_by, found.no_graph) == ("launches", None)
    assert explained(0.005, pairs).bound_by == "memory"


def test_without_a_graph_the_reason_stands_in_its_place():
    found = explained(0.040, [pair(0.020, 0.003, None, 0.016, "too new")])
    assert (found.prefill_graph_ms, found.graph_ratio, found.no_graph) == (None, None, "too new")
    assert found.bound_by == "compute"


def test_each_length_is_measured_as_a_graph_once_and_a_failure_is_its_reason(language, monkeypatch):
    asked = []

    def measured(model, batch, tokens, graphs):
        asked.append((batch, tokens, graphs))
        if tokens == 5:
            raise NotCaptured("cannot be captured")
        return 0.001 * tokens

    monkeypatch.setattr(module, "prefill_latency", measured)
    explainer = Explainer(language, Peaks(1e9, 1e9))
    assert [explainer.explain([8] * LAYERS, False).graph for _ in range(3)] == [0.008] * 3
    assert explainer.explain([5] * LAYERS, False).no_graph == "cannot be captured"
    assert explainer.explain([8] * LAYERS, True).no_graph == INSIDE
    assert asked == [(1, 8, True), (1, 5, True)]


def test_a_method_inside_the_model_is_predicted_by_the_tokens_of_each_layer(language):
    explainer = Explainer(language, Peaks(1e9, 1e9))
    tokens = [20, 20, *[4] * (LAYERS - 2)]
    compute = [explainer.explain(of, True).roofline.compute for of in (tokens, [20] * LAYERS)]
    operations = [CONVENTIONS["flops_all"].count(shape_of(language), of, 0) for of in (tokens, [20] * LAYERS)]
    head = 2 * language.model.lm_head.weight.numel()
    assert compute == pytest.approx([(each + head) / 1e9 for each in operations])


def test_the_table_of_a_sweep_names_the_binding_term_and_why_there_is_no_graph():
    on_cpu = explained(0.040, [pair(0.020, 0.003, None, None, "it is on cpu")])
    row = ROW | {"tokens_per_layer_mean": 64.0} | asdict(on_cpu) | {"prefill_ms": 40.0, "prefill_ratio": 0.5}
    note, table = report._explained({"results": [row]})
    assert "No graph (`-`): it is on cpu." in note
    cells = [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]]
    assert cells[:6] == ["before the language model", "64", "64", "40", "-", "20"] and cells[-1] == "compute"
    assert cells[6:-1] == ["0.5", "-", "1.43", "0.75", "1.43"]


def test_what_earlier_versions_measured_is_measured_anew(tmp_path):
    now = Latency(1.0, 2.0, 0.5, 0.7, 0.6, 0.8, **asdict(explained(0.002, [pair(0.02, 0.003, 0.004, 0.016)])))
    before = {name: asdict(now)[name] for name in ("select_ms", "prefill_ms", "prefill_ratio", "latency_ratio")}
    noisy = before | {"latency_low": 0.6, "latency_high": 0.8}
    path = tmp_path / "latency.json"
    path.write_text(json.dumps({"a": {"of": "x"} | before, "b": {"of": "y"} | noisy, "c": {"of": "z"} | asdict(now)}))
    assert latency._saved(path) == {"c": {"of": "z"} | asdict(now)}
