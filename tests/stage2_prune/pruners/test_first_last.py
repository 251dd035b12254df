import pytest

from stage2_prune.pruners.first_last import FirstLast
from tests.stage2_prune.tokens import visual_tokens


@pytest.mark.parametrize(("end", "kept"), [("first", [0, 1, 2, 3]), ("last", [11, 12, 13, 14])])
def test_one_end_of_the_raster_is_kept(end, kept):
    assert FirstLast(end).select(visual_tokens((3, 5)), 4).tolist() == [kept] * 3
