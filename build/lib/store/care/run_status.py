"""How far the evaluations, sweeps and trainings of a run folder are, read from its files alone, also while they are written.

Nothing here opens a model, or torch; damage in a file is the business of the command that reads its content.
"""

import json
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from configs.parsing.strict_yaml import parse

_TAIL = 1 << 16
"""Bytes at the end of a log in which its last line is looked for."""


def run_status(folder: Path) -> dict[str, Any]:
    """Count what lies in a run folder; parts of a run that have not begun are None.

    `cells` are combinations of a method, a budget, positions and a seed, which have a file of predictions each.
    """
    trainings = {path.name: _training(path) for path in sorted(_folders(folder / "pruner"))}
    return {
        "path": str(folder),
        "eval": _evaluation(folder / "eval"),
        "sweep": _sweep(folder / "sweep"),
        "trainings": {name: found for name, found in trainings.items() if found is not None},
    }


def run_folder_of(store: Path) -> Path:
    """Return the run folder that a path means: the path itself, or the folder around the store of a run."""
    looks_like_run = any((store / part).is_dir() for part in ("store", "eval", "sweep", "pruner"))
    return store if looks_like_run else store.parent


def has_begun(found: dict[str, Any]) -> bool:
    """Whether anything lies in the run folder but a store."""
    return bool(found["eval"] or found["sweep"] or found["trainings"])


def as_text(found: dict[str, Any]) -> str:
    """The status for a reader, a line for each part of the run that has begun."""
    lines: list[str] = []
    if (part := found["eval"]) is not None:
        done, begun = part["cells_complete"], part["cells_in_progress"]
        lines.append(f"eval: {done} cells complete, {len(begun)} begun; {part['answers']:,} answers{_summarised(part)}")
        lines += [f"  {cell}: {answers:,} answers so far" for cell, answers in begun.items()]
    if (part := found["sweep"]) is not None:
        rows = "" if part["rows"] is None else f"{part['rows']} rows of results"
        lines.append(f"sweep: {rows or 'begun, its cells are among those of eval'}{_summarised(part)}")
    for name, part in found["trainings"].items():
        if part["trained"]:
            lines.append(f"train {name}: finished, validation accuracy {part['val_accuracy']}{_ago(part)}")
        else:
            of = "" if part["epochs"] is None else f" of {part['epochs']}"
            lines.append(f"train {name}: epoch {part['epoch']}{of}, step {part['step']}{_ago(part)}")
    return "\n".join(lines)


def _evaluation(folder: Path) -> dict[str, Any] | None:
    if not (folder / "predictions").is_dir():
        return None
    files = sorted((folder / "predictions").iterdir())
    begun = {path.name.removesuffix(".jsonl.partial"): path for path in files if path.name.endswith(".jsonl.partial")}
    whole = {path.stem: path for path in files if path.suffix == ".jsonl"}
    lines = {path: _lines(path) for path in (*begun.values(), *whole.values())}
    progress = {cell: lines[path] + (lines[whole[cell]] if cell in whole else 0) for cell, path in begun.items()}
    return {
        "cells_complete": len(whole.keys() - begun.keys()),
        "cells_in_progress": progress,
        "answers": sum(lines.values()),
        "summarised": _is_newer(folder / "summary.json", lines),
        "seconds_since_written": _age(lines),
    }


def _sweep(folder: Path) -> dict[str, Any] | None:
    if not folder.is_dir():
        return None
    summary = _json(folder / "summary.json")
    results = summary.get("results") if summary else None
    return {
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
    last = _last_line(log)
    return {
        "trained": False,
        "epoch": last.get("epoch", 0),
        "step": last.get("step", 0),
        "epochs": _epochs(folder / "config.yaml"),
        "seconds_since_written": _age([log]),
    }


def _epochs(config: Path) -> int | None:
    """Epochs that a training was asked for; None where the config beside it does not say."""
    try:
        epochs = parse(config.read_text(encoding="utf-8"))[0]["train"]["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return epochs if isinstance(epochs, int) else None


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a file, sealed or not; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a log that is an object; empty where there is none."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return cast("dict[str, Any]", found)
    return {}


def _lines(path: Path) -> int:
    """Whole lines of a file, 0 where it is gone by now."""
    try:
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def _folders(folder: Path) -> Iterable[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _age(paths: Iterable[Path]) -> float | None:
    """Seconds since the newest of some files was written."""
    times = [when for path in paths if (when := _written(path)) is not None]
    return max(0.0, time.time() - max(times)) if times else None


def _is_newer(summary: Path, files: Iterable[Path]) -> bool:
    when = _written(summary)
    return when is not None and all((other := _written(path)) is None or other <= when for path in files)


def _summarised(part: dict[str, Any]) -> str:
    return (", summarised" if part["summarised"] else ", not summarised yet") + _ago(part)


def _ago(part: dict[str, Any]) -> str:
    seconds = part["seconds_since_written"]
    return "" if seconds is None else f"; last written {timedelta(seconds=round(seconds))} ago"
