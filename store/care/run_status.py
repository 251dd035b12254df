"""Telling how far the evaluations, sweeps and trainings of a run folder are, from its files alone, even as they are written.

Nothing here opens a model or imports torch. A damaged file is no error here: the command that reads its content reports it.
"""

import json
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from configs.counted import counted
from configs.parsing.strict_yaml import parse
from configs.progress import FILE_SECONDS, PROGRESS, rate_in_words

_TAIL = 1 << 16
"""Bytes at the end of a log that are searched for its last line."""
_QUIET_WRITINGS, _QUIET_UNITS = 12, 40
"""Work counts as stopped if its progress file is older than _QUIET_WRITINGS usual intervals between two writings, and than the
time of _QUIET_UNITS units: slow work writes the file only when a batch is done."""
_UNKNOWN_RATE = 0.1
"""Units per second that work is assumed to do before its first unit is done."""


_OTHER_SPLITS = ("sweep-val", "sweep-train")
_SWEEPS = ("sweep", *_OTHER_SPLITS)
"""The folders of sweeps over the test split and over the other splits."""


def run_status(folder: Path) -> dict[str, Any]:
    """Count what lies in a run folder; a part of the run that has not begun is None.

    A cell is a combination of a method, a budget, positions and a seed; each cell has a file of predictions.
    """
    trainings = {path.name: _training(path) for path in sorted(_folders(folder / "pruner"))}
    return {
        "path": str(folder),
        "eval": _evaluation(folder / "eval"),
        "sweep": _sweep(folder / "sweep"),
        **{name: _sweep(folder / name) for name in _OTHER_SPLITS if (folder / name).is_dir()},
        "trainings": {name: training for name, training in trainings.items() if training is not None},
    }


def run_folder_of(store: Path) -> Path:
    """Return the run folder that `store` means: the path itself if it is a run folder, otherwise the folder around it."""
    looks_like_run = any((store / part).is_dir() for part in ("store", "eval", "sweep", "pruner"))
    return store if looks_like_run else store.parent


def has_begun(progress: dict[str, Any]) -> bool:
    """Say whether the run folder holds anything beside a store."""
    return bool(progress["eval"] or progress["trainings"] or any(progress.get(name) for name in _SWEEPS))


def as_text(progress: dict[str, Any]) -> str:
    """Format the status of a run for a reader: lines for each part of the run that has begun."""
    lines: list[str] = []
    if (part := progress["eval"]) is not None:
        lines += [f"eval: {_cells_as_text(part)}{_summarised(part)}", *_pace_as_text(part, "answers"), *_begun(part)]
    for name in _SWEEPS:
        if (part := progress.get(name)) is None:
            continue
        cells = "begun" if part["cells"] is None else _cells_as_text(part["cells"])
        rows = cells if part["rows"] is None else counted(part["rows"], "row") + " of results"
        lines += [f"{name}: {rows}{_summarised(part)}", *_pace_as_text(part, "answers")]
        lines += [] if part["cells"] is None else _begun(part["cells"])
    for name, part in progress["trainings"].items():
        if part["trained"]:
            lines.append(f"train {name}: finished, validation accuracy {part['val_accuracy']}{_ago(part)}")
        else:
            of = "" if part["epochs"] is None else f" of {part['epochs']}"
            lines.append(f"train {name}: epoch {part['epoch']}{of}, step {part['step']}{_ago(part)}")
            lines += _pace_as_text(part, "steps of this epoch")
    return "\n".join(lines)


def _cells_as_text(part: dict[str, Any]) -> str:
    complete, begun = counted(part["cells_complete"], "cell"), len(part["cells_in_progress"])
    return f"{complete} complete, {begun} begun; {counted(part['answers'], 'answer')}"


def _begun(part: dict[str, Any]) -> list[str]:
    return [f"  {cell}: {counted(answers, 'answer')} so far" for cell, answers in part["cells_in_progress"].items()]


def _pace_as_text(part: dict[str, Any], units: str) -> list[str]:
    """Format how far the work is, and the time left unless the work was stopped; no line for work without a progress file."""
    if (pace := part["progress"]) is None:
        return []
    if pace["stopped"]:
        return [f"  stopped at {pace['done']:,} of {pace['total']:,} {units}"]
    line = f"  {pace['done']:,} of {pace['total']:,} {units}"
    if pace["per_second"] is not None:
        line += f", {rate_in_words(pace['per_second'])}, {timedelta(seconds=round(pace['eta_seconds']))} to go"
    return [line]


def _pace(folder: Path, repeats: int = 0) -> dict[str, Any] | None:
    """Read how far the work is that writes into a folder, and estimate the seconds that are left.

    Args:
        folder: The folder. It holds a progress file while work is under way, and after a Ctrl-C or a kill; in that case the
            file gets old, and the work is `stopped` and has no time to go.
        repeats: How many equal pieces of work follow, such as the remaining epochs of a training.

    """
    content = _json(folder / PROGRESS) or {}
    done, total, rate = (content.get(name) for name in ("done", "total", "per_second"))
    if not (isinstance(done, int) and isinstance(total, int)):
        return None
    rate = rate if isinstance(rate, int | float) and rate > 0 else None
    quiet = max(_QUIET_WRITINGS * FILE_SECONDS, _QUIET_UNITS / (rate or _UNKNOWN_RATE))
    written = content.get("written")
    stopped = isinstance(written, int | float) and time.time() - written > quiet
    eta = None if rate is None or stopped else (total - done + repeats * total) / rate
    return {"done": done, "total": total, "per_second": rate, "eta_seconds": eta, "stopped": stopped}


def _evaluation(folder: Path) -> dict[str, Any] | None:
    if not (folder / "predictions").is_dir():
        return None
    files = sorted((folder / "predictions").iterdir())
    begun = {path.name.removesuffix(".jsonl.partial"): path for path in files if path.name.endswith(".jsonl.partial")}
    whole = {path.stem: path for path in files if path.suffix == ".jsonl"}
    lines = {path: _lines(path) for path in (*begun.values(), *whole.values())}
    answers = {cell: lines[path] + (lines[whole[cell]] if cell in whole else 0) for cell, path in begun.items()}
    return {
        "cells_complete": len(whole.keys() - begun.keys()),
        "cells_in_progress": answers,
        "answers": sum(lines.values()),
        "progress": _pace(folder),
        "summarised": _is_newer(folder / "summary.json", lines),
        "seconds_since_written": _age(lines),
    }


def _sweep(folder: Path) -> dict[str, Any] | None:
    if not folder.is_dir():
        return None
    summary, cells = _json(folder / "summary.json"), _evaluation(folder / "eval")
    results = summary.get("results") if summary else None
    return {
        "cells": cells,
        "progress": _pace(folder),
        "rows": len(cast("list[Any]", results)) if isinstance(results, list) else None,
        "summarised": results is not None,
        "seconds_since_written": _age(path for path in folder.iterdir() if path.is_file()),
    }


def _training(folder: Path) -> dict[str, Any] | None:
    log, record = folder / "log.jsonl", _json(folder / "pruner.json")
    if record is not None and not (folder / "state.safetensors").is_file():
        training = record.get("training")
        accuracy = cast("dict[str, Any]", training).get("val_accuracy") if isinstance(training, dict) else None
        return {"trained": True, "val_accuracy": accuracy, "seconds_since_written": _age([folder / "pruner.json"])}
    if not log.is_file():
        return None
    last, epochs = _last_line(log), _epochs(folder / "config.yaml")
    epoch = last.get("epoch", 0) if isinstance(last.get("epoch"), int) else 0
    under_way = epoch + 1 if last.get("event") == "validation" else epoch
    return {
        "trained": False,
        "epoch": epoch,
        "step": last.get("step", 0),
        "epochs": epochs,
        "progress": _pace(folder, max(0, (epochs or under_way) - under_way)),
        "seconds_since_written": _age([log]),
    }


def _epochs(config: Path) -> int | None:
    """Read how many epochs a training was asked for; None if the config beside it does not say."""
    try:
        epochs = parse(config.read_text(encoding="utf-8"))[0]["train"]["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return epochs if isinstance(epochs, int) else None


def _json(path: Path) -> dict[str, Any] | None:
    """Read the JSON object in a file, sealed or not; None if the file holds no object that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _last_line(path: Path) -> dict[str, Any]:
    """Read the last whole line of a log that is a JSON object; empty if there is no such line."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return cast("dict[str, Any]", value)
    return {}


def _lines(path: Path) -> int:
    """Count the whole lines of a file; 0 if the file is gone by now."""
    try:
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def _folders(folder: Path) -> Iterable[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _written(path: Path) -> float | None:
    """Return the time at which a file was written, in seconds since the epoch; None if the file is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _age(paths: Iterable[Path]) -> float | None:
    """Return the seconds since the newest of some files was written; None if there are no files."""
    times = [written for path in paths if (written := _written(path)) is not None]
    return max(0.0, time.time() - max(times)) if times else None


def _is_newer(summary: Path, files: Iterable[Path]) -> bool:
    """Say whether a summary was written after all of the files that it is made from."""
    summarised = _written(summary)
    return summarised is not None and all(
        (changed := _written(path)) is None or changed <= summarised for path in files
    )


def _summarised(part: dict[str, Any]) -> str:
    return (", summarised" if part["summarised"] else ", not summarised yet") + _ago(part)


def _ago(part: dict[str, Any]) -> str:
    seconds = part["seconds_since_written"]
    return "" if seconds is None else f"; last written {timedelta(seconds=round(seconds))} ago"
