"""The server's address: what no client can connect to is refused before a key is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_codream.configuration.reading import ConfigError
from secure_codream.membership.addresses import require_address


@pytest.mark.parametrize(
    "address",
    [
        "tcp://aggregator.example:7447",
        "tcp://aggregator_1:1",
        "tcp://10.0.0.1:65535",
        "tcp://[::1]:7447",
        "tcp://[2001:db8::1]:7447",
    ],
)
def test_address_that_clients_can_connect_to_is_taken(address: str) -> None:
    assert require_address(address) == address


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("aggregator.example:7447", "HOST:PORT is needed"),
        ("udp://aggregator.example:7447", "HOST:PORT is needed"),
        ("ipc:///tmp/socket", "HOST:PORT is needed"),
        ("tcp://aggregator.example", "HOST:PORT is needed"),
        ("tcp://aggregator.example:", "HOST:PORT is needed"),
        ("tcp://aggregator.example:*", "HOST:PORT is needed"),
        ("tcp://127.0.0.1:7447/", "HOST:PORT is needed"),
        ("tcp://two words:7447", "HOST:PORT is needed"),
        ("tcp://::1:7447", "HOST:PORT is needed"),
        ("tcp://h:7447\n", "HOST:PORT is needed"),
        ("tcp://127.0.0.1:99999", "found port 99999; 1 to 65535"),
        ("tcp://127.0.0.1:0", "found port 0; 1 to 65535"),
        ("tcp://*:7447", "found host '[*]'"),
        ("tcp://-h:7447", "found host '-h'"),
        ("tcp://[::g]:7447", "found host"),
        ("tcp://[127.0.0.1]:7447", "found host"),
    ],
)
def test_address_of_another_form_is_refused_by_what_is_wrong_with_it(address: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        require_address(address)


def test_request_of_a_server_has_such_an_address_too(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from secure_codream.cli import app

    assert CliRunner().invoke(app, ["keygen", str(tmp_path / "server"), "--server"]).exit_code == 0
    asked = CliRunner().invoke(app, ["join-request", str(tmp_path / "server"), "--address", "tcp://h:99999"])
    assert isinstance(asked.exception, ConfigError)
    assert not (tmp_path / "server" / "server.join.json").exists()
