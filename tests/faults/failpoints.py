"""A process that writes a small store, once for each call that it makes to the disk, and is killed before that call.

`python -m tests.faults.failpoints FOLDER` leaves `FOLDER/<n>/store`, cut before call n, and `FOLDER/<n>/cut` that says which
call it was. The last folder has no `cut`: there the work was done before call n.
"""

import io
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from configs.files.atomic import PARTIAL
from store.layout import shard as shard_module
from store.reading.reader import FEATURES
from tests.store.stores import image_ids, plan_of, store_of, write_store

COUNT = 3
"""One full shard of two images, and one of one."""
CALLS = ("replace", "rename", "link", "unlink", "fsync")


def main(folder: Path) -> None:
    """Each try is a child of its own, which SIGKILL ends."""
    for step in count(1):
        here = folder / str(step)
        here.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            die_before(step, here / "cut")
            store_of(here / "store", COUNT)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.waitstatus_to_exitcode(status))


def die_before(step: int, note: Path) -> None:
    """Let this process be killed before its call number `step` to the disk, and note which that is.

    What zarr does in the folder that is renamed as a whole counts as no step: it is in no fixed order.
    """
    seen = 0

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal seen
            place = target(arguments)
            seen += f"{FEATURES}{PARTIAL}/" not in place
            if seen == step:
                note.write_text(f"{name} {place}")
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return run

    os.fsync = lambda descriptor: None  # SIGKILL loses nothing that was written
    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
    shard_module._write_payload = counted("write", shard_module._write_payload)


def target(arguments: tuple[Any, ...]) -> str:
    """The path that a call is about: its last argument, a descriptor of it, or the file that a payload goes to."""
    one = arguments[-1]
    if isinstance(one, int):
        return str(Path(f"/proc/self/fd/{one}").readlink())
    return str(arguments[0].name) if isinstance(arguments[0], io.BufferedWriter) else str(one)


def resume(store: Path) -> None:
    """The same writing again, which goes on."""
    ids = image_ids(COUNT)
    write_store(store, plan_of(ids), ids)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
