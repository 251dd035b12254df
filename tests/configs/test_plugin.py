"""A variant is found by the name of a file or an entry point, or by a path; whatever is wrong with it is said to its author."""

import sys

import pytest

from configs import plugin
from configs.cli import run_to_exit_code
from configs.errors import ConfigError
from configs.find_config import load_experiment
from configs.load import load, save_resolved
from configs.variants import variants
from stage2_prune import pruners
from stage2_prune.pruning.pruner import Pruner
from store import projectors
from store.projectors import Projector
from tests.helpers.distributions import install
from tests.helpers.variants import SHORT, config, write


def find(name):
    return plugin.find(pruners, str(name), Pruner)


def test_a_path_is_imported_once_under_a_private_name_and_the_search_path_stays(tmp_path, monkeypatch):
    path = write(tmp_path / "mine.py")
    search = list(sys.path)
    monkeypatch.chdir(tmp_path)
    found = find(path)
    assert found.__name__ == "Mine" and found.__module__.startswith("_encode_once_")
    assert find("mine.py") is found is find("./mine.py") and sys.path == search and "mine" not in sys.modules
    assert find(write(tmp_path / "other" / "mine.py")) is not found


def test_a_file_imports_the_files_beside_it_with_a_dot(tmp_path):
    write(tmp_path / "my-own.v2.py", "from .helper import SIZE\n" + SHORT.replace("= 1", "= SIZE"))
    write(tmp_path / "helper.py", "SIZE = 7\n")
    assert find(tmp_path / "my-own.v2.py")().size == 7 and "helper" not in sys.modules


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import torch\n\nimport torchh\n",
            r"raised ModuleNotFoundError \(No module named 'torchh'\) in .*bad.py, line 3",
        ),
        ("x = 1\ndef f(:\n", r"raised SyntaxError .*bad.py, line 2"),
        ("def f():\n    return {}['key']\n\nf()\n", r"raised KeyError \('key'\) in .*bad.py, line 2"),
        ("import sys\nsys.exit(3)\n", r"raised SystemExit \(3\) in .*bad.py, line 2"),
        ("x = 1\n", r"exactly one Pruner in .*bad.py, it defines none"),
        (SHORT + "class Other(Mine):\n    pass\n", r"exactly one Pruner in .*bad.py, it defines 2 \(Mine, Other\)"),
    ],
)
def test_whatever_a_file_does_becomes_a_sentence_for_its_author(tmp_path, text, said):
    path = write(tmp_path / "bad.py", text)
    for _ in range(2):  # a broken import is not kept
        with pytest.raises(ConfigError, match=said):
            find(path)
    path.write_text(SHORT)
    if "defines" not in said:  # such a file could be imported, and is imported once
        assert find(path).__name__ == "Mine"


def test_a_path_that_is_not_there_gets_the_nearest_file_beside_it(tmp_path):
    write(tmp_path / "my_pruner.py")
    with pytest.raises(ConfigError, match=r"there is none: did you mean my_pruner\.py\?"):
        find(tmp_path / "my_prunner.py")


def test_an_entry_point_names_a_module_or_a_class(site):
    modules = {"published_by_me": SHORT, "two_by_me": SHORT + "class Two(Mine):\n    pass\n"}
    install(site, "my-methods", modules, pruners={"one": "published_by_me", "two": "two_by_me:Two"})
    assert find("one").__name__ == "Mine" and find("two").__name__ == "Two"
    everything = plugin.find_all(pruners, Pruner)
    assert {"one", "two", "keep_all"} <= set(everything) and len(everything) == len(list(everything))
    with pytest.raises(ConfigError, match=r"no such pruner \(got 'onee'\): did you mean one\?"):
        find("onee")


def test_a_name_that_is_taken_twice_is_refused_and_both_are_named(site):
    install(
        site, "my-methods", {"published_by_me": SHORT}, pruners={"random": "published_by_me", "one": "published_by_me"}
    )
    install(site, "her-methods", {}, pruners={"one": "published_by_me"})
    with pytest.raises(
        ConfigError, match=r"pruners/random\.py and the entry point random of my-methods both have that name"
    ):
        find("random")
    with pytest.raises(ConfigError, match=r"the entry point one of (my|her)-methods and .* one of (my|her)-methods"):
        find("one")
    assert find("keep_all").__name__ == "KeepAll"


def test_an_entry_point_that_cannot_be_imported_is_named_with_its_distribution(site):
    install(
        site, "my-methods", {"broken_by_me": "import torchh\n"}, pruners={"one": "broken_by_me", "two": "nowhere:X"}
    )
    for name, module in (("one", "torchh"), ("two", "nowhere")):
        with pytest.raises(
            ConfigError,
            match=rf"point {name} of my-methods .*No module named '{module}'.*: uninstall my-methods",
        ):
            find(name)


def test_what_a_store_names_runs_no_code_from_elsewhere(tmp_path):
    path = write(tmp_path / "evil.py", "raise SystemExit\n")
    with pytest.raises(ConfigError, match="no such projector"):
        plugin.find(projectors, str(path), Projector)


def test_a_path_of_a_config_is_looked_up_beside_the_config_and_that_of_a_flag_in_the_current_folder(
    tmp_path, monkeypatch
):
    write(tmp_path / "configs" / "mine.py")
    monkeypatch.chdir(tmp_path)
    classes = plugin.find_all(pruners, Pruner)
    for methods in (["mine.py"], "keep_all,mine.py", [{"name": "mine.py", "size": 2}]):
        path = config(tmp_path / "configs", prune={"methods": methods}, sweep={"methods": ["mine.py"]})
        experiment = load(path, {}, classes)
        assert experiment.prune.methods[-1].name == "configs/mine.py" == experiment.sweep.methods[0]
        assert experiment.prune.methods[-1].known_as == "mine"
    given = load(path, {"prune.methods": "configs/mine.py"}, classes)
    assert given.prune.methods[0].name == "configs/mine.py"
    with pytest.raises(ConfigError, match=r"--prune.methods.0.name: expected a file at mine.py, there is none"):
        load(path, {"prune.methods": "mine.py"}, classes)


def test_a_saved_config_leads_to_the_file_from_wherever_it_is_read(tmp_path, monkeypatch):
    write(tmp_path / "mine.py")
    model = {"checkpoint": "x", "tower": "tower.py", "language_family": "llava"}
    monkeypatch.chdir(tmp_path)
    methods = ["mine.py", {"name": "combination", "before": "mine.py"}]
    experiment = load(config(tmp_path, model=model, prune={"methods": methods}), {}, plugin.find_all(pruners, Pruner))
    save_resolved(experiment, tmp_path / "runs" / "exp")
    saved = (tmp_path / "runs" / "exp" / "config.yaml").read_text()
    assert "../../mine.py" in saved and "../../tower.py" in saved and str(tmp_path) not in saved
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = load(tmp_path / "runs" / "exp" / "config.yaml", {}, plugin.find_all(pruners, Pruner))
    names = [again.prune.methods[0].name, again.prune.methods[1].parameters["before"], again.model.tower]
    assert names == [str(tmp_path / "mine.py")] * 2 + [str(tmp_path / "tower.py")]
    assert again.model.language_family == "llava"


def test_the_parameters_of_a_file_are_validated_and_its_code_is_blamed_where_the_config_names_it(tmp_path):
    write(tmp_path / "mine.py")
    write(tmp_path / "bad.py", "import torchh\n")
    methods = [{"name": "mine.py", "sise": 2}, "bad.py", "keep_al"]
    with pytest.raises(ConfigError) as caught:
        load(config(tmp_path, prune={"methods": methods}), {}, plugin.find_all(pruners, Pruner))
    said = str(caught.value)
    assert "3 problems" in said and "prune.methods.0.sise: unknown key: did you mean size?" in said
    assert "prune.methods.1.name: expected a file" in said and "bad.py, line 1" in said
    assert "prune.methods.2.name: no such pruner (got 'keep_al'): did you mean keep_all?" in said


def test_a_files_name_that_cannot_begin_a_files_name_needs_a_label(tmp_path):
    write(tmp_path / "my pruner.py")
    classes = plugin.find_all(pruners, Pruner)
    with pytest.raises(ConfigError, match="expected letters, digits"):
        load(config(tmp_path, prune={"methods": ["my pruner.py"]}), {}, classes)
    methods = [{"name": "my pruner.py", "label": "mine"}]
    assert load(config(tmp_path, prune={"methods": methods}), {}, classes).prune.methods[0].known_as == "mine"


def test_a_parameter_of_a_file_is_varied_by_the_name_that_tables_have_for_it(tmp_path):
    write(tmp_path / "mine.py")
    classes = plugin.find_all(pruners, Pruner)
    sweep = {"methods": ["mine.py"], "vary": {"mine.size": [1, 2], "end": "every"}}
    made, problems = variants(load(config(tmp_path, sweep=sweep), {}, classes), classes)
    assert not problems and {(method.known_as, *method.parameters.values()) for method in made} == {
        ("mine", end, size) for end in ("first", "last") for size in (1, 2)
    }


def test_what_a_file_raises_while_it_runs_is_a_sentence_too_and_a_bug_of_this_project_a_traceback(tmp_path, capsys):
    path = write(tmp_path / "mine.py", SHORT + "    def select(self, tokens, keep):\n        return tokens.nothing\n")
    assert run_to_exit_code(lambda: find(path)().select(None, 1)) == 2
    said = capsys.readouterr().err
    assert "error: " in said.splitlines()[-1] and "mine.py, line 9 raised AttributeError" in said.splitlines()[-1]
    assert said.startswith("Traceback") and "return tokens.nothing" in said  # for the author of the file
    with pytest.raises(ZeroDivisionError):
        run_to_exit_code(lambda: 1 // 0)


def test_an_experiment_from_python_takes_paths_from_the_current_folder(tmp_path, monkeypatch):
    write(tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment("demo", plugin.find_all(pruners, Pruner), prune__methods=["mine.py"])
    assert experiment.prune.methods[0].name == "mine.py"
