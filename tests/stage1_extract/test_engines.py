"""Whoever calls the workers, the bytes are the same; a worker that dies, hangs or is stopped costs nothing but its time."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from configs.errors import ConfigError
from configs.experiment import Experiment
from stage1_extract.engines.joined import in_turn
from stage1_extract.engines.ray import why_it_died
from stage1_extract.engines.slurm import check_parameters
from stage1_extract.extract import extract
from store.care.compare import differences_between
from store.care.status import status
from store.log.commits import read_commits
from store.log.leases import live_leases
from store.log.processes import process_start
from tests.helpers.broken import DIE, HANG, breaking, site_of
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_images

ROOT = Path(__file__).parents[2]
IMAGES = 23


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A checkpoint, images, and the store that one worker makes of them."""
    folder = tmp_path_factory.mktemp("engines")
    tiny_llava(folder / "checkpoint")
    tiny_images(folder / "images", IMAGES)
    extract(experiment(folder, folder / "whole"), overwrite=False)
    return folder


def experiment(home: Path, run_dir: Path, **fields) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(run_dir),
            "model": {"checkpoint": str(home / "checkpoint"), "device": "cpu"},
            "data": {"images": str(home / "images")},
            "store": {"shard_images": 4},
            "extract": {"tower_batch": 2} | fields,
        }
    )


def command(wanted: Experiment, folder: Path, *flags: str) -> list[str]:
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    return [sys.executable, "-m", "stage1_extract", "extract", "--config", str(config), *flags]


def run(wanted: Experiment, folder: Path, *flags: str, broken: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command line; `broken` is code that every process of it runs first."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if broken is not None:
        environment |= site_of(folder, broken)
    return subprocess.run(
        command(wanted, folder, *flags), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_shard_is_tried_by_every_worker_its_own_share_first(workers):
    shards = list(range(7))
    for index in range(workers):
        turns = in_turn(shards, index, workers)
        assert sorted(turns) == shards
        own = shards[index::workers]
        assert turns[: len(own)] == own


def test_two_local_workers_make_the_bytes_of_one(home, tmp_path):
    wanted = experiment(home, tmp_path / "run", workers=2)
    done = run(wanted, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tower_images"] == IMAGES
    assert differences_between(home / "whole" / "store", wanted.store_path) == []
    assert live_leases(wanted.store_path, 300.0) == {} and status(wanted.store_path)["images_committed"] == IMAGES


def test_static_workers_encode_their_share_and_a_run_without_an_index_the_rest(home, tmp_path):
    wanted = experiment(home, tmp_path / "run")
    first = extract(experiment(home, tmp_path / "run", worker_index=0, num_workers=3), overwrite=False)
    assert first["shards_written"] == 2 and sorted(read_commits(wanted.store_path)) == [0, 3]
    second = extract(experiment(home, tmp_path / "run", worker_index=1, num_workers=3), overwrite=False)
    assert second["shards_written"] == 2 and sorted(read_commits(wanted.store_path)) == [0, 1, 3, 4]
    extract(wanted, overwrite=False)
    assert differences_between(home / "whole" / "store", wanted.store_path) == []


def test_static_workers_side_by_side_make_the_bytes_of_one(home, tmp_path):
    wanted = experiment(home, tmp_path / "run")
    (tmp_path / "config.yaml").write_text("")
    share = [command(wanted, tmp_path, "--worker-index", str(i), "--num-workers", "2") for i in range(2)]
    workers = [subprocess.Popen(one, cwd=ROOT, stderr=subprocess.PIPE, text=True) for one in share]
    ended = [(worker.communicate(timeout=200)[1], worker.returncode) for worker in workers]
    assert [code for _, code in ended] == [0, 0], ended
    assert differences_between(home / "whole" / "store", wanted.store_path) == []


def test_an_index_without_a_number_of_workers_is_exit_2(home, tmp_path):
    done = run(experiment(home, tmp_path / "run"), tmp_path, "--worker-index", "1")
    assert done.returncode == 2 and "both or neither" in done.stderr


def test_a_killed_worker_is_replaced_and_its_shard_done_by_another(home, tmp_path):
    wanted = experiment(home, tmp_path / "run", workers=2)
    done = run(wanted, tmp_path, broken=breaking(tmp_path, [1], 1, DIE))
    assert done.returncode == 0, done.stderr
    assert "was killed by signal 9 at shard 1" in done.stderr
    assert differences_between(home / "whole" / "store", wanted.store_path) == []


def test_what_a_killed_worker_left_half_written_is_gone_when_the_run_ends(home, tmp_path):
    # A kill may come while the files of the shard before are written.
    half = (
        "half = self.writer.path / 'features.zarr' / 'raw' / 'c' / 'late.partial'; "
        "half.parent.mkdir(parents=True, exist_ok=True); half.write_bytes(b'half')"
    )
    wanted = experiment(home, tmp_path / "run", workers=2)
    done = run(wanted, tmp_path, broken=breaking(tmp_path, [1], 1, f"{half}; {DIE}"))
    assert done.returncode == 0, done.stderr
    assert "was killed by signal 9" in done.stderr
    assert list(wanted.store_path.rglob("*.partial")) == []


def test_a_shard_on_which_workers_die_three_times_is_given_up_and_the_others_are_done(home, tmp_path):
    wanted = experiment(home, tmp_path / "run", workers=2)
    done = run(wanted, tmp_path, broken=breaking(tmp_path, [1], 99, DIE))
    assert done.returncode == 3, done.stderr
    assert "shard 1 was given up" in done.stderr and "3 times" in done.stderr
    assert sorted(read_commits(wanted.store_path)) == [0, 2, 3, 4, 5]
    assert extract(experiment(home, tmp_path / "run"), overwrite=False)["shards_written"] == 1
    assert differences_between(home / "whole" / "store", wanted.store_path) == []


def test_a_hung_worker_is_killed_and_replaced(home, tmp_path):
    wanted = experiment(home, tmp_path / "run", workers=2, stall_seconds=12.0)
    done = run(wanted, tmp_path, broken=breaking(tmp_path, [2], 1, HANG))
    assert done.returncode == 0, done.stderr
    assert "made no progress in 1" in done.stderr
    assert differences_between(home / "whole" / "store", wanted.store_path) == []


@pytest.mark.usefixtures("real_python")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stopped_run_leaves_no_worker_and_no_lease(home, tmp_path, number, code):
    wanted = experiment(home, tmp_path / "run", workers=2)
    environment = os.environ | site_of(tmp_path, breaking(tmp_path, [0, 1, 2], 99, "time.sleep(0.1)"))
    process = subprocess.Popen(
        command(wanted, tmp_path), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not (wanted.store_path / "commits").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.send_signal(number)
    began = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert time.monotonic() - began < 10, said
    time.sleep(1)  # multiprocessing's own tracker leaves a moment after its parent
    assert children and not [pid for pid in children if process_start(int(pid)) is not None]
    assert live_leases(wanted.store_path, 300.0) == {}
    extract(experiment(home, tmp_path / "run"), overwrite=False)
    assert differences_between(home / "whole" / "store", wanted.store_path) == []


def test_an_error_of_a_worker_ends_the_run_with_the_same_exit_code(home, tmp_path):
    wanted = experiment(home, tmp_path / "run", workers=2)
    broken = breaking(tmp_path, [0], 9, "from store.errors import NonFinite; raise NonFinite('row 0 is infinite')")
    done = run(wanted, tmp_path, broken=broken)
    assert done.returncode == 3 and "row 0 is infinite" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
def test_slurm_jobs_make_the_bytes_of_one_worker(home, tmp_path):
    wanted = experiment(home, tmp_path / "run", engine="slurm", workers=2, slurm={"cluster": "local", "timeout_min": 5})
    done = run(wanted, tmp_path)
    assert done.returncode == 0, done.stderr
    assert differences_between(home / "whole" / "store", wanted.store_path) == []


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
def test_a_preempted_slurm_job_is_put_back_into_the_queue_and_goes_on(home, tmp_path):
    wanted = experiment(
        home, tmp_path / "run", engine="slurm", workers=2, slurm={"cluster": "local", "timeout_min": 30}
    )
    preempted = "os.kill(os.getpid(), signal.SIGUSR2)"  # what SLURM is told to send before it takes a machine away
    done = run(wanted, tmp_path, broken=breaking(tmp_path, [1], 1, preempted))
    assert done.returncode == 0, done.stderr
    logs = [path for path in (wanted.run_dir / "slurm").iterdir() if path.suffix in {".err", ".out"}]
    said = "".join(path.read_text() for path in logs)
    assert "this job is preempted" in said and "Requeued job" in said
    assert differences_between(home / "whole" / "store", wanted.store_path) == []
    assert live_leases(wanted.store_path, 300.0) == {}


@pytest.fixture
def ray_cluster(monkeypatch, tmp_path):
    """Two nodes of one processor each, so that two actors cannot be on the same; one dies at shard 1."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    from ray.cluster_utils import Cluster

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(breaking(tmp_path, [1], 1, DIE))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


def test_ray_actors_on_two_nodes_make_the_bytes_of_one_worker_though_one_of_them_is_killed(home, tmp_path, ray_cluster):
    wanted = experiment(home, tmp_path / "run", engine="ray", workers=2)
    done = run(wanted, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the actor at shard 1 died: The actor is dead because its worker process has died" in done.stderr
    assert differences_between(home / "whole" / "store", wanted.store_path) == []


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_ray_actor_that_cannot_be_started_is_given_up_with_the_error_that_kept_it_from_starting(home, tmp_path):
    wanted = experiment(home, tmp_path / "run", engine="ray", workers=2)
    broken = """
import sys
if any("default_worker" in argument for argument in sys.orig_argv):
    sys.modules["safetensors"] = None
"""
    done = run(wanted, tmp_path, broken=broken)
    assert done.returncode == 3, done.stderr
    assert "error: an actor could not be started: ModuleNotFoundError: import of safetensors halted" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_without_memory_is_named_as_the_reason_and_ray_s_pages_of_advice_are_not():
    ray = pytest.importorskip("ray")
    report = "Task was killed due to the node running low on memory.\nMemory on the node was 23/24 GB …\nConsider provisioning"
    assert why_it_died(ray.exceptions.OutOfMemoryError(report)) == report.splitlines()[0]


def test_another_number_of_workers_and_another_engine_go_on_to_the_same_bytes(home, tmp_path):
    extract(experiment(home, tmp_path / "run", worker_index=2, num_workers=4), overwrite=False)
    wanted = experiment(home, tmp_path / "run", workers=2)
    assert run(wanted, tmp_path).returncode == 0
    assert differences_between(home / "whole" / "store", wanted.store_path) == []


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"slurm_partion": "gpu"}, "did you mean slurm_partition"),
        ({"timeout_min": "five"}, "extract.slurm.timeout_min: expected a value of type int, got 'five'"),
        ({"cluster": "locl"}, "did you mean local"),
    ],
)
def test_a_parameter_that_submitit_would_refuse_is_refused_before_the_store_is_overwritten(
    home, tmp_path, settings, said
):
    shutil.copytree(home / "whole" / "store", tmp_path / "run" / "store")
    wanted = experiment(home, tmp_path / "run", engine="slurm", slurm=settings)
    with pytest.raises(ConfigError, match=said) as caught:
        extract(wanted, overwrite=True)
    assert caught.value.exit_code == 2
    assert differences_between(home / "whole" / "store", wanted.store_path) == []


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
def test_parameters_that_submitit_takes_are_taken():
    check_parameters({"slurm_partition": "gpu", "timeout_min": 5, "mem_gb": 4, "slurm_time": 3, "slurm_mem_gb": 2})


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
@pytest.mark.skipif(shutil.which("srun") is not None, reason="SLURM is here")
def test_on_a_machine_without_slurm_it_is_said_that_the_jobs_run_here(home, tmp_path, caplog):
    wanted = experiment(home, tmp_path / "run", engine="slurm", workers=1)
    extract(wanted, overwrite=False)
    assert sum("this machine has no SLURM" in record.message for record in caplog.records) == 1
