"""Python processes without the seconds that importing torch and transformers takes: each is forked off a server that has both.

`launcher.py` stands in place of the interpreter. It hands its arguments, environment, folder and open files to the server, passes
signals on, and ends as the forked process ends. What a forked process could not be the same in (another limit, user, network,
locale, option of Python …) it runs with the interpreter itself. Tests in which a process is the point (kills, sys.modules,
start-up) take the fixture `real_python`, which gives `sys.executable` back.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@contextmanager
def preloaded_python(folder: Path) -> Iterator[Path]:
    """Start a server for as long as the context lasts; the path stands in place of `sys.executable`."""
    python, address = folder / "python", folder / "server"
    python.write_text(f"#!{sys.executable} -IS\n" + (HERE / "launcher.py").read_text(encoding="utf-8"))
    python.chmod(0o755)
    command = [sys.executable, "-P", "-m", f"{__name__}.server", str(address), str(python)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None and server.stdout is not None
        assert server.stdout.readline() == b"ready\n", "the server of preloaded processes did not start"
        yield python
        server.stdin.close()  # the server kills what still runs, and ends
