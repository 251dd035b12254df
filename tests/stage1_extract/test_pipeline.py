"""Between tower and disk: rows land in their place, waits are told apart, and a measured dry run says what is slowest."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1_extract.cli import group
from stage1_extract.dry_run import dry_run
from stage1_extract.extract import extract
from stage1_extract.work.decoding import THREADS_ON_CPU, decode_threads
from stage1_extract.work.shard_arrays import QUEUED, ShardArrays
from stage1_extract.work.waits import TELL_SECONDS, Waits
from store.layout.schema import ArraySpec
from store.reading.reader import FeatureStore
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_images
from tests.stage1_extract.test_extract import experiment

SPECS = (
    ArraySpec(name="raw", axes=("patch", "hidden"), shape=(2, 3), dtype="bfloat16"),
    ArraySpec(name="cls_attention", axes=("head", "patch"), shape=(2, 2), dtype="float32"),
)


@given(st.sets(st.integers(0, 11), min_size=1), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_rows_land_at_their_positions_bit_for_bit_however_they_are_batched(positions, batch):
    torch.manual_seed(0)
    made = {
        "raw": torch.randn(12, 2, 3).to(torch.bfloat16),
        "cls_attention": torch.randn(12, 2, 2),
    }
    arrays = ShardArrays(SPECS, 12, torch.device("cpu"), None, {})
    ordered = sorted(positions)
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        arrays.put({name: values[part] for name, values in made.items()}, part)
    finished = arrays.finished()
    assert finished["raw"].dtype == np.uint16 and finished["cls_attention"].dtype == np.float32
    for row in ordered:
        assert finished["raw"][row].tobytes() == made["raw"][row].view(torch.int16).numpy().tobytes()
        assert finished["cls_attention"][row].tobytes() == made["cls_attention"][row].numpy().tobytes()


def test_rows_that_were_right_before_stay_beside_new_ones():
    kept = {spec.name: np.zeros((3, *spec.shape), spec.storage) for spec in SPECS}
    kept["cls_attention"][0] = 7
    arrays = ShardArrays(SPECS, 3, torch.device("cpu"), None, kept)
    arrays.put({"raw": torch.ones(1, 2, 3, dtype=torch.bfloat16), "cls_attention": torch.ones(1, 2, 2)}, [2])
    finished = arrays.finished()["cls_attention"]
    assert (finished[0] == 7).all() and (finished[1] == 0).all() and (finished[2] == 1).all()


class Stream:
    """A stream of a GPU that never gets its work done unless it is waited for."""

    device = torch.device("cpu")

    def __init__(self):
        self.followed = []

    def record_event(self, event=None):
        return event or "made"

    def wait_event(self, event):
        self.followed.append(event)


def test_copies_follow_the_tower_and_only_a_few_calls_are_queued(monkeypatch):
    stream, events = Stream(), []

    class Event:
        def __init__(self, blocking):
            self.done = False
            events.append(self)

        def synchronize(self):
            self.done = True

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    arrays = ShardArrays(SPECS, 6, torch.device("cpu"), stream, {})
    for place in range(6):
        arrays.put({"raw": torch.ones(1, 2, 3), "cls_attention": torch.ones(1, 2, 2)}, [place])
        assert sum(not event.done for event in events) <= QUEUED
    assert stream.followed == ["made"] * 6 and not events[-1].done
    arrays.finished()
    assert events[-1].done


def test_the_largest_wait_is_told_now_and_then_and_all_waits_are_summed():
    now, told = [0.0], []
    waits = Waits(told.append, lambda: now[0])

    def slow(items, seconds):
        for item in items:
            now[0] += seconds
            yield item

    assert list(waits.timed("decode", slow("abc", 0.5))) == ["a", "b", "c"]
    with waits.waiting_for("tower"):
        now[0] += TELL_SECONDS
    assert told == ["tower 57%"]
    with waits.waiting_for("disk"):
        now[0] += 0.25
    assert waits.taken() == {"decode": 1.5, "tower": TELL_SECONDS, "disk": 0.25} and waits.taken() == {}


@pytest.fixture
def wanted(tmp_path):
    tiny_images(tmp_path / "images", 5)
    return experiment(tmp_path / "run", tiny_llava(tmp_path / "checkpoint"), tmp_path / "images")


def test_a_commit_records_what_was_waited_for(wanted):
    extract(wanted, overwrite=False)
    telemetry = [record.telemetry for log in FeatureStore.open(wanted.store_path).logs for record in log.values()]
    assert all({"decode", "tower"} <= each["waited"].keys() for each in telemetry)


def test_a_measured_dry_run_says_rates_the_slowest_leg_and_minutes_and_writes_nothing(wanted, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    measured = dry_run(wanted, measured=True)["measured"]
    rates = measured["images_per_second"]
    assert rates.keys() == {"decode", "tower", "disk"} and measured["sample"] == 5
    assert measured["slowest"] == min(rates, key=rates.get) and measured["device_memory"] is None
    assert sorted(tmp_path.rglob("*")) == before
    for broken in (tmp_path / "images").iterdir():
        broken.write_bytes(b"")
    assert dry_run(wanted, measured=True)["measured"]["sample"] == 0


def test_a_measured_dry_run_is_asked_for_by_both_flags(wanted, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(wanted.model_dump(mode="json")))
    asked = ["extract", "--config", str(config), "--measure"]
    refused = CliRunner().invoke(group, asked)
    assert refused.exit_code == 2 and "add --dry-run" in refused.output
    said = CliRunner().invoke(group, [*asked, "--dry-run"])
    assert said.exit_code == 0 and "measured on 5 images: decode " in said.output and "bound by" in said.output


def test_decoding_threads_are_as_many_as_asked_for_or_few_beside_a_tower_on_the_cpu(wanted):
    cpu, named = torch.device("cpu"), wanted.extract.model_copy(update={"decode_threads": 7})
    assert decode_threads(wanted, cpu) == THREADS_ON_CPU
    assert decode_threads(wanted.model_copy(update={"extract": named}), cpu) == 7
    assert decode_threads(wanted, torch.device("cuda")) >= THREADS_ON_CPU
