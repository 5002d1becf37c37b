"""The three-site section of docs/federations.md: every command in it runs, in order, and prints what the page shows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secure_codream import cli

PAGE = Path(__file__).parents[2] / "docs" / "federations.md"
CONFIG = """
[federation]
name = "study"
course = "sums"
[sums.vectors.visits]
patients = { bound = 1000, count = true }
"""
OTHERS = ("bob", "carol")
_FINGERPRINT, _DIGEST, _DAY = r"\b[0-9a-f]{4}( [0-9a-f]{4}){9}\b", r"\b[0-9a-f]{64}\b", r"\b\d{4}-\d\d-\d\d\b"


def blocks(page: str) -> list[tuple[str, list[str]]]:
    """(command, lines that it prints) in the section's order."""
    section = page.partition("## Three sites, each with its own keys")[2].partition("\n## ")[0]
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def alike(lines: list[str]) -> list[str]:
    """What differs from run to run is the same here."""
    text = "\n".join(lines)
    for pattern, name in ((_DIGEST, "DIGEST"), (_FINGERPRINT, "FINGERPRINT"), (_DAY, "DAY")):
        text = re.sub(pattern, name, text)
    return text.splitlines()


def printed(command: str, fingerprint: str) -> list[str]:
    if not command.startswith("secure-codream "):
        subprocess.run(command, shell=True, check=True)
        return []
    words = re.findall(r'"[^"]*"|\S+', re.sub(_FINGERPRINT, fingerprint, command))[1:]
    done = CliRunner().invoke(cli.app, [word.strip('"') for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def run_section(page: str) -> list[tuple[str, list[str]]]:
    """Run it all in the current folder, each command on Alice's folder also on the others'; what hers printed."""
    Path("config.toml").write_text(CONFIG)
    shown, fingerprint = [], ""
    for command, _ in blocks(page):
        lines = printed(command, fingerprint)
        if "--administrator" in command and not fingerprint:
            found = re.search(_FINGERPRINT, "\n".join(lines))
            assert found is not None
            fingerprint = found[0]
        if "alice" in command and "bob" not in command:
            for name in OTHERS:
                printed(command.replace("alice", name), fingerprint)
        shown.append((re.sub(_FINGERPRINT, fingerprint, command), lines))
    return shown


def test_every_command_prints_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    assert len(blocks(page)) >= 13
    shown = run_section(page)
    for (command, expected), (_, lines) in zip(blocks(page), shown, strict=True):
        assert alike(lines) == alike(expected), command
    keys = [path.read_text().strip() for path in tmp_path.rglob("*.key")]
    assert len(keys) == 1 + 1 + 2 * 4
    assert not any(key in "\n".join(lines) for key in keys for _, lines in shown)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix != ".key":
            assert not any(key in path.read_text() for key in keys), path
