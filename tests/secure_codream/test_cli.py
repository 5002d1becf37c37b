"""The command line: every command shows an example, and exit codes mean something."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import typer
from rich.text import Text
from typer.core import TyperGroup
from typer.testing import CliRunner

from codream_clients.journal import JournalBusy, JournalDamaged, JournalMismatch
from codream_protocols.errors import AggregationFailed, BadSignature, PolicyViolation, RosterRefused
from secure_codream import cli, command_parts
from secure_codream.configuration.reading import ConfigError, read_toml
from secure_codream.deployment.signals import Stopped
from secure_codream.membership.keys import KeyFileError
from secure_codream.reports.files import RecordError

COMMANDS = [command.name or command.callback.__name__ for command in cli.app.registered_commands if not command.hidden]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "secure_codream", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(cli, "app", broken)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps({"task": {"shape": [1, 8, 8], "classes": 10}, "timing": {"join": 0.3}}))
    return path


def provisioned(config: Path, out: Path) -> list[str]:
    clients = [option for name in ("alice", "bob", "carol") for option in ("--client", f"{name}=cnn2")]
    return ["provision", str(config), *clients, "--address", "tcp://127.0.0.1:7447", "--out", str(out)]


def test_help_names_every_command() -> None:
    text = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"}).output
    assert {"demo", "provision", "server", "client", "report"} <= set(COMMANDS)
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"Example: secure-codream {command}" in result.output


def test_no_help_loses_its_brackets() -> None:
    """Rich takes what stands in them for a style."""
    groups = [typer.main.get_group(cli.app)]
    seen = 0
    for group in groups:
        for command in group.commands.values():
            if isinstance(command, TyperGroup):
                groups.append(command)
            for said in (command.help or "", *(getattr(one, "help", "") or "" for one in command.params)):
                assert Text.from_markup(said).plain == said.replace("\\[", "["), (command.name, said)
                seen += "[" in said
    assert seen > 2


def test_examples_are_words_that_the_command_takes() -> None:
    """Every option of an example exists."""
    group = typer.main.get_group(cli.app)
    for command in cli.app.registered_commands:
        if not command.hidden:
            name = command.name or command.callback.__name__
            known = {option for parameter in group.commands[name].params for option in parameter.opts}
            used = {word for word in command.epilog.split() if word.startswith("--")}
            assert used <= known, name


def test_provision_then_refuse_to_overwrite(config: Path, tmp_path: Path) -> None:
    command = provisioned(config, tmp_path / "federation")
    first = call(*command)
    assert first.returncode == 0 and "of 3 clients, serial 1" in first.stdout and "Keep offline" in first.stdout
    key = (tmp_path / "federation" / "server" / "transport.key").read_text().strip()
    again = call(*command)
    assert again.returncode == 3 and "nothing is overwritten" in again.stderr
    for done in (first, again):
        assert key not in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_wrong_configuration_ends_with_2(tmp_path: Path) -> None:
    wrong = tmp_path / "config.toml"
    wrong.write_text("[task]\nshape = [1, 8, 8]\nclasses = 1\n")
    done = call(*provisioned(wrong, tmp_path / "federation"))
    assert done.returncode == 2
    assert "config.toml: task.classes: found 1; input should be greater than or equal to 2" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "federation").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["provision", "missing.toml"], "does not exist"),
        (["server"], "Missing argument"),
        (["serve"], "No such command"),
        (["client", "/nowhere"], "does not exist"),
        (["simulate", "--members", "2"], "'--members': found 2; at least 3 is allowed"),
        (["simulate", "--members", "3.5"], "'--members': found 3.5; a whole number is allowed"),
        (["simulate", "--members", "9" * 5000], f"'--members': found {'9' * 80}; a whole number that is not so long"),
        (["simulate", "--steps", "5000"], "'--steps': found 5000; at most 4,096 is allowed"),
        (["simulate", "--latency", "nan"], "'--latency': found nan; at most 1,000,000.0 is allowed"),
        (["simulate", "--latency", "slow"], "'--latency': found slow; a number is allowed"),
        (["simulate", "--mode", "fast"], "'--mode': 'fast' is not one of 'lockstep', 'resilient'"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2 and message in result.output


def test_an_interrupted_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secure_codream.simulation_commands.check_cluster", interrupted)
    result = CliRunner().invoke(cli.app, ["simulate"])
    assert (result.exit_code, result.stderr) == (130, "secure-codream: interrupted\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_terminal_that_lacks_a_sign_ends_nothing(
    config: Path, tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    monkeypatch.setenv("LANG", "C")
    done = call(*provisioned(config, tmp_path / "federation"))
    assert done.returncode == 0 and "Keep offline" in done.stdout and done.stderr == ""


def test_file_that_begins_with_a_byte_order_mark_is_read(config: Path, tmp_path: Path) -> None:
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert read_toml(config)["task"]["classes"] == 10


def test_misspelt_key_under_learning_is_refused_before_a_key_is_made(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text() + "[learning]\ntemprature = 3.0\n")
    done = call(*provisioned(config, tmp_path / "federation"))
    assert done.returncode == 2 and "did you mean temperature?" in done.stderr
    assert not (tmp_path / "federation").exists()


def test_what_is_not_a_terminal_is_wide_enough_for_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert command_parts.console().width == command_parts.WIDTH_OF_FILES
    monkeypatch.setenv("COLUMNS", "90")
    assert command_parts.console().width == 90


def test_client_without_a_model_is_named(config: Path, tmp_path: Path) -> None:
    done = call("provision", str(config), "--client", "alice", "--address", "tcp://h:1", "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and "NAME=MODEL is needed" in done.stderr


def test_refused_key_and_roster_end_with_3(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "federation"
    assert call(*provisioned(config, out)).returncode == 0
    roster = out / "server" / "roster.json"
    roster.write_text(roster.read_text().replace('"serial": 1', '"serial": 2'))
    tampered = call("server", str(out / "server"))
    assert tampered.returncode == 3 and "roster signature" in tampered.stderr
    key = out / "clients" / "alice" / "transport.key"
    key.chmod(0o644)
    readable = call("client", str(out / "clients" / "alice"))
    assert readable.returncode == 3 and "0600 is needed" in readable.stderr
    assert key.read_text().strip() not in readable.stderr
    assert "Traceback" not in tampered.stderr + readable.stderr


def test_address_that_is_taken_or_none_is_one_line(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "federation"
    assert call(*provisioned(config, out)).returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = call("server", str(out / "server"), "--listen", f"tcp://127.0.0.1:{other.getsockname()[1]}")
    wrong = call("server", str(out / "server"), "--listen", "here")
    lost = call("client", str(out / "clients" / "alice"), "--address", "there")
    for done, found in ((taken, "(Address already in use)"), (wrong, "'here' (Invalid"), (lost, "'there' (Invalid")):
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert found in done.stderr and "allowed: tcp://" in done.stderr


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = call("compare", "--algorithms", "isolated", "--out", str(tmp_path / "file"))
    assert done.returncode == 1 and "Not a directory" in done.stderr and "Traceback" not in done.stderr


def test_federation_that_nobody_joins_ends_with_1(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "federation"
    assert call(*provisioned(config, out)).returncode == 0
    done = call("server", str(out / "server"), "--listen", "tcp://127.0.0.1:*")
    assert done.returncode == 1
    assert "found 0 of 3 clients after 0.3 s" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AggregationFailed("x", "y"), 1),
        (PolicyViolation("x", "y"), 1),
        (RuntimeError("x"), 1),
        (ConfigError("x"), 2),
        (RecordError("x"), 2),
        (KeyFileError("x"), 3),
        (JournalBusy("x", "y"), 2),
        (JournalMismatch("x", "y"), 2),
        (JournalDamaged("x", "y"), 1),
        (RosterRefused("x", "y"), 3),
        (BadSignature("x", "y"), 3),
        (KeyboardInterrupt(), 130),
        (Stopped(), 0),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    fails_with(monkeypatch, error)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert capsys.readouterr().err.startswith("secure-codream: ")


def test_words_of_strangers_on_the_screen_move_no_cursor_and_become_no_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, AggregationFailed("\x1b[2J :skull: [red]all good[/red]\u202e", "y"))
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == (
        r"secure-codream: found \x1b[2J :skull: [red]all good[/red]\u202e; allowed: y" + "\n"
    )
    line = cli._client_line({"event": "silence", "address": "tcp://\x1b[31m:skull:", "seconds": 3})
    assert line is not None
    command_parts.say(command_parts.console(), line)
    assert (
        capsys.readouterr().out
        == "no word from tcp://\\x1b[31m:skull: for 3 s; asking again; `doctor` says what is in the way\n"
    )


def test_second_server_of_a_folder_ends_with_2(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "federation"
    assert call(*provisioned(config, out)).returncode == 0
    (out / "server" / "record").mkdir()
    holder = os.open(out / "server" / "record", os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        second = call("server", str(out / "server"), "--listen", "tcp://127.0.0.1:*")
    finally:
        os.close(holder)
    assert second.returncode == 2 and "running already" in second.stderr and "Traceback" not in second.stderr


def test_report_of_a_folder_without_a_run_is_a_clear_error(tmp_path: Path) -> None:
    done = call("report", str(tmp_path))
    assert done.returncode == 2 and "summary.json" in done.stderr and "Traceback" not in done.stderr


FALL = {
    "event": "worse",
    "round": 3,
    "judged_by": 62,
    "held_back": True,
    "held_accuracy": 0.5484,
    "held_recall": 0.5,
    "best_accuracy": 0.9113,
    "best_recall": 0.9,
}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            {**FALL, "best_round": 2, "rolled_back": True},
            "round 3 made the model worse on 62 held-back images (0.91 to 0.55; 0.90 to 0.50 in the mean over "
            "the classes): the weights of round 2 are kept",
        ),
        (
            {**FALL, "best_round": 0, "rolled_back": False, "held_back": False},
            "round 3 made the model worse on 62 own images (0.91 to 0.55; 0.90 to 0.50 in the mean over the "
            "classes): best.safetensors has the weights of the warm-up; the model that takes part stays as it is",
        ),
        (
            {"event": "judge", "images": 62, "held_back": True, "sees_all": True},
            "62 images of its own are held back from training and judge each round",
        ),
        (
            {"event": "judge", "images": 62, "held_back": True, "sees_all": False},
            "62 images of its own are held back from training and judge each round; they lack classes of the task, and "
            "show a collapse, nothing finer",
        ),
        (
            {"event": "judge", "images": 30, "held_back": False, "sees_all": True},
            "30 images are too few to hold some back: those that are trained on judge each round, and they show a "
            "collapse, nothing finer",
        ),
        (
            {"event": "judge", "images": 0, "held_back": False, "sees_all": False},
            "no image is held back from training, and nothing judges the rounds",
        ),
    ],
)
def test_a_client_says_by_what_it_is_judged_and_what_made_it_worse(event: dict[str, Any], line: str) -> None:
    assert cli._client_line(event) == line
