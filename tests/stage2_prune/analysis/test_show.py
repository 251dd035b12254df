"""`show`: a contact sheet of what the tower saw and of what is kept of it."""

import json
import shutil

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from stage2_prune.analysis import sheet, show
from stage2_prune.analysis.sheet import ABSORBED, DROPPED, Band, Panel
from stage2_prune.cli import group
from stage2_prune.errors import CannotShow, NotTrained, PrunerMisused, StoreMismatch, UnknownImage
from store.errors import StoreMissing, TargetExists

NAME = "image_002.png"


@pytest.fixture
def config(tiny, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny().model_dump(mode="json")))
    return path


def invoke(config, *arguments):
    return CliRunner().invoke(group, ["show", "--config", str(config), *map(str, arguments)])


def test_a_sheet_is_drawn_of_several_images_and_methods_and_its_place_is_printed(config, tmp_path):
    out = tmp_path / "sheet.png"
    done = invoke(
        config, NAME, "image_005.png", "--methods", "random,cls_attention,keep_all", "--keep", 3, "--out", out
    )
    assert (done.exit_code, done.stdout) == (0, f"{out}\n"), done.output
    with Image.open(out) as drawn:
        assert drawn.width > 4 * 1.7 * 200 and drawn.height > 2 * 1.7 * 200


def test_by_default_the_configs_methods_that_drop_something_are_shown_at_its_middle_budget(tiny, monkeypatch):
    drawn = {}
    monkeypatch.setattr(sheet, "draw", lambda bands, columns, path, dpi: drawn.update(bands=bands, path=path))
    methods = [{"name": name} for name in ("keep_all", "keep_none", "random", "learned_scorer", "fastv", "hi_prune")]
    experiment = tiny(prune__methods=methods, prune__budgets=[2, 12, 5])
    shown = show.run(experiment, show.PictureRequest((NAME,)))
    (band,) = drawn["bands"]
    assert [panel.title for panel in band.panels] == ["random"] and int(band.panels[0].kept.sum()) == 5
    assert (band.title, band.question) == (NAME, "what color is it ?") and band.picture.shape == (56, 56, 3)
    assert drawn["path"] == experiment.run_dir / "selection" / "show-image_002-5.png"
    said = " ".join(shown.left_out)
    assert "fastv is not shown: drops tokens inside" in said and "make train" in said and "received_attention" in said


def test_what_was_asked_for_by_name_and_cannot_be_shown_is_an_error(tiny):
    with pytest.raises(CannotShow, match="fastv is not shown: drops tokens inside"):
        show.run(tiny(), show.PictureRequest((NAME,), methods=("random", "fastv")))
    with pytest.raises(CannotShow, match="name some with --methods"):
        show.run(tiny(prune__methods=[{"name": "keep_all"}]), show.PictureRequest((NAME,)))


def test_an_untrained_method_is_asked_to_be_trained_after_the_others_were_drawn(config, tmp_path):
    out = tmp_path / "sheet.png"
    done = invoke(config, NAME, "--methods", "random,learned_scorer", "--keep", 3, "--out", out)
    assert done.stdout == f"{out}\n" and out.is_file()
    assert isinstance(done.exception, NotTrained) and done.exception.exit_code == 5
    assert "expected trained weights of learned_scorer in" in str(done.exception) and "make train" in str(
        done.exception
    )
    alone = invoke(config, NAME, "--methods", "learned_scorer", "--keep", 3, "--out", tmp_path / "other.png")
    assert isinstance(alone.exception, NotTrained) and not (tmp_path / "other.png").exists()


def test_an_image_that_the_store_does_not_know_is_told_its_neighbours(config):
    done = invoke(config, "image_02.png")
    assert isinstance(done.exception, UnknownImage) and done.exception.exit_code == 2
    assert "it has no image_02.png: it has image_00" in str(done.exception)


def test_an_unknown_method_and_a_budget_of_more_patches_than_there_are_are_refused(config):
    assert "no such pruner (got 'rondom'): did you mean random?" in str(
        invoke(config, NAME, "--methods", "rondom").exception
    )
    done = invoke(config, NAME, "--keep", 17)
    assert isinstance(done.exception, PrunerMisused) and "at most 16 visual tokens" in str(done.exception)


def test_a_store_that_is_not_there_is_exit_code_5(config, tmp_path):
    done = invoke(config, NAME, "--store.path", tmp_path / "none")
    assert isinstance(done.exception, StoreMissing) and done.exception.exit_code == 5


def test_a_picture_that_is_there_is_not_replaced_silently(tiny, tmp_path):
    out = tmp_path / "mine.png"
    out.write_bytes(b"mine")
    wanted = show.PictureRequest((NAME,), ("random",), 3, dpi=50)
    with pytest.raises(TargetExists, match="--overwrite"):
        show.run(tiny(), wanted, out)
    assert out.read_bytes() == b"mine"
    show.run(tiny(), wanted, out, overwrite=True)
    drawn = out.read_bytes()
    assert drawn.startswith(b"\x89PNG")
    show.run(tiny(), wanted, out, overwrite=True)
    assert out.read_bytes() == drawn


def test_an_image_that_is_another_by_now_is_not_shown_as_the_one_that_was_encoded(home, tiny, tmp_path):
    images = shutil.copytree(home / "data" / "images", tmp_path / "images")
    Image.new("RGB", (64, 64)).save(images / NAME)
    with pytest.raises(StoreMismatch, match="has changed since"):
        show.run(tiny(data__images=str(images)), show.PictureRequest((NAME,), ("random",), 3))


def test_a_question_of_ones_own_is_asked_instead_of_the_files(home, tiny, tmp_path, monkeypatch):
    rows = [json.loads(line) for line in (home / "data" / "questions.jsonl").read_text().splitlines()]
    next(row for row in rows if row["image"] == NAME)["patches"] = [5, 6]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bands = []
    monkeypatch.setattr(sheet, "draw", lambda drawn, *_: bands.extend(drawn))
    for question in (None, "is it big ?"):
        show.run(tiny(data__questions=str(path)), show.PictureRequest((NAME,), ("random",), 3, question))
    assert [band.question for band in bands] == ["what color is it ?", "is it big ?"]
    assert bands[0].asked.ravel().nonzero()[0].tolist() == [5, 6] and bands[1].asked is None


def marked(*places):
    found = np.zeros(16, dtype=bool)
    found[list(places)] = True
    return found.reshape(4, 4)


def test_kept_patches_are_shown_as_they_are_and_the_others_darker_in_a_sheet_of_any_size(monkeypatch, tmp_path):
    picture = np.random.default_rng(0).random((40, 80, 3))
    panel = Panel("one", "3", marked(0, 5), marked(5), marked(10))
    shown = []
    monkeypatch.setattr(sheet, "_show", lambda axes, pixels, title, note: shown.append(pixels))
    band = Band("a", "?" * 500, picture, marked(1, 2), [panel] * 4)
    sheet.draw([band, Band("b", "", picture, None, [panel])], 3, tmp_path / "sheet.png", dpi=50)
    assert len(shown) == 7
    patches = shown[1].reshape(4, 10, 4, 20, 3).swapaxes(1, 2).reshape(16, 10, 20, 3)
    original = picture.reshape(4, 10, 4, 20, 3).swapaxes(1, 2).reshape(16, 10, 20, 3)
    grey = (original @ [0.299, 0.587, 0.114])[..., None]
    assert np.array_equal(patches[[0, 5]], original[[0, 5]])
    assert np.allclose(patches[1], DROPPED[0] * grey[1])
    assert np.allclose(patches[10], ABSORBED[0] * (ABSORBED[1] * original[10] + (1 - ABSORBED[1]) * grey[10]))
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_another_kind_than_png_is_refused_before_any_work(config, tmp_path):
    done = invoke(config, NAME, "--store.path", tmp_path / "none", "--out", tmp_path / "k.xyz")
    assert isinstance(done.exception, CannotShow) and done.exception.exit_code == 2
    assert "expected a name that ends with .png as --out, got" in str(done.exception)


def test_a_method_that_is_asked_for_by_name_or_path_has_the_parameters_that_the_config_gives_it(tiny, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\nfrom stage2_prune.pruners.first_last import FirstLast\n\n"
        "@dataclass(frozen=True)\nclass Mine(FirstLast):\n    pass\n"
    )
    last = {"end": "last"}
    experiment = tiny(
        prune__methods=[{"name": str(path), **last}, {"name": "first_last"}, {"name": "first_last", **last}]
    )

    def drawn(name):
        methods = show._methods(experiment, [name])
        return {label: pruner.parameters() for label, pruner in methods.items()}

    assert drawn(str(path)) == drawn(f"{tmp_path}/../{tmp_path.name}/mine.py") == drawn("mine") == {"mine": last}
    assert drawn("first_last") == {"first_last": {"end": "first"}}
    assert drawn("first_last@end=last") == {"first_last@end=last": last}
