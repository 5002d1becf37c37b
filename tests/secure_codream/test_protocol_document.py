"""docs/protocol.md says what the code does: generated parts, promises, rules, fields, labels."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

import codream_protocols
import secure_codream
from codream_protocols.client import TRANSITIONS, ClientProtocol, State
from codream_protocols.messages import ToClient, ToServer
from codream_protocols.plan import default_threshold
from codream_protocols.ring import modulus_bits_for
from codream_protocols.server import Phase
from secure_codream.cli import app
from secure_codream.threats import check, protocol_tables
from secure_codream.threats.promises import PROMISES, Promise

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")


def part(name: str) -> str:
    """A generated part, as the document has it."""
    (found,) = re.findall(rf"<!-- generated: {name} -->\n(.*?)<!-- end -->", TEXT, re.DOTALL)
    return str(found).strip()


@pytest.fixture(scope="module")
def findings() -> check.Findings:
    """Of three and four members, and of the defences but the last, which takes the longest."""
    settings = tuple(check.check_setting(*setting) for setting in check.settings_of([3, 4]))
    return check.Findings(settings, tuple(game.play() for game in check.GAMES[:-1]))


# -- generated parts ---------------------------------------------


def test_generated_parts_are_up_to_date() -> None:
    for name, content in protocol_tables.sections().items():
        assert part(name) == content, "secure-codream check --write-tables docs/protocol.md"


def test_checkers_tables_are_up_to_date(findings: check.Findings) -> None:
    """But for what takes long: five members, and the last defence."""
    made = protocol_tables.checker_sections(findings)
    defences = part("checked-defences").splitlines()
    assert defences[:-1] == made["checked-defences"].splitlines() and check.GAMES[-1].off[0] in defences[-1]
    assert "NOT" not in part("checked-defences")
    written, fresh = part("checked-settings").splitlines(), made["checked-settings"].splitlines()
    assert re.fullmatch(r"`secure-codream check --members 3-5`, 2\d\d\d-\d\d-\d\d\.", written[0])
    assert written[1 : len(fresh)] == fresh[1:]
    five = [row for row in written if row.startswith("| 5 |")]
    assert len(five) == len(check.settings_of([5])) and not any("NOT" in row for row in five)


def test_every_part_has_a_maker(findings: check.Findings) -> None:
    made = {**protocol_tables.sections(), **protocol_tables.checker_sections(findings)}
    assert set(re.findall(r"<!-- generated: ([\w-]+) -->", TEXT)) == set(made)
    assert (
        protocol_tables.write_sections(TEXT, {"rules": "new"}).count("new")
        == TEXT.count("new") - part("rules").count("new") + 1
    )
    with pytest.raises(ValueError, match="found 0 places"):
        protocol_tables.write_sections(TEXT, {"nowhere": ""})


def test_state_tables_reach_every_transition() -> None:
    client = protocol_tables.client_states()
    assert {(state.value, kind.__name__) for state, kind in TRANSITIONS} == {
        key for key in client if key[1] != "own vector"
    }
    assert {state for states in client.values() for state in states} == {state.value for state in State}
    server = protocol_tables.server_states()
    assert {state for state, _ in server} | {state for states in server.values() for state in states} == {
        phase.value for phase in Phase
    }


@pytest.mark.parametrize(("members", "steps", "coordinates"), [(3, 1, 1), (10, 12, 1000), (150, 40, 5000)])
def test_sizes_are_what_the_formulas_say(members: int, steps: int, coordinates: int) -> None:
    """But for MessagePack's own bytes, up to 80 a message (in a plan, with its names, 240) and 32 an item."""
    found = protocol_tables.sample_sizes(members, steps, coordinates)
    threshold, modulus = default_threshold(members, 1), modulus_bits_for(16, members)
    for kind, (_, formula) in protocol_tables.SIZES.items():
        extra = found[kind] - formula(members, threshold, steps, modulus, coordinates)
        assert 0 < extra <= (240 if kind.__name__ == "PlanOffer" else 80) + 32 * members, kind


# -- promises and rules ---------------------------------------------


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.key)
def test_promise_is_stated(promise: Promise) -> None:
    """Its heading, and under it its very words."""
    _, _, rest = TEXT.partition(f"\n### {promise.key}. {promise.title}\n\n")
    quoted = rest.partition("\n\n")[0]
    assert " ".join(line.removeprefix("> ") for line in quoted.splitlines()) == promise.text


def test_no_other_promise_is_made() -> None:
    assert re.findall(r"^### ([PL]\d+)\.", TEXT, re.MULTILINE) == [promise.key for promise in PROMISES]


def test_rules_have_words_and_are_all_there() -> None:
    rules = {name for name in dir(ClientProtocol) if name.startswith("_rule_")}
    assert set(protocol_tables.rules()) == rules and all(protocol_tables.rules().values())
    assert set(re.findall(r"`(_rule_\w+)`", TEXT)) == rules


# -- messages and labels ---------------------------------------------


@pytest.mark.parametrize("kind", sorted({*get_args(ToClient), *get_args(ToServer)}, key=lambda kind: kind.__name__))
def test_message_has_its_row(kind: type) -> None:
    (row,) = re.findall(
        rf"^\| `{kind.__name__}` \| `{kind.__struct_config__.tag}` \|.*$", part("messages"), re.MULTILINE
    )
    cells = row.strip("| ").split(" | ")
    fields = re.findall(r"(?:^|; )`(\w+)`", cells[3])
    assert fields == list(kind.__struct_fields__)
    ways = [way for way, union in (("to client", ToClient), ("to server", ToServer)) if kind in get_args(union)]
    assert cells[2] == (ways[0] if len(ways) == 1 else "either way")


def labels_in_code() -> set[str]:
    """First arguments of `labelled`, `digest` and `sign`, and the labels that `verify` is given."""
    found = set()
    rooms = [Path(package.__file__ or "").parent for package in (codream_protocols, secure_codream)]
    threats = rooms[1] / "threats"
    for path in [path for room in rooms for path in room.rglob("*.py") if threats not in path.parents]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = {"labelled": 0, "digest": 0, "sign": 0, "verify": 2}.get(name)
            if place is not None and place < len(node.args):
                label = node.args[place]
                if isinstance(label, ast.Constant) and isinstance(label.value, str):
                    found.add(label.value)
    return found


def test_labels_are_the_codes() -> None:
    table = TEXT.partition("| label | used for |")[2].partition("\n\n")[0]
    labels = [line.split(" | ")[0].strip("| `") for line in table.splitlines()[2:]]
    assert len(labels) > 15 and set(labels) == labels_in_code()


# -- the command ---------------------------------------------


def test_command_prints_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "GAMES", check.GAMES[:2])
    result = CliRunner().invoke(app, ["check", "--members", "3", "--json"])
    assert result.exit_code == 0
    assert '"as_promised": true' in result.stdout


def test_command_fails_when_something_is_not_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a rule that allows one threshold too low, and a defence that is said to stand alone."""
    monkeypatch.setattr(check, "safe", lambda members, colluders, threshold: 2 * threshold >= members + colluders)
    monkeypatch.setattr(check, "GAMES", (check.Game(("_rule_is_survivor",), 3, 0, 2, 2),))
    result = CliRunner().invoke(app, ["check", "--members", "4"])
    assert result.exit_code == 1
    assert result.stdout.count("NOT AS PROMISED") == 3  # two settings, one defence


@pytest.mark.parametrize("members", ["2", "3-9", "5-3", "three"])
def test_command_refuses_other_numbers(members: str) -> None:
    assert CliRunner().invoke(app, ["check", "--members", members]).exit_code == 2
