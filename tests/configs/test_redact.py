"""No credential of a URL is in a message or in a file."""

import logging

import pytest

from configs.cli import run_to_exit_code
from configs.errors import ConfigError
from configs.load import load
from configs.parsing.redact import Redacting
from store.cli import group
from tests.configs.test_load import MINIMAL, write

SECRETS = ["hunter2", "AKIA77"]
URL = "https://AKIA77:hunter2@host:9000/b?X-Amz-Signature=hunter2&x=1"


def test_credentials_of_a_url_are_in_no_error(capsys):
    def fail():
        raise ConfigError(f"no answer from {URL}, which {URL!r} names")

    assert run_to_exit_code(fail) == 2
    said = capsys.readouterr().err
    assert "https://...@host:9000/b?X-Amz-Signature=...&x=1" in said and not any(one in said for one in SECRETS)


def test_credentials_of_a_url_are_in_no_log():
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "note: %s", (URL,), None)
    assert not any(one in Redacting("%(message)s").format(record) for one in SECRETS)


@pytest.mark.parametrize("arguments", [["inspect", "s3://AKIA77:hunter2@bucket/a"], ["status", "s3://hunter2@b/a"]])
def test_a_url_with_credentials_is_no_place_of_a_store(capsys, arguments):
    assert run_to_exit_code(lambda: group.main(arguments, standalone_mode=False)) == 2
    said = capsys.readouterr().err
    assert "without user and password" in said and not any(one in said for one in SECRETS)


def test_a_config_with_credentials_is_refused_before_they_are_written_anywhere(tmp_path):
    path = write(tmp_path, MINIMAL | {"store": {"path": "s3://AKIA77:hunter2@bucket/a"}})
    with pytest.raises(ConfigError, match=r"store\.path: expected a URL without user and password") as caught:
        load(path, {})
    assert not any(one in str(caught.value) for one in SECRETS)
