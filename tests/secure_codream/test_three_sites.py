"""Keys, rosters and charters of docs/three-sites.md: each command of theirs runs, and prints what the page shows."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secure_codream import cli
from tests.pages import FENCED, FINGERPRINT, ROOT, Shown, alike, matches, shown

PAGE = (ROOT / "docs" / "three-sites.md").read_text(encoding="utf-8")
OTHERS = ("bob", "carol")
TYPED = re.compile(r"secure-codream (keygen|join-request|roster|charter) |mkdir |cp ")


def printed(command: str, fingerprint: str) -> list[str]:
    if not command.startswith("secure-codream "):
        subprocess.run(command, shell=True, check=True)
        return []
    words = shlex.split(re.sub(FINGERPRINT, fingerprint, command))[1:]
    done = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def run_all(commands: list[Shown]) -> list[list[str]]:
    """Run them in the current folder, each on Alice's folder also on the others'; what hers printed."""
    lines: list[list[str]] = []
    fingerprint = ""
    for one in commands:
        lines.append(printed(one.command, fingerprint))
        fingerprint = fingerprint or matches(FINGERPRINT, lines[-1])[0]  # the administrator's is the first
        if "alice" in one.command and "bob" not in one.command:
            for name in OTHERS:
                printed(one.command.replace("alice", name), fingerprint)
    return lines


def test_every_command_prints_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (config,) = (text for _, text in FENCED.findall(PAGE) if text.startswith("# config.toml\n"))
    Path("config.toml").write_text(config)
    commands = [one for one in shown(PAGE) if TYPED.match(one.command)]
    assert len(commands) >= 13
    output = run_all(commands)
    for one, lines in zip(commands, output, strict=True):
        assert alike(lines) == alike(one.lines), one.command
    keys = [path.read_text().strip() for path in tmp_path.rglob("*.key")]
    assert len(keys) == 1 + 1 + 2 * 4
    assert not any(key in "\n".join(lines) for key in keys for lines in output)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix != ".key":
            assert not any(key in path.read_text() for key in keys), path
