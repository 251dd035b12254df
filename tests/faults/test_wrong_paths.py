"""A file where a folder belongs, a folder where a file belongs, no permission: a sentence and an exit code, no traceback."""

import os
import re
from importlib import import_module

import pytest

from configs.cli import run_to_exit_code
from tests.faults.runs import trial

WRITES = [
    ("stage1_extract", "extract", "--store.path", "{place}"),
    ("stage1_extract", "extract", "--run-dir", "{place}"),
    ("stage2_prune", "train", "--run-dir", "{place}", "--store.path", "{store}"),
    ("stage2_prune", "eval", "--run-dir", "{place}", "--store.path", "{store}", "--prune.methods", "keep_all"),
    ("stage2_prune", "sweep", "--run-dir", "{place}", "--store.path", "{store}", "--sweep.methods", "keep_all"),
    ("stage2_prune", "parity", "--run-dir", "{place}", "--store.path", "{store}", "--limit", "1"),
    ("stage2_prune", "analyse", "--run-dir", "{place}", "--store.path", "{store}", "--prune.methods", "random"),
    ("store", "export", "{store}", "--hdf5", "{place}/out.h5"),
    ("store", "export", "{store}", "--safetensors", "{place}"),
    ("store", "export", "{store}", "--archive", "{place}"),
    ("store", "export", "{store}", "--store", "{place}"),
]
READS = [
    ("stage1_extract", "extract", "--config", "{place}"),
    ("stage1_extract", "extract", "--data.images", "{place}"),
    ("stage1_extract", "extract", "--data.questions", "{place}"),
    ("stage1_extract", "extract", "--model.checkpoint", "{place}"),
    ("stage1_extract", "verify", "{place}"),
    ("stage1_extract", "diagnose", "{place}"),
    ("stage1_extract", "reference", "{place}"),
    ("stage2_prune", "eval", "--config", "{place}"),
    ("stage2_prune", "eval", "--store.path", "{place}"),
    ("stage2_prune", "eval", "--data.questions", "{place}", "--store.path", "{store}"),
    ("stage2_prune", "compare", "{place}"),
    ("stage2_prune", "show", "00.png", "--store.path", "{place}"),
    ("store", "inspect", "{place}"),
    ("store", "verify", "{place}"),
    ("store", "verify", "--quick", "{place}"),
    ("store", "status", "{place}"),
    ("store", "repair", "{place}"),
    ("store", "compact", "{place}"),
    ("store", "derive", "projected", "{place}"),
    ("store", "drop", "projected", "{place}"),
    ("store", "export", "{place}", "--hdf5", "{out}/a.h5"),
    ("store", "import", "{place}", "{out}/store"),
]
PLACES = ["a file", "inside a file", "an empty folder", "a link to itself", "a long name"]


def place_of(folder, kind):
    """A path of that kind."""
    if kind == "an empty folder":
        (folder / "d").mkdir()
        return folder / "d"
    if kind == "a link to itself":
        (folder / "l").symlink_to(folder / "l")
        return folder / "l"
    if kind == "a long name":
        return folder / ("n" * 300)
    (folder / "f").write_bytes(b"\x89\x00not what belongs here")
    return folder / "f" if kind == "a file" else folder / "f" / "inside"


def said_of(capsys, home, folder, place, package, command, *arguments):
    """The exit code of a command line, and what it says; a traceback fails the test."""
    config = trial(home, folder)
    named = {"place": place, "store": home / "run" / "store", "out": folder}
    typed = [one.format(**named) for one in arguments]
    if "--config" not in typed and (command in ("extract", "train", "eval", "sweep", "parity", "analyse", "show")):
        typed += ["--config", str(config)]
    group = import_module(f"{package}.cli").group
    capsys.readouterr()
    code = run_to_exit_code(lambda: group.main([command, *typed], standalone_mode=False))
    return code, capsys.readouterr().err


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("line", READS, ids=" ".join)
def test_what_is_no_input_of_a_command_is_refused_in_a_sentence(capsys, home, tmp_path, line, kind):
    code, said = said_of(capsys, home, tmp_path, place_of(tmp_path, kind), *line)
    assert code in (2, 3, 4, 5, 7), said
    assert "Error: " in said or "error: " in said or code == 4
    assert not re.search(r"Errno|Traceback", said), said


@pytest.mark.parametrize("kind", ["a file", "inside a file", "a link to itself", "a long name"])
@pytest.mark.parametrize("line", WRITES, ids=" ".join)
def test_what_no_output_can_be_written_to_is_refused_in_a_sentence(capsys, home, tmp_path, line, kind):
    code, said = said_of(capsys, home, tmp_path, place_of(tmp_path, kind), *line)
    assert code in (2, 4, 5, 7), said
    assert "error: " in said and not re.search(r"Errno|Traceback", said), said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("line", [*READS[:3], *READS[4:10], *READS[12:]], ids=" ".join)
def test_what_this_user_may_not_read_is_said_in_a_sentence(capsys, home, tmp_path, line):
    import_module(f"{line[0]}.cli")
    place = tmp_path / "secret"
    place.mkdir()
    trial(home, tmp_path)
    os.seteuid(65534)  # pytest's folders are root's alone
    try:
        code, said = said_without_config(capsys, place, *line)
    finally:
        os.seteuid(0)
    assert code in (2, 4, 5, 7), said
    assert "error" in said.lower() and not re.search(r"Errno|Traceback", said), said


def said_without_config(capsys, place, package, command, *arguments):
    """As `said_of`, with a config that this user may not read either."""
    typed = [one.format(place=place, store=place, out=place) for one in arguments]
    group = import_module(f"{package}.cli").group
    if "--config" not in typed and command in ("extract", "eval", "show"):
        typed += ["--config", str(place.parent / "trial.yaml")]
    capsys.readouterr()
    code = run_to_exit_code(lambda: group.main([command, *typed], standalone_mode=False))
    return code, capsys.readouterr().err
