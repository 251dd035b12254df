"""Workers that break as told, in whichever process they run: code that every Python process of a run executes first."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
BROKEN = """
import importlib.abc, importlib.util, os, signal, sys, time

def change(worker):
    encode_shard = worker.Worker._encode_shard
    def broken(self, shard, *more):
        marks = {folder!r}
        met = [mark for mark in os.listdir(marks) if mark.startswith(str(shard) + "-")]
        if shard in {shards!r} and len(met) < {times}:
            open(os.path.join(marks, str(shard) + "-" + str(time.time())), "w").close()
            {how}
        return encode_shard(self, shard, *more)
    worker.Worker._encode_shard = broken

class Changing(importlib.abc.MetaPathFinder):  # so that no process pays for imports that it does not make itself
    def find_spec(self, name, path, target=None):
        if name != "stage1_extract.work.worker":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), change(module))
        return spec

sys.meta_path.insert(0, Changing())
"""
DIE, HANG = "os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(1000)"


def breaking(folder: Path, shards: list[int], times: int, how: str) -> str:
    """Code that does `how` where a worker begins with one of `shards`, so often for each."""
    (folder / "marks").mkdir()
    return BROKEN.format(folder=str(folder / "marks"), shards=shards, times=times, how=how)


def site_of(folder: Path, code: str) -> dict[str, str]:
    """The environment in which every Python process executes `code` first."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{folder / 'site'}{os.pathsep}{ROOT}"}
