"""An S3 server on this machine, and stores copied to it."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

_numbers = count()


@contextmanager
def s3_server() -> Generator[str, None, None]:
    """Its URL; the AWS_* variables lead to it, and it has a bucket of the name `bucket`."""
    pytest.importorskip("obstore", reason="the extra [remote] is not installed")
    pytest.importorskip("moto.server", reason="moto is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    names |= {"ACCESS_KEY_ID": "anyone", "SECRET_ACCESS_KEY": "anything"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(names["ENDPOINT_URL"], process)
            with patch.dict(os.environ, {f"AWS_{name}": value for name, value in names.items()}):
                yield names["ENDPOINT_URL"]
        finally:
            process.kill()


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT"), timeout=10).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    pytest.fail("the S3 server of the tests did not start")


class Copy:
    """A store that was copied to the server."""

    def __init__(self, path: Path) -> None:
        import obstore
        from obstore.store import S3Store

        folder = f"stores/{next(_numbers)}"
        self.url = f"s3://bucket/{folder}"
        self._library: Any = obstore
        self._objects = S3Store("bucket", prefix=folder)
        for file in path.rglob("*"):
            if file.is_file():
                self.put(file.relative_to(path).as_posix(), file.read_bytes())

    def put(self, name: str, content: bytes) -> None:
        self._library.put(self._objects, name, content)

    def get(self, name: str) -> bytes:
        return bytes(self._library.get(self._objects, name).bytes())

    def remove(self, name: str) -> None:
        self._library.delete(self._objects, name)
