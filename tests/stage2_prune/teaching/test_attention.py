"""The attention of a prompt's last token is that of the stock model in eager mode, and is read back by plain zarr."""

import numpy as np
import pytest
import torch
import zarr
from transformers import LlamaForCausalLM

from configs.published_layers import language_layer
from stage2_prune.contract.small_llama import small_language
from stage2_prune.errors import PrunerMisused
from stage2_prune.session.session import open_session
from stage2_prune.teaching import teach
from stage2_prune.teaching.compute import Placed, attention
from stage2_prune.teaching.parts import Asked
from stage2_prune.training.packed import Lesson
from stage2_prune.training.step import make_lesson
from stage2_prune.training.teacher import open_attention
from store.checkpoint.text import Prompt
from store.questions.question import Question, read_questions

PATCHES, LAYERS = 16, 4
LESSONS = [
    Lesson(Prompt((1, 5), (7, 8, 9)), (10, 2)),
    Lesson(Prompt((1, 5), (11, 12)), (13, 14, 2)),
    Lesson(Prompt((1, 5), (7,)), (10, 2)),
]
QUESTION = Question(question_id="q", image="i.png", question="?")


@pytest.fixture(scope="module")
def language():
    return small_language(layers=LAYERS)


@pytest.fixture(scope="module")
def visual(language):
    return torch.randn(PATCHES, language.width, generator=torch.Generator().manual_seed(1))


def placed(lessons):
    return [Placed(Asked(QUESTION, "a" * 64, lesson, str(number)), number) for number, lesson in enumerate(lessons)]


@torch.no_grad()
def eager_attention(language, visual, lesson):
    """What the stock model in eager mode says of one prompt, by layer: the last token on each patch, mean over heads."""
    eager = LlamaForCausalLM._from_config(language.model.config, attn_implementation="eager").eval()
    eager.load_state_dict(language.model.state_dict())
    before, after = torch.tensor(lesson.prompt.before), torch.tensor(lesson.prompt.after)
    embeds = torch.cat([language.embed(before), visual, language.embed(after)])[None]
    seen = eager(inputs_embeds=embeds, output_attentions=True).attentions
    first = len(before)
    return torch.stack([layer[0, :, -1, first : first + len(visual)].mean(0) for layer in seen])


def test_it_equals_stock_eager_attention_in_every_layer_for_questions_that_share_a_pack(language, visual):
    layers = list(range(LAYERS))
    with torch.no_grad():
        rows = attention(layers)(language, visual, placed(LESSONS))
    for lesson, row in zip(LESSONS, rows, strict=True):
        expected = eager_attention(language, visual, lesson)
        assert row["attention"].dtype == np.float32 and expected.std() > 1e-4
        np.testing.assert_allclose(row["attention"][0], expected, rtol=0, atol=1e-5)


def test_no_hook_is_left_in_the_model(language, visual):
    attention([1])(language, visual, placed(LESSONS[:1]))
    assert not any(layer._forward_pre_hooks for layer in language.model.model.layers)


def test_it_is_stored_by_question_at_the_published_layers_and_its_answers_stay_as_they_are(tiny):
    plain = tiny()
    teach.run(plain)
    before = (plain.teacher_path / "answers/plans/0.json").read_bytes()
    experiment = tiny(teach__attention_layers=[16, 8])
    result = teach.run(experiment)
    assert result["computed"] == {"answers": 0, "attention": 12}
    assert (plain.teacher_path / "answers/plans/0.json").read_bytes() == before
    stored = zarr.open_group(experiment.teacher_path / "attention/features.zarr", mode="r")["attention"]
    session = open_session(experiment, frozenset())
    assert stored.shape == (12, 2, session.features.patches) and stored.attrs["published_layers"] == [8, 16]
    values = stored[...]
    assert (values >= 0).all() and (values.sum(-1) <= 1 + 1e-5).all() and (values.sum(-1) > 0).all()
    train = [question for question in read_questions(experiment.data) if question.split == "train"]
    asked = [(session.features.image_id(q), [make_lesson(session.language, q, "")]) for q in train]
    cached = open_attention(session, asked)
    for question, (image_id, lessons) in zip(train, asked, strict=True):
        (batch,) = session.features.batches([[question]])
        expected = eager_attention(session.language, batch.projected[0], lessons[0])
        layers = [language_layer(published, session.language.depth) for published in (8, 16)]
        torch.testing.assert_close(cached.of(image_id, lessons)[0], expected[layers], rtol=0, atol=1e-5)


def test_a_decoder_that_the_layer_loop_does_not_know_is_refused_before_anything_is_computed(tiny, monkeypatch):
    def other(decoder):
        raise PrunerMisused("another decoder")

    monkeypatch.setattr(teach, "require_loop", other)
    experiment = tiny(teach__attention_layers=[16])
    with pytest.raises(PrunerMisused):
        teach.run(experiment)
    assert not experiment.teacher_path.exists()
