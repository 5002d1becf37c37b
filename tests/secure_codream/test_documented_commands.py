"""Every command line in the documents is one: the command is there, and has these options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secure_codream import cli
from tests.pages import FENCED, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*")])


def command_lines(text: str) -> list[list[str]]:
    """The words after `secure-codream` of each command line in fenced blocks."""
    found = []
    for block in [block for kind, block in FENCED.findall(text) if kind in ("console", "yaml", "ini")]:
        for line in block.replace("\\\n", " ").splitlines():
            typed = re.match(
                r"(?:\$ )?(?:.*&& )?(?:sudo -u \S+ )?(?:ExecStart=)?(?:\S*/)?secure-codream (.*)", line.strip()
            )
            if typed is not None:
                found.append(shlex.split(typed[1], comments=True))
    return found


def refusal(words: list[str]) -> str:
    """What the program says to a command that is none, or to an option that it does not have; else nothing."""
    done = CliRunner().invoke(cli.app, [*words, "--help"])  # parsed as ever, and not begun
    return done.output if done.exit_code else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_are_commands(page: Path) -> None:
    for words in command_lines(page.read_text(encoding="utf-8")):
        assert refusal(words) == "", f"secure-codream {shlex.join(words)}: {refusal(words)}"


def test_what_is_no_command_is_seen() -> None:
    assert refusal(["client", "federation/clients/alice"]) == ""
    for words in (["clint", "a"], ["client", "a", "--fast"], ["roster", "swap", "a"]):
        assert "No such" in refusal(words), words
    page = "```console\n$ secure-codream verify a \\\n    --json  # said\n.venv/bin/secure-codream demo\n```\n"
    page += "1. ...\n\n   ```console\n   sudo -u codream /opt/bin/secure-codream status a\n   ```\n"
    assert command_lines(page) == [["verify", "a", "--json"], ["demo"], ["status", "a"]]
