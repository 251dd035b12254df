"""What parity calls a difference."""

import json
import math

import pytest
import torch

from stage2_prune.parity.differences import Gap, Pair
from stage2_prune.parity.modes import Outcome


def gap(a, b, dtype=torch.float32):
    found = Gap()
    found.add(torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype))
    return found


def test_maximum_and_mean_run_over_all_parts():
    found = gap([1.0, 2.0], [1.0, 2.5])
    found.add(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -1.0]))
    assert found.max_abs == 1 and found.mean_abs == 1.5 / 4 and not found.allclose and not found.bit_equal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_bit_is_a_difference(dtype):
    bits = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    one = torch.tensor([1.0, 3.0], dtype=dtype)
    other = (one.view(bits) + torch.tensor([0, 1], dtype=bits)).view(dtype)
    found = Gap()
    found.add(one, other)
    assert not found.bit_equal and found.max_abs > 0


def test_equal_bits_are_no_difference_even_where_they_are_no_number():
    found = gap([math.nan, math.inf, -0.0], [math.nan, math.inf, -0.0])
    assert found.bit_equal and found.allclose and found.max_abs == found.mean_abs == 0


def test_a_number_against_no_number_is_an_infinite_difference_and_null_in_json():
    found = Pair("a", "b", features=gap([math.nan], [1.0]), logits=gap([1.0], [1.0]))
    assert found.features.max_abs == math.inf and not found.equal
    written = json.dumps(found.as_json(), allow_nan=False)
    assert json.loads(written)["features"]["max_abs_diff"] is None


def test_tensors_of_different_shapes_are_compared_where_they_overlap_and_are_not_equal():
    found = gap([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0]])
    assert found.max_abs == 0 and not found.bit_equal and not found.allclose


def test_a_pair_is_equal_only_if_features_logits_and_tokens_are():
    features, logits, tokens = torch.zeros(1, 2, 3), torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.long)
    pair = Pair("a", "b")
    pair.add({"a": Outcome(features, logits, tokens), "b": Outcome(features, logits, tokens)})
    assert pair.equal
    pair.add({"a": Outcome(features, logits, tokens), "b": Outcome(features, logits, tokens + 1)})
    assert not pair.equal and pair.features.bit_equal and pair.logits.bit_equal and not pair.tokens_equal
