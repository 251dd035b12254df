"""The process that has imported torch and transformers, and forks off one process for each launcher."""

import fcntl
import gc
import json
import os
import runpy
import select
import selectors
import signal
import socket
import sys
from importlib import import_module
from multiprocessing import spawn
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.helpers.preloaded.launcher import conditions

LIBRARIES = (
    "torch", "transformers", "numpy", "zarr", "pydantic", "yaml", "click", "tqdm", "PIL.Image", "h5py", "safetensors.torch",
    "transformers.models.llava.modeling_llava", "transformers.models.llava.processing_llava",
    "transformers.models.clip.modeling_clip", "transformers.models.clip.image_processing_pil_clip",
    "transformers.models.llama.modeling_llama", "transformers.models.siglip.modeling_siglip",
    "transformers.models.dinov2.modeling_dinov2", "transformers.models.qwen2.modeling_qwen2", "transformers.generation",
    "matplotlib.pyplot",
)  # fmt: skip
ABOVE = 600
"""File descriptors that a forked process keeps for itself while it puts those of its launcher in their places."""


def serve(listener: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for every launcher that connects; returns in the forked processes alone, with the request and its open files."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)  # closes when the tests end
    running: dict[
        int, int
    ] = {}  # process of a descriptor that is watched: the launcher's connection, or the process's own
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                for process in set(running.values()):
                    os.kill(process, signal.SIGKILL)
                sys.exit(0)
            elif key.fileobj is listener:
                connection = listener.accept()[0]
                body, files, _, _ = socket.recv_fds(connection, 1 << 20, 250)
                if not body:  # killed before it asked
                    connection.close()
                    continue
                process = os.fork()
                if process == 0:
                    for watched in [
                        *selector.get_map().values()
                    ]:  # what the collector closed later would be other files by then
                        for value in (watched.fileobj, watched.data):
                            if isinstance(value, socket.socket) and value is not listener:
                                value.close()
                    selector.close()
                    return json.loads(body.decode("utf-8", "surrogateescape")), files
                for descriptor in files:
                    os.close(descriptor)
                watched = os.pidfd_open(process)
                running |= {watched: process, connection.fileno(): process}
                selector.register(watched, selectors.EVENT_READ, connection)
                selector.register(connection, selectors.EVENT_READ)
            elif isinstance(key.data, socket.socket):
                _ended(selector, running, key.fd, key.data)
            elif key.fd in running:
                sent = key.fileobj.recv(16)
                for number in sent or [signal.SIGKILL]:
                    os.kill(running[key.fd], number)
                if not sent:  # the launcher was killed
                    selector.unregister(key.fileobj)


def _ended(selector: selectors.BaseSelector, running: dict[int, int], watched: int, connection: socket.socket) -> None:
    """Tell the launcher how its process ended."""
    _, status = os.waitpid(running.pop(watched), 0)
    selector.unregister(watched)
    os.close(watched)
    running.pop(connection.fileno())
    if connection in selector.get_map():
        selector.unregister(connection)
        connection.send(status.to_bytes(8, "little"))
    connection.close()


def become(request: dict[str, Any], files: list[int], python: str) -> None:
    """Take the open files, folder, environment and arguments of the launcher."""
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, ABOVE) for descriptor in files]
    os.closerange(0, ABOVE)
    for descriptor, number in zip(kept, request["files"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding=sys.stderr.encoding, errors=sys.stderr.errors, closefd=False)  # noqa: SIM115
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = python
    sys.orig_argv[:] = [python, *request["arguments"]]
    spawn.set_executable(python)


def execute(arguments: list[str]) -> None:
    """Run `-m MODULE …` or `-c CODE …`, after an optional `-P`, as the interpreter does."""
    isolated = arguments[0] == "-P"
    kind, what, *rest = arguments[isolated:]
    if not isolated:
        sys.path.insert(0, str(Path.cwd()) if kind == "-m" else "")
    sys.argv[:] = ["-m" if kind == "-m" else "-c", *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = module = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(module))


if __name__ == "__main__":
    address, launcher = Path(sys.argv[1]), sys.argv[2]
    described = {"python": sys.executable, "root": os.environ["PYTHONPATH"], "conditions": conditions()}
    described["conditions"]["terminal"] = [False, False, False]
    (address.parent / "conditions.json").write_text(json.dumps(described), encoding="utf-8")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(address))
        listening.listen(64)
        print("ready", flush=True)
        if 0 in select.select([listening, 0], [], [])[0]:
            sys.exit(0)  # nobody came
        for library in LIBRARIES:
            import_module(library)
        gc.collect()
        gc.freeze()
        request, files = serve(listening)
    become(request, files, launcher)
    execute(request["arguments"])
