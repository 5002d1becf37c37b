"""`--json`: every command that ends has it, and prints one JSON value on standard output and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from secure_codream import cli
from secure_codream.command_parts import say_json
from tests.pages import ROOT

RUN_ON = {"server", "client", "reference"}
"""They run until their federation is over; how they stand is what `status --json` says."""


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def answer(*words: object) -> Any:
    """What a command prints as JSON; it fails where anything else stands there."""
    done = CliRunner().invoke(cli.app, [*map(str, words), "--json"])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return json.loads(done.stdout)


def test_every_command_that_ends_has_it() -> None:
    found = dict(commands(typer.main.get_command(cli.app)))
    assert len(found) > 30
    for name, command in found.items():
        options = [option for option in command.params if "--json" in option.opts]
        assert len(options) == (name not in RUN_ON), name
        assert all(str(option.help).endswith(" and nothing else.") for option in options), name


def test_it_is_written_in_one_place() -> None:
    """What a command has written to a file before is shown as the file has it."""
    for path in [*(ROOT / "secure_codream").glob("*_commands.py"), ROOT / "secure_codream" / "cli.py"]:
        text = path.read_text(encoding="utf-8")
        assert "dumps(" not in text and '"--json"' not in text, path.name


def test_it_is_strict_json_of_ascii_characters(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Found:
        name: str
        value: float

    say_json({"found": (Found("\u202e\x1b[2J\u00e9", math.nan),)})
    said = capsys.readouterr().out
    assert said.isascii() and "\x1b" not in said
    assert json.loads(said, parse_constant=pytest.fail) == {"found": [{"name": "\u202e\x1b[2J\u00e9", "value": None}]}


def test_a_script_sets_a_federation_up_and_changes_it(tmp_path: Path) -> None:
    admin, hub = tmp_path / "admin", tmp_path / "hub"
    assert answer("keygen", admin, "--administrator")["party"] == "administrator"
    assert answer("keygen", hub, "--server") == {"party": "server", "files": [str(hub / "transport.key")]}
    requests = []
    for name in "abc":
        made = answer("keygen", tmp_path / name, "--name", name, "--model", "mlp")
        assert all(Path(path).exists() for path in made["files"]) and len(made["files"]) == 2
        asked = answer("join-request", tmp_path / name)
        assert answer("roster", "show", asked["file"]) == {key: asked[key] for key in ("party", "fingerprint")}
        requests += ["--client", asked["file"]]
    server = answer("join-request", hub, "--address", "tcp://127.0.0.1:7447")["file"]
    made = answer("roster", "create", admin, "--server", server, *requests)
    assert made["roster"] == answer("roster", "show", made["file"]) and set(made["roster"]["members"]) == set("abc")

    config = tmp_path / "config.toml"
    config.write_text("[task]\nshape = [1, 2, 2]\nclasses = 2\n")
    charter = answer("charter", admin, config)
    line = ("roster", "verify", tmp_path / "a", charter["folder"], "--administrator", charter["fingerprint"])
    looked = answer(*line)
    assert (looked["party"], looked["charter"], looked["accepted"]) == ("a", charter["charter"], False)
    assert looked["exposed"] and set(looked["exposed"]) <= set(charter["exposed"])
    assert not (tmp_path / "a" / "acceptance.json").exists()
    assert answer(*line, "--accept") == {**looked, "accepted": True} and (tmp_path / "a" / "acceptance.json").exists()

    gone = answer("withdraw", tmp_path / "a", "--yes")
    assert gone["party"] == "a" and Path(gone["file"]).exists()
    changed = answer("roster", "remove", admin, "b")
    assert changed["roster"]["serial"] == 2 and set(changed["roster"]["revoked"]) == {"b"}


def test_a_script_provisions_one_machine(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[task]\nshape = [1, 2, 2]\nclasses = 2\n")
    clients = [word for name in "abc" for word in ("--client", f"{name}=mlp")]
    made = answer(
        "provision",
        tmp_path / "config.toml",
        *clients,
        "--address",
        "tcp://127.0.0.1:7447",
        "--out",
        tmp_path / "out",
    )
    assert set(made["clients"]) == set("abc")
    for folder in (*made["clients"].values(), made["server"], made["administrator"]):
        assert Path(folder).is_dir()


def test_a_script_uses_a_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from PIL import Image

    from tests.secure_codream.models import opened

    model = opened(tmp_path).path
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    (tmp_path / "two.png").write_text("no picture")
    found = answer("predict", model, tmp_path / "one.png", tmp_path / "two.png", "--out", tmp_path / "found.csv")
    assert found == {"file": str(tmp_path / "found.csv"), "inputs": 2, "read": 1}
    written = answer("export", model, "--out", tmp_path / "model.pt2")
    assert Path(written["file"]).exists() and written["standardises"]
