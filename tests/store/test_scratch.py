"""What killed processes leave behind is removed by the next; what living ones are at is not."""

import json
import socket
import subprocess
import sys

import pytest

from store.log.leases import FOLDER
from store.log.scratch import owned_name, remove_of_the_dead, scratch, scratch_folder
from store.writing.aside import written_aside
from store.writing.writer import StoreWriter
from tests.store.stores import image_ids, plan_of, projector, write_store


def killed(script: str) -> None:
    """Run a script that prints a line and waits, and kill it then."""
    process = subprocess.Popen([sys.executable, "-c", script + "\nprint(flush=True)\nimport time; time.sleep(60)"],
                               stdout=subprocess.PIPE)  # fmt: skip
    process.stdout.readline()
    process.kill()
    process.communicate()


def test_a_scratch_folder_of_a_killed_process_is_removed_by_the_next_and_that_of_a_living_one_is_not(tmp_path):
    killed(f"from pathlib import Path; from store.log.scratch import scratch_folder\n"
           f"(scratch_folder('parity', Path({str(tmp_path)!r})) / 'file').write_bytes(b'x')")  # fmt: skip
    left = list(tmp_path.iterdir())
    ours = scratch_folder("other", tmp_path)
    assert len(left) == 1 and left[0].exists()
    with scratch("parity", tmp_path) as folder:
        assert not left[0].exists() and ours.exists() and folder.stat().st_mode & 0o777 == 0o700
        with scratch("parity", tmp_path) as beside:
            assert folder.exists() and beside != folder
    assert list(tmp_path.iterdir()) == [ours]


def test_a_half_written_export_of_a_killed_process_is_removed_by_the_next(tmp_path):
    target = tmp_path / "out[1].h5"  # a name that glob would take for a pattern
    killed(f"from pathlib import Path; from store.writing.aside import written_aside\n"
           f"held = written_aside(Path({str(target)!r})); held.__enter__().write_bytes(b'half')")  # fmt: skip
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    with written_aside(target) as aside:
        aside.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [target.name] and target.read_bytes() == b"whole"


@pytest.mark.parametrize("name", ["parity.zz", "parity", "parity.00000000-1-1.short", "parity-1-2", "x.parity"])
def test_names_that_no_process_of_ours_gave_are_left_alone(tmp_path, name):
    (tmp_path / name).write_bytes(b"somebody's")
    (tmp_path / owned_name("parity")).mkdir()
    remove_of_the_dead(tmp_path, "parity")
    assert len(list(tmp_path.iterdir())) == 2


def test_probes_leases_of_committed_shards_and_leases_that_were_being_taken_away_are_swept(tmp_path):
    ids = image_ids(4)
    path = write_store(tmp_path / "store", plan_of(ids), ids)
    leases = path / FOLDER
    leases.mkdir(exist_ok=True)
    for name in ("leases/.now-0123", ".now-4567", "leases/.1.json.89ab", "features.zarr.partial/raw/zarr.json"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"")
    dead = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": 1, "token": "t"}  # above any pid
    (leases / "0.json").write_text(json.dumps(dead))
    (leases / "note.txt").write_text("somebody's")
    with StoreWriter.open(path, plan_of(ids), ids, projector()) as writer:
        assert writer.missing_shards() == []
    assert [found.name for found in leases.iterdir()] == ["note.txt"]
    assert not list(path.rglob(".now-*")) and not (path / "features.zarr.partial").exists()
