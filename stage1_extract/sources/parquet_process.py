"""A process that reads parquet files, and the pipe to it: a damaged file can harm that process only.

Damaged files raise errors of any kind inside pyarrow, and some abort the process. `python -m` of this module answers lines
of JSON on its standard input with frames on its standard output: a length and as many bytes for each value, then END. The
process ends when its input ends, so that it does not outlive the process that started it.
"""

import json
import signal
import struct
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from configs.processes.children import module_process

BATCH_ROWS = 8
"""Number of rows that are decoded at a time; it is small because a dictionary may repeat one huge value in every row."""
_LENGTH = struct.Struct("<q")
_NULL, _END, _FAILED = -1, -2, -3
"""Lengths that stand for a null value, the end of an answer, and an error whose message follows."""


class ParquetUnreadable(Exception):
    """A parquet file, or a part of it, cannot be read.

    The message is the first line of the library's message, or says how the library's process ended.
    """


class ParquetProcess:
    """Reads parquet files in a process of its own, one question after the other; a process that ended is started anew."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def outline(self, path: Path) -> dict[str, Any]:
        """Read a file's metadata: `fields` (name, type, whether it holds images) and `groups` (rows, bytes by leaf)."""
        (outline,) = self._ask({"ask": "outline", "path": str(path)})
        return json.loads(outline or b"{}")

    def cells(self, path: Path, group: int, leaf: str) -> Iterator[bytes | None]:
        """Read the values of the leaf `<column>.<field>` in a row group; None where the field or the whole struct is null."""
        return self._ask({"ask": "cells", "path": str(path), "group": group, "leaf": leaf})

    def _ask(self, question: dict[str, Any]) -> Iterator[bytes | None]:
        """Yield the values of an answer; raises ParquetUnreadable where the process answers with an error, or ends."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        whole = False
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            while (length := _LENGTH.unpack(_exactly(process.stdout, _LENGTH.size))[0]) != _END:
                if length == _FAILED:
                    whole = True
                    raise ParquetUnreadable(_framed(process.stdout).decode())
                yield None if length == _NULL else _exactly(process.stdout, length)
            whole = True
        except (EOFError, BrokenPipeError):
            code = process.wait()
            raise ParquetUnreadable(f"the library that reads it ended its process with {_ending(code)}") from None
        finally:
            # If the caller stopped early, the rest of the answer in the pipe would be taken for the next answer.
            if not whole:
                self._process = None
                _end(process)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            command, environment = module_process(__name__)
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            weakref.finalize(self, _end, self._process)
        return self._process


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _framed(pipe: IO[bytes]) -> bytes:
    return _exactly(pipe, _LENGTH.unpack(_exactly(pipe, _LENGTH.size))[0])


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    for line in questions:
        try:
            for value in _answer(json.loads(line)):
                answers.write(_LENGTH.pack(_NULL if value is None else len(value)))
                answers.write(value or b"")
            answers.write(_LENGTH.pack(_END))
        except Exception as error:  # a damaged file makes pyarrow raise errors of any kind
            message = ((str(error) or type(error).__name__).splitlines()[0]).encode()
            answers.write(_LENGTH.pack(_FAILED) + _LENGTH.pack(len(message)) + message)
        answers.flush()


def _answer(question: dict[str, Any]) -> Iterator[bytes | None]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(question["path"], page_checksum_verification=True) as file:
        if question["ask"] == "outline":
            yield json.dumps(_outline(file)).encode()
            return
        leaf = question["leaf"]
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[question["group"]], columns=[leaf], use_threads=False):
            for value in batch.column(0).flatten()[0].to_pylist():
                yield value.encode() if isinstance(value, str) else value


def _outline(file: Any) -> dict[str, Any]:
    groups = []
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        columns = [group.column(index) for index in range(group.num_columns)]
        sizes = {column.path_in_schema: column.total_uncompressed_size for column in columns}
        groups.append({"rows": group.num_rows, "bytes": sizes})
    fields = [
        {"name": field.name, "type": str(field.type), "images": _holds_images(field.type)}
        for field in file.schema_arrow
    ]
    return {"fields": fields, "groups": groups}


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    if not types.is_struct(kind):
        return False
    fields = {field.name: field.type for field in kind}
    return (
        {"bytes", "path"} <= fields.keys()
        and (types.is_binary(fields["bytes"]) or types.is_large_binary(fields["bytes"]))
        and (types.is_string(fields["path"]) or types.is_large_string(fields["path"]))
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks decides when to stop
    _serve(sys.stdin.buffer, sys.stdout.buffer)
