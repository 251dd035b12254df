"""Several processes that share an evaluation write the files of one; whatever ends one of them costs nothing but its time."""

import json
import multiprocessing
import os
import signal

import pytest
import torch

from stage2_prune.errors import WorkerFailed
from stage2_prune.evaluation import answering, evaluate
from stage2_prune.evaluation.answering import Answered, workers
from tests.stage2_prune.test_evaluate import files

METHODS = [{"name": name} for name in ("keep_all", "cls_attention", "random", "fastv")]


def wanted(tiny, folder, **section):
    fields = {f"eval__{name}": value for name, value in ({"batch_size": 2} | section).items()}
    return tiny(run_dir=str(folder), prune__methods=METHODS, prune__budgets=[8, 4], **fields)


def results(experiment):
    """The summary without times."""
    rows = json.loads((experiment.run_dir / "eval" / "summary.json").read_text())["results"]
    return [{name: value for name, value in row.items() if not name.startswith("selector_ms")} for row in rows]


@pytest.mark.parametrize(
    "section", [{}, {"share_prefix": True}, {"sort_by_length": True}], ids=["plain", "share_prefix", "sort_by_length"]
)
def test_two_workers_write_the_files_of_one(tiny, tmp_path, section):
    one, two = (wanted(tiny, tmp_path / str(number), workers=number, **section) for number in (1, 2))
    for experiment in (one, two):
        evaluate.run(experiment)
    assert files(one) == files(two) and results(one) == results(two)
    assert not multiprocessing.active_children()


def test_every_worker_does_a_share_on_a_device_of_its_own(tiny, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(answering.Crew, "start", lambda crew, share, device: started.append((share, device)))
    monkeypatch.setattr(answering, "worker_devices", lambda name: ["cuda:0", "cuda:1", "cuda:2"])
    monkeypatch.setattr(answering, "answers_to", lambda session, jobs: iter(jobs))
    experiment = wanted(tiny, tmp_path, workers=3)
    jobs = [answering.Job([number], []) for number in range(8)]
    session = type("Session", (), {"experiment": experiment})
    own = list(answering.shared_answers(session, jobs))
    shares = [[batch for batch, _ in share.jobs] for share, _ in started]
    assert [job.questions for job in own] == [[0], [1]] and shares == [[[2], [3], [4]], [[5], [6], [7]]]
    assert [device for _, device in started] == ["cuda:1", "cuda:2"]
    assert {share.threads for share, _ in started} == {torch.get_num_threads()}


def test_there_is_a_worker_for_each_gpu_one_on_a_cpu_and_none_without_a_batch(tiny, tmp_path, monkeypatch):
    assert workers(wanted(tiny, tmp_path), 9) == 1
    monkeypatch.setattr(answering, "worker_devices", lambda name: ["cuda:0", "cuda:1", "cuda:2"])
    assert [workers(wanted(tiny, tmp_path), jobs) for jobs in (9, 2, 0)] == [3, 2, 1]
    assert workers(wanted(tiny, tmp_path, workers=2), 9) == 2


def test_a_worker_that_is_killed_ends_the_run_and_the_next_one_goes_on_to_the_same_files(tiny, tmp_path, monkeypatch):
    whole, broken = (wanted(tiny, tmp_path / name, workers=2) for name in ("whole", "broken"))
    evaluate.run(whole)
    answered_of = answering.Crew.answered

    def killing(crew, wait_for_more=False):
        for answered in answered_of(crew, wait_for_more):
            yield answered
            if wait_for_more:  # this process has done its own share
                os.kill(next(iter(crew.members.values())).pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(answering.Crew, "answered", killing)
        with pytest.raises(WorkerFailed, match="a worker ended by signal 9") as caught:
            evaluate.run(broken)
    assert caught.value.exit_code == 75 and not multiprocessing.active_children()
    begun = list((broken.run_dir / "eval" / "predictions").iterdir())
    assert begun and all(path.name.endswith(".partial") for path in begun)
    evaluate.run(wanted(tiny, tmp_path / "broken", workers=1))
    assert files(broken) == files(whole) and results(broken) == results(whole)


def test_ctrl_c_leaves_no_worker_behind_and_a_run_with_another_number_goes_on(tiny, tmp_path, monkeypatch):
    whole, broken = wanted(tiny, tmp_path / "whole"), wanted(tiny, tmp_path / "broken", workers=2)
    evaluate.run(whole)
    taken, add = [], evaluate.Progress.add

    def interrupted(progress, answered: Answered):
        add(progress, answered)
        taken.append(answered)
        if len(taken) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate.Progress, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(broken)
    assert not multiprocessing.active_children()
    evaluate.run(wanted(tiny, tmp_path / "broken", workers=3))
    assert files(broken) == files(whole)
