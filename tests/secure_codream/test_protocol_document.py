"""docs/protocol.md says what the code does: generated parts, promises, rules, fields, labels."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from typer.testing import CliRunner

import codream_clients
import codream_protocols
import codream_server
import secure_codream
from codream_protocols import charter
from codream_protocols.charter import default_threshold
from codream_protocols.client import TRANSITIONS, ClientProtocol, State
from codream_protocols.courses.contrast import LEAST_CONTRAST, LEAST_TOLD, MOST_GAIN, REACH, UNITS, contrast_spec
from codream_protocols.courses.registry import COURSES
from codream_protocols.hybrid import KEM_CIPHERTEXT_BYTES, KEM_KEY_BYTES
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import ToClient, ToServer
from codream_protocols.packing import packed_size
from codream_protocols.server import Phase
from codream_protocols.tag import COLUMNS
from secure_codream.cli import app
from secure_codream.threats.checker import check, protocol_tables
from secure_codream.threats.checker.histories import Tried
from secure_codream.threats.promises import PROMISES, Promise

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")


def part(name: str) -> str:
    """A generated part, as the document has it."""
    (found,) = re.findall(rf"<!-- generated: {name} -->\n(.*?)<!-- end -->", TEXT, re.DOTALL)
    return str(found).strip()


# -- generated parts ---------------------------------------------

CHECKED = ("checked-settings", "checked-counts", "checked-courses", "checked-defences")


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    return protocol_tables.sections()


def test_generated_parts_are_up_to_date(sections: dict[str, str]) -> None:
    for name, content in sections.items():
        assert part(name) == content, "secure-codream check --write-tables docs/protocol.md"


def test_every_part_has_a_maker(sections: dict[str, str]) -> None:
    made = {*sections, *CHECKED}
    assert set(re.findall(r"<!-- generated: ([\w-]+) -->", TEXT)) == made
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
    } | {("voted", "Invitation")}  # taken there only as a repetition, of which there is none: refused
    assert {state for states in client.values() for state in states} == {state.value for state in State}
    server = protocol_tables.server_states()
    assert {state for state, _ in server} | {state for states in server.values() for state in states} == {
        phase.value for phase in Phase
    }


@pytest.mark.parametrize("mode", protocol_tables.MODES)
@pytest.mark.parametrize(("members", "steps", "coordinates"), [(3, 1, 1), (12, 12, 1000), (60, 40, 5000)])
def test_sizes_are_what_the_formulas_say(
    mode: protocol_tables.Mode, members: int, steps: int, coordinates: int
) -> None:
    """But for MessagePack's own bytes: up to 80 a message, 40 an item, and in a record 3 a member and 16 a step."""
    found = protocol_tables.sample_sizes(mode, members, steps, coordinates)
    lockstep = mode == "lockstep"
    threshold, quorum = default_threshold(members, 1), members if lockstep else (members + 1) // 2 + 1
    packed = packed_size(coordinates, protocol_tables.modulus_bits(members))
    only = {kind for kind in protocol_tables.SIZES if protocol_tables.SIZES[kind][0].startswith("[")}
    assert set(found) == set(protocol_tables.SIZES) - (only if lockstep else set())
    for kind, size in found.items():
        _, formula = protocol_tables.SIZES[kind]
        extra = size - formula(members, threshold, quorum, steps, packed, not lockstep)
        record = 3 * members + 16 * steps if kind.__name__ == "EpochRecord" else 0
        assert 0 < extra <= 80 + 40 * members + record, kind


def test_the_text_has_the_codes_numbers() -> None:
    """Constants that stand in sentences."""
    for number, sentence in {
        KEM_KEY_BYTES: "keys of {:,} bytes",
        KEM_CIPHERTEXT_BYTES: "ciphertexts of {:,}",
        COLUMNS: "each of {:,} columns",
    }.items():
        assert sentence.format(number) in " ".join(TEXT.split())
    for block in contrast_spec().blocks:
        assert f"`{block.name}` ({block.length}, clip 2^{int(block.clip).bit_length() - 1})" in TEXT
    for sentence in (
        f"unless U < {math.ceil(LEAST_TOLD * UNITS):,} or F_2 / U < 1/{1 / LEAST_CONTRAST:.0f}:",
        f"r           = min(pixel bound, {REACH:.0f})",
        f"max(m_2, 1/256), {MOST_GAIN:.0f})",
        f"max(min(g_2, r) / 4, 1/{1 / (2 * LEAST_CONTRAST):.0f})",
    ):
        assert sentence in TEXT
    assert f"What `{PROTOCOL}` is on the wire" in TEXT and f'"{PROTOCOL} " || label' in TEXT


def test_digested_structures_are_the_plans() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", part("digested"), re.MULTILINE))
    assert {
        "Plan",
        "Charter",
        "Aggregation",
        "Offer",
        "Predecessor",
        "VectorSpec",
        "Block",
        "Noise",
        "RecordNoise",
    } == rows
    for kind in (charter.Plan, charter.Charter, charter.Aggregation, charter.Offer):
        (row,) = re.findall(rf"^\| `{kind.__name__}` \| (.*) \|$", part("digested"), re.MULTILINE)
        assert re.findall(r"(?:^|; )`(\w+)`", row) == list(kind.__struct_fields__)


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


MESSAGES: set[type[msgspec.Struct]] = {*get_args(ToClient), *get_args(ToServer)}
BY_NAME = sorted(MESSAGES, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", BY_NAME)
def test_message_has_its_row(kind: type[msgspec.Struct]) -> None:
    (row,) = re.findall(
        rf"^\| `{kind.__name__}` \| `{kind.__struct_config__.tag}` \|.*$", part("messages"), re.MULTILINE
    )
    cells = row.strip("| ").split(" | ")
    fields = re.findall(r"(?:^|; )`(\w+)`", cells[3])
    assert fields == list(kind.__struct_fields__)
    ways = [way for way, union in (("to client", ToClient), ("to server", ToServer)) if kind in get_args(union)]
    assert cells[2] == (ways[0] if len(ways) == 1 else "either way")


def labels_in_code() -> set[str]:
    """First arguments of `labelled`, `digest` and `sign`, and the labels that `verify` and `draw` are given."""
    found = set()
    packages = (codream_protocols, codream_clients, codream_server, secure_codream)
    rooms = [Path(package.__file__ or "").parent for package in packages]
    threats = rooms[-1] / "threats"
    for path in [path for room in rooms for path in room.rglob("*.py") if threats not in path.parents]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = {"labelled": 0, "digest": 0, "sign": 0, "verify": 2, "draw": 1}.get(name)
            if place is not None and place < len(node.args):
                label = node.args[place]
                if isinstance(label, ast.Constant) and isinstance(label.value, str):
                    found.add(label.value)
    return found


LABELS_BY_RULE = {"start strokes", "start shapes", "start photos"}  # put together from a rule's name


def test_labels_are_the_codes() -> None:
    table = TEXT.partition("| label | used for |")[2].partition("\n\n")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    labels = {label for cell in cells for label in re.findall(r"`([^`]+)`", cell)}
    assert len(labels) > 35 and labels - LABELS_BY_RULE == labels_in_code()


@pytest.mark.parametrize("name", sorted(COURSES))
def test_course_is_named(name: str) -> None:
    words = {"codream": "CoDream", "codream-fast": "CoDream-fast", "fedavg": "FedAvg", "fedprox": "FedProx"}
    words |= {"scaffold": "SCAFFOLD", "moon": "MOON", "sums": "sums of one's own", "dp-sgd": "DP-SGD"}
    assert words[name] in TEXT


# -- the checker ---------------------------------------------


QUICK_GAMES = 2


@pytest.fixture(scope="module")
def findings() -> check.Findings:
    """Of three members, and of a few defences: the rest takes minutes."""
    settings = tuple(map(check.check_row, check.rows_of([3])))
    counts = tuple(check.count(3, colluders, split=True) for colluders in (1,))
    return check.Findings(settings, counts, (), tuple(game.judge() for game in check.GAMES[:QUICK_GAMES]))


def test_checkers_tables_are_up_to_date(findings: check.Findings) -> None:
    """What takes a moment is as the document has it; the rest has a row each, and nothing in it is amiss."""
    made = protocol_tables.checker_sections(findings)
    for name in CHECKED:
        written, fresh = part(name).splitlines(), made[name].splitlines()
        if name == "checked-settings":
            assert re.fullmatch(r"`secure-codream check --members 3-\d`, 2\d\d\d-\d\d-\d\d\.", written[0])
            written, fresh = written[1:], fresh[1:]
        assert written[: len(fresh)] == fresh
        assert not any("NOT" in row for row in written)
    courses = [row.split(" | ")[0].removeprefix("| ") for row in part("checked-courses").splitlines()[2:]]
    assert courses == [what for what, _ in check.COURSES]
    defences = [row.split(" | ")[0] for row in part("checked-defences").splitlines()[2:]]
    assert [re.findall(r"_rule_\w+", row) for row in defences] == [
        [name for name in game.off if name.startswith("_rule_")] for game in check.GAMES
    ]


# -- the command ---------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of three members and one game."""
    monkeypatch.setattr(check, "COURSES", ())
    monkeypatch.setattr(check, "GAMES", check.GAMES[:1])
    monkeypatch.setattr(check, "_counts_of", lambda members: [(3, 1, True)])
    monkeypatch.setattr(check, "rows_of", lambda members: [check.Row("lockstep", 3, 1, 3, "blocks", 2, 1)])


@pytest.mark.usefixtures("short")
def test_command_prints_json_and_writes_the_document(tmp_path: Path) -> None:
    document = tmp_path / "protocol.md"
    document.write_text(TEXT.replace("| `_rule_policy` |", "| `_rule_of_yesterday` |"), encoding="utf-8")
    result = CliRunner().invoke(app, ["check", "--members", "3", "--json", "--write-tables", str(document)])
    assert result.exit_code == 0, result.output
    assert '"as_promised": true' in result.stdout
    written = document.read_text(encoding="utf-8")
    assert "_rule_of_yesterday" not in written
    for name, content in protocol_tables.sections().items():
        assert f"<!-- generated: {name} -->\n\n{content}\n\n<!-- end -->" in written


@pytest.mark.usefixtures("short")
def test_command_fails_when_something_is_not_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controls: a defence that is said to stand alone, and a threshold that is not the rule's."""
    monkeypatch.setattr(check, "GAMES", (check.Game((check.ERASED,), "two sets to each client", _nothing),))
    monkeypatch.setattr(check, "count", lambda *_, **__: check.Count(4, 1, 1, 2, 3, False, 0.0))
    result = CliRunner().invoke(app, ["check", "--members", "3"])
    assert result.exit_code == 1
    assert result.stdout.count("NOT AS PROMISED") == 2


def _nothing(client_class: type[ClientProtocol]) -> Tried:
    return Tried(1)


@pytest.mark.parametrize("members", ["2", "3-9", "5-3", "three"])
def test_command_refuses_other_numbers(members: str) -> None:
    assert CliRunner().invoke(app, ["check", "--members", members]).exit_code == 2
