from stage2_prune.pruners.hired import Hired
from tests.stage2_prune.pruners.images import clustered, descending, given


def test_attention_is_summed_over_heads():
    # Sums: 0.5, 0.6, 0.4, 0.3, 0.2. The first head alone would keep patches 0 and 2, the second 1 and 3.
    heads = [[0.40, 0.05, 0.35, 0.05, 0.15], [0.10, 0.55, 0.05, 0.25, 0.05]]
    image = given((1, 5), cls_attention=heads)
    assert [Hired().select(image, keep).tolist() for keep in (1, 2, 3, 4)] == [
        [[1]],
        [[0, 1]],
        [[0, 1, 2]],
        [[0, 1, 2, 3]],
    ]


def test_every_budget_is_a_top_k_in_raster_order():
    tokens = clustered(0, (5, 7))
    for image, heads in enumerate(tokens.arrays["cls_attention"].tolist()):
        order = descending({patch: sum(head[patch] for head in heads) for patch in range(35)})
        for keep in range(1, 36):
            assert Hired().select(tokens, keep)[image].tolist() == sorted(order[:keep])
