"""Pages for people: links lead somewhere, every error and word is there, and exit codes are what commands return."""

from __future__ import annotations

import ast
import asyncio
import importlib
import pkgutil
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

import codream_clients
import codream_protocols
import codream_server
import secure_codream
from codream_clients.journal import JournalBusy, JournalDamaged, JournalError, JournalMismatch
from codream_protocols.errors import (
    AggregationFailed,
    BadSignature,
    CharterRefused,
    ProtocolError,
    RosterRefused,
    UnknownIdentity,
)
from codream_server.record_folder import RecordFolderRefused
from codream_server.unwritten import ResultsUnwritten
from secure_codream import cli
from secure_codream.cli import EXIT_CODES, exit_code
from secure_codream.configuration.reading import ConfigError
from secure_codream.documents import OUTSIDE, all_errors
from secure_codream.membership.keys import KeyFileError
from secure_codream.reports.files import RecordError
from secure_codream.threats.promises import PROMISES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md")])
NARROW = (
    "configuration",
    "errors",
    "glossary",
    "releasing",
    "SECURITY",
    "CONTRIBUTING",
    "CHANGELOG",
    "0001-dependencies",
    "pull_request_template",
)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if not target.startswith(("http://", "https://", "mailto:", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem in NARROW], ids=lambda page: page.stem)
def test_lines_are_of_120_characters_at_most(page: Path) -> None:
    assert [line for line in text_of(page).splitlines() if len(line) > 120 and not line.startswith("|")] == []


# -- errors ---------------------------------------------


def test_every_typed_error_is_on_the_page() -> None:
    for package in (codream_protocols, codream_clients, codream_server, secure_codream):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    page = text_of(ROOT / "docs" / "errors.md")
    for kind in all_errors():
        if kind is not ProtocolError:
            assert f"| `{kind.code}` | `{kind.__name__}` |" in page
            assert kind.__doc__, kind


def test_a_code_is_of_one_error_and_those_derived_from_it() -> None:
    codes = [kind.code for kind in all_errors() if "code" in vars(kind)]
    assert len(set(codes)) == len(codes)
    shared = {kind.__name__: kind.code for kind in all_errors() if "code" not in vars(kind)}
    assert shared == {
        "SealDoesNotOpen": "share",
        "JournalBusy": "journal",
        "JournalDamaged": "journal",
        "JournalMismatch": "journal",
        "JournalVersion": "journal",
    }
    assert set(OUTSIDE) == {JournalError, RecordFolderRefused, ResultsUnwritten}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (RecordError("x"), 2),
        (ValueError("x"), 2),
        (JournalBusy("x", "y"), 2),
        (JournalMismatch("x", "y"), 2),
        (JournalDamaged("x", "y"), 1),
        (CharterRefused("x", "y"), 1),
        (AggregationFailed("x", "y"), 1),
        (RuntimeError("x"), 1),
        (PermissionError(13, "x", "y"), 1),
        (KeyFileError("x"), 3),
        (RosterRefused("x", "y"), 3),
        (BadSignature("x", "y"), 3),
        (UnknownIdentity("x", "y"), 3),
        (KeyboardInterrupt(), 130),
        (asyncio.CancelledError(), 130),
    ],
)
def test_errors_end_a_command_with_their_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code == exit_code(error) and code in EXIT_CODES
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("secure-codream: ")


def test_no_command_ends_with_another_code() -> None:
    tree = ast.parse(text_of(Path(str(cli.__file__))))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_fail"]
    given = {node.args[1].value for node in calls if isinstance(node.args[1], ast.Constant)}
    assert given <= set(EXIT_CODES)


# -- words ---------------------------------------------

WORDS = """epoch round step batch dream cohort roster block charter head chain vote certificate survivor colluder
lockstep resilient tag transcript warm-up teacher student offer plan policy course mask seal member mode record journal
ledger"""


def test_the_glossary_has_the_words_in_order() -> None:
    text = text_of(ROOT / "docs" / "glossary.md")
    words = re.findall(r"^- \*\*([^*]+)\*\*: ", text, re.MULTILINE)
    assert words == sorted(words, key=str.casefold) and len(set(words)) == len(words)
    assert {*WORDS.split(), "soft label"} <= {word.lower() for word in words} | {"epoch"}
    assert "*training epoch*" in text and "*protocol epoch*" in text


def test_settings_that_count_training_epochs_are_named_so() -> None:
    page = text_of(ROOT / "docs" / "configuration.md")
    named = re.findall(r"^\| `(\w*epochs)` \|", page, re.MULTILINE)
    assert set(named) == {"warm_up_epochs", "distil_epochs", "local_epochs", "round_epochs", "epochs"}


# -- habits ---------------------------------------------

PROJECT = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]


def test_the_version_is_the_packages() -> None:
    version = metadata.version("secure-codream")
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"secure-codream {version}\n")
    assert secure_codream.__version__ == version == PROJECT["version"]
    assert re.search(rf"^## {re.escape(version)}\b", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
    with pytest.raises(AttributeError):
        secure_codream.__verzion__  # noqa: B018 - looking it up is the test


def test_the_changelog_has_sections_only() -> None:
    for release in text_of(ROOT / "CHANGELOG.md").split("\n## ")[1:]:
        sections = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert sections == [name for name in ("Added", "Changed", "Fixed", "Security") if name in sections]
        assert "\n- " not in release.partition("\n### ")[0]


def test_security_names_every_promise_and_every_limit() -> None:
    limits = sum(promise.is_limit for promise in PROMISES)
    text = text_of(ROOT / "SECURITY.md")
    assert f"promises P1 to P{len(PROMISES) - limits} " in text and f"limits L1 to L{limits} " in text
    assert f"P1 to P{len(PROMISES) - limits}" in text_of(ROOT / ".github" / "ISSUE_TEMPLATE" / "wish.md")


def test_hooks_run_what_lint_runs() -> None:
    lint = text_of(ROOT / "Makefile").partition("\nlint: setup\n")[2].partition("\n\n")[0]
    commands = [line.strip().removeprefix("$(BIN)/") for line in lint.splitlines()]
    hooks = re.findall(r"entry: \.venv/bin/(.*)", text_of(ROOT / ".pre-commit-config.yaml"))
    assert hooks == commands and len(hooks) == 4


def test_constraints_fit_every_dependency() -> None:
    pins = dict(line.split("==") for line in text_of(ROOT / "constraints.txt").split())
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *extras["client"], *extras["experiments"], *extras["docs"], *extras["dev"]]
    for requirement in map(Requirement, asked):
        if requirement.name != "secure-codream":
            assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert "secure-codream" not in pins


def test_decisions_have_a_status_and_what_else_was_thought_of() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        title, status = text_of(page).split("\n\n")[:2]
        assert title.startswith(f"# {int(page.name[:4])}. ") and status.startswith("**Status**: ")
        assert "*Instead*" in text_of(page), page.name


def test_newcomers_questions_lead_to_what_they_name() -> None:
    table = text_of(ROOT / "CONTRIBUTING.md").partition("## Where is it?")[2].partition("\n[")[0]
    rows = re.findall(r"^\| (.*\?) \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) == 15
    for question, answer in rows:
        files = [ROOT / target for target in re.findall(r"\]\(([^)]+)\)", answer)]
        assert 1 <= len(files) <= 2, question
        sources = "".join(
            path.read_text(encoding="utf-8")
            for file in files
            for path in (file.glob("*.py") if file.is_dir() else [file])
        )
        for name in re.findall(r"(?<!\[)`(\w+)`", answer):
            assert re.search(rf"\b{name}\b", sources), f"{question}: {name}"


def test_the_layers_of_the_page_are_the_checked_ones() -> None:
    contracts = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = [one["layers"] for one in contracts if one.get("containers") == ["secure_codream"]]
    paragraph = text_of(ROOT / "CONTRIBUTING.md").partition("from top to bottom: ")[2].partition(".")[0]
    assert re.findall(r"`(\w+)`", paragraph) == [name for layer in layers for name in layer.split(" | ")]
