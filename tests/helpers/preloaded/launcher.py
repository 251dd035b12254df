"""In place of the interpreter: let the server beside this file run the arguments, or become the interpreter itself."""

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

HERE = Path(__file__).parent
LIMITS = ("RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_CPU")
COMMANDS = ("stage1_extract", "stage2_prune", "store", "configs.command", "stage1_extract.sources.parquet_process")
SPAWNED = "from multiprocessing.spawn import spawn_main"
READ_AT_IMPORT = ("PYTHON", "LC_", "LANG", "TZ", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "HF_", "TRANSFORMERS_", "TORCH", "CUDA",
                  "ENCODE_ONCE_", "XDG_", "HOME", "MPL", "LD_", "PATH")  # fmt: skip
"""Beginnings of the variables that Python or a library reads when it starts: the server's imports were made with its own."""


def conditions() -> "dict[str, object]":
    """What a process takes from the one that starts it and a forked one takes from the server."""
    variables = {k: v for k, v in os.environ.items() if k.startswith(READ_AT_IMPORT) and k != "PYTHONPATH"}
    mask = os.umask(0)
    os.umask(mask)
    return {
        "variables": variables,
        "limits": [resource.getrlimit(getattr(resource, name)) for name in LIMITS],
        "user": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
        "cores": sorted(os.sched_getaffinity(0)),
        "spaces": [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "mnt", "pid", "user")],
        "capabilities": [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Cap")],
        "umask": mask,
        "ignored": [n for n in range(1, 32) if n != 13 and signal.getsignal(n) is signal.SIG_IGN],
        "terminal": [os.isatty(descriptor) for descriptor in (0, 1, 2)],
    }


def ours(arguments: "list[str]") -> bool:
    """Return whether a command of this project is asked for, or a worker that one starts; with no other option than `-P`."""
    kind, what = [*arguments[arguments[:1] == ["-P"] :], "", ""][:2]
    return (kind == "-m" and what in COMMANDS) or (kind == "-c" and what.startswith(SPAWNED))


def main() -> None:
    server = json.loads((HERE / "conditions.json").read_text(encoding="utf-8"))
    paths = os.environ.get("PYTHONPATH", server["root"]).split(os.pathsep)
    same = server["root"] in paths and json.loads(json.dumps(conditions())) == server["conditions"]
    if not (same and ours(sys.argv[1:])):
        os.execv(server["python"], [server["python"], *sys.argv[1:]])
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(HERE / "server"))
    listed = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    descriptors = [n for n in listed if n != connection.fileno() and os.path.lexists(f"/proc/self/fd/{n}")]
    request = {
        "arguments": sys.argv[1:],
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "files": descriptors,
    }
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: connection.send(bytes([received])))
    socket.send_fds(connection, [json.dumps(request).encode("utf-8", "surrogateescape")], descriptors)
    status = int.from_bytes(connection.recv(8), "little")
    if os.WIFSIGNALED(status):
        killed_by = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if killed_by not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(killed_by, signal.SIG_DFL)
        os.kill(os.getpid(), killed_by)
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
