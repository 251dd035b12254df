"""The process that has imported torch and transformers, and forks off a process for each launcher that connects."""

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
from contextlib import suppress
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
    "matplotlib.pyplot", "pyarrow.parquet",
)  # fmt: skip
ABOVE = 600
"""File descriptors that a forked process keeps for itself while it puts those of its launcher in their places."""


class Launched(Exception):
    """Raised in a forked process, to leave all that belongs to the server."""

    def __init__(self, request: dict[str, Any], files: list[int]) -> None:
        self.request, self.files = request, files


class Server:
    """Waits for launchers, and for the processes that were forked for them."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.selector = selectors.DefaultSelector()
        self.processes: dict[socket.socket, int] = {}
        """The process that runs for each launcher."""
        self.selector.register(listener, selectors.EVENT_READ, self._fork)
        self.selector.register(0, selectors.EVENT_READ, self._end)

    def serve(self) -> None:
        """Serve until standard input is closed, as it is when the tests end."""
        while True:
            for key, _ in self.selector.select():
                if key.fd in self.selector.get_map():  # an event before this one may have ended what this one is about
                    key.data()

    def _fork(self) -> None:
        launcher = self.listener.accept()[0]
        body, files, _, _ = socket.recv_fds(launcher, 1 << 20, 250)
        if not body:  # the launcher was killed before it asked
            launcher.close()
            return
        process = os.fork()
        if process == 0:
            self._leave(launcher)
            raise Launched(json.loads(body), files)
        for descriptor in files:
            os.close(descriptor)
        ended = os.pidfd_open(process)
        self.processes[launcher] = process
        self.selector.register(ended, selectors.EVENT_READ, lambda: self._report(ended, launcher))
        self.selector.register(launcher, selectors.EVENT_READ, lambda: self._pass_on(launcher))

    def _leave(self, launcher: socket.socket) -> None:
        """Close what the garbage collector would close later, when its file descriptors are those of other files."""
        for connection in (launcher, *self.processes):
            connection.close()
        self.selector.close()

    def _pass_on(self, launcher: socket.socket) -> None:
        """Send the process the signals that its launcher got; kill it if the launcher was killed."""
        try:
            sent = launcher.recv(16)
        except OSError:
            sent = b""
        for number in sent or [signal.SIGKILL]:
            os.kill(self.processes[launcher], number)
        if not sent:
            self.selector.unregister(launcher)

    def _report(self, ended: int, launcher: socket.socket) -> None:
        """Tell a launcher how its process ended."""
        _, status = os.waitpid(self.processes.pop(launcher), 0)
        self.selector.unregister(ended)
        os.close(ended)
        if launcher.fileno() in self.selector.get_map():
            self.selector.unregister(launcher)
            with suppress(OSError):  # the launcher was killed at the same time
                launcher.send(status.to_bytes(8, "little"))
        launcher.close()

    def _end(self) -> None:
        for process in self.processes.values():
            os.kill(process, signal.SIGKILL)
        sys.exit(0)


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
    paths = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    with suppress(ImportError):
        import_module("sitecustomize")


def execute(arguments: list[str]) -> None:
    """Run `-m MODULE …` or `-c CODE …`, after an optional `-P`, as the interpreter does."""
    isolated = arguments[0] == "-P"
    kind, what, *rest = arguments[isolated:]
    if not isolated:
        sys.path.insert(0, str(Path.cwd()) if kind == "-m" else "")
    sys.argv[:] = [kind, *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = module = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(module))


def main(address: Path) -> None:
    """Wait for the first launcher, import the libraries, then serve."""
    described = {"python": sys.executable, "root": os.environ["PYTHONPATH"], "conditions": conditions()}
    described["conditions"]["terminal"] = [False, False, False]
    (address.parent / "conditions.json").write_text(json.dumps(described), encoding="utf-8")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(address))
        listener.listen(64)
        print("ready", flush=True)
        if 0 in select.select([listener, 0], [], [])[0]:
            return  # the tests ended, and no launcher came
        for library in LIBRARIES:
            import_module(library)
        gc.collect()
        gc.freeze()
        Server(listener).serve()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Launched as launched:
        request, files = launched.request, launched.files
    else:
        sys.exit(0)
    become(request, files, sys.argv[2])
    execute(request["arguments"])
