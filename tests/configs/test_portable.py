"""Files that are meant to be shared name no path of the machine that wrote them, and still lead to the same places."""

import shutil
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from configs.cli import run_to_exit_code
from configs.errors import ConfigError
from configs.experiment import Experiment, Method
from configs.files import portable
from configs.load import load, save_resolved
from stage1_extract.cli import group as stage1
from stage2_prune.cli import group as stage2
from store.cli import group as store_group
from store.layout.fingerprint import Fingerprint, spelt_as, without_paths
from store.reading.reader import FeatureStore
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions


def run(group, *arguments) -> int:
    return run_to_exit_code(lambda: group.main(list(map(str, arguments)), standalone_mode=False))


def experiment(folder: Path, **changes) -> Experiment:
    content = {
        "name": "tiny",
        "run_dir": str(folder / "runs" / "tiny"),
        "model": {"checkpoint": str(folder / "checkpoint"), "device": "cpu"},
        "data": {"images": str(folder / "data" / "images"), "questions": str(folder / "data" / "questions.jsonl")},
        "prune": {
            "methods": ["keep_all", {"name": "learned_scorer", "weights": str(folder / "weights")}],
            "budgets": [4],
        },
        **changes,
    }
    return Experiment.model_validate(content)


@pytest.fixture
def home(tmp_path):
    """A folder of a user whose name is nobody's business, with a checkpoint, data and a config of absolute paths."""
    folder = tmp_path / "home" / "alice"
    tiny_llava(folder / "checkpoint")
    tiny_questions(folder / "data", images=3)
    content = experiment(folder).model_dump(mode="json") | {
        "prune": {"methods": ["keep_all", "learned_scorer"], "budgets": [4]}
    }
    content["train"] = {"epochs": 0, "min_keep": 2, "max_keep": 8, "val_keep": 4}
    content["eval"]["max_new_tokens"] = 2
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_a_saved_config_leads_to_the_same_places_from_wherever_it_is_read_and_moves_with_its_folder(
    tmp_path, monkeypatch
):
    wanted = experiment(tmp_path / "a", store={"path": str(tmp_path / "a" / "elsewhere")})
    (tmp_path / "a" / "checkpoint").mkdir(parents=True)
    save_resolved(wanted, wanted.run_dir)
    saved = wanted.run_dir / "config.yaml"
    assert str(tmp_path) not in saved.read_text()
    assert load(saved, {}) == wanted
    monkeypatch.chdir(tmp_path)
    assert load(saved, {}).data.images == Path("a/data/images")
    shutil.move(tmp_path / "a", tmp_path / "b")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert load(tmp_path / "b" / "runs" / "tiny" / "config.yaml", {}) == experiment(
        tmp_path / "b", store={"path": str(tmp_path / "b" / "elsewhere")}
    )


def test_hub_ids_and_urls_stay_as_they_are(tmp_path):
    wanted = experiment(tmp_path, model={"checkpoint": "llava-hf/llava-1.5-7b-hf"}, store={"path": "s3://bucket/store"})
    save_resolved(wanted, wanted.run_dir)
    assert load(wanted.run_dir / "config.yaml", {}) == wanted
    content = yaml.safe_load(portable.redacted((wanted.run_dir / "config.yaml").read_bytes()))
    assert (
        content["model"]["checkpoint"] == "llava-hf/llava-1.5-7b-hf" and content["store"]["path"] == "s3://bucket/store"
    )
    assert content["data"]["images"] == "images" and portable.MARKER not in content


def test_a_config_that_a_person_wrote_or_an_earlier_version_saved_is_read_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "configs" / "x.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({"model": {"checkpoint": "./c"}, "data": {"images": "../data"}}))
    found = load(path, {})
    assert (found.model.checkpoint, found.data.images) == ("./c", Path("../data"))


def test_every_field_that_holds_a_path_is_known():
    def paths(model: type[BaseModel], above: str = ""):
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from paths(kind, f"{above}{name}.")
            elif "Path" in str(kind) and "Method" not in str(kind):
                yield above + name

    assert {*paths(Experiment)} == {*portable.PLACES, *portable.LISTS} - {*portable.OR_A_NAME}
    assert [name for name, field in Method.model_fields.items() if "Path" in str(field.annotation)] == ["weights"]


def test_no_file_that_a_run_or_an_export_writes_names_the_folder_of_its_user(home, monkeypatch, capfd):
    monkeypatch.chdir(home.parent)
    config = home / "tiny.yaml"
    assert run(stage1, "extract", "--config", config) == 0
    for command in ("train", "eval", "analyse", "parity"):
        assert run(stage2, command, "--config", config) == 0, command
    sweep = ["--sweep.methods", "keep_all,random", "--workers", "1", "--rounds", "1", "--prune.seeds", "1"]
    assert run(stage2, "sweep", "--config", config, *sweep) == 0
    store = home / "runs" / "tiny" / "store"
    for form, out in (("hdf5", "out.h5"), ("safetensors", "tensors"), ("archive", "archive"), ("store", "copy")):
        assert run(store_group, "export", store, f"--{form}", home / out) == 0
    written = [
        *(home / "runs").rglob("*"),
        *(home / "archive").rglob("*"),
        *(home / "tensors").rglob("*"),
        home / "out.h5",
    ]
    naming = [path for path in written if path.is_file() and b"alice" in path.read_bytes()]
    assert naming == []
    copy = load(home / "copy" / "config.yaml", {})
    assert copy.data.images == Path("alice/data/images")
    assert run(store_group, "verify", store, "--sources") == 0


def test_a_store_made_elsewhere_under_the_same_name_is_gone_on_with_and_its_fingerprint_stays(home):
    config = home / "tiny.yaml"
    assert run(stage1, "extract", "--config", config) == 0
    store = home / "runs" / "tiny" / "store"
    semantic = FeatureStore.open(store).fingerprint("raw").semantic
    assert semantic["checkpoint"] == "checkpoint/"
    plans = {path: path.read_bytes() for path in (store / "plans").iterdir()}
    moved = home / "there" / "checkpoint"
    shutil.copytree(home / "checkpoint", moved)
    assert run(stage1, "extract", "--config", config, "--model.checkpoint", moved) == 0
    assert {path: path.read_bytes() for path in (store / "plans").iterdir()} == plans


def test_fingerprints_of_earlier_versions_with_whole_paths_are_spelt_as_they_are():
    ours = {"raw": Fingerprint(semantic={"checkpoint": "checkpoint/", "dtype": "float32"}, numeric={})}
    earlier = {"raw": Fingerprint(semantic={"checkpoint": "/home/alice/checkpoint", "dtype": "float32"}, numeric={})}
    assert spelt_as(ours, earlier) == earlier and without_paths(earlier["raw"]) == ours["raw"]
    other = {"raw": Fingerprint(semantic={"checkpoint": "/home/alice/other", "dtype": "float32"}, numeric={})}
    hub = {"raw": Fingerprint(semantic={"checkpoint": "llava-hf/checkpoint", "dtype": "float32"}, numeric={})}
    assert spelt_as(ours, other) == ours and spelt_as(ours, hub) == ours and spelt_as(hub, earlier) == hub


def test_a_config_that_was_changed_is_not_sealed_anew_by_a_copy(home, capsys):
    assert run(stage1, "extract", "--config", home / "tiny.yaml") == 0
    saved = home / "runs" / "tiny" / "store" / "config.yaml"
    saved.write_bytes(saved.read_bytes().replace(b"cpu", b"cpX"))
    for form in ("archive", "store"):
        assert run(store_group, "export", saved.parent, f"--{form}", home / form) == 4
        assert "config.yaml" in capsys.readouterr().err and not (home / form).exists()


def test_a_key_of_that_name_in_a_persons_config_is_an_unknown_key(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({"paths": {"x": 1}, "model": {"checkpoint": "c"}, "data": {"images": "i"}}))
    with pytest.raises(ConfigError, match="paths"):
        load(path, {})
