"""The charter: every key that all agree on is in it, and whoever has another one is refused at the first word."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from pydantic import BaseModel

from codream_protocols.charter import Offer
from codream_protocols.client import ClientProtocol, Send, State
from codream_protocols.errors import CharterRefused, MalformedMessage, RemoteProtocolError
from codream_protocols.messages import Advertisement, Hello, Invitation
from codream_protocols.server import SendTo, ServerProtocol
from codream_protocols.settings import Settings
from secure_codream.configuration.charter_file import MAX_CHARTER_BYTES, charter_bytes, read_charter
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig, learning_settings, privacy_settings
from secure_codream.configuration.reading import check
from secure_codream.simulation.in_process import PERMISSIVE
from tests.secure_codream.small import SUMS, roster_of

MEMBERS = 6
SIGNERS, ROSTER = roster_of(MEMBERS)
LAYOUT = [["weight", [2, 4]], ["bias", [2]]]
TASK = {"shape": (1, 2, 2), "classes": 2, "mean": [0.5], "std": [0.5]}
SMALL = {"task": TASK, "dreams": {"batch": 2, "steps": 2}}

BASES: dict[str, dict[str, Any]] = {
    "codream": {
        **SMALL,
        "predecessor": {"charter": "ab" * 32, "head": "cd" * 32, "certified": 1},
        "code": {"mine:start": "ef" * 32},
    },
    "fedprox": {
        **SMALL,
        "federation": {"course": "fedprox"},
        "averaging": {"layout": LAYOUT},
    },
    "fast": {
        "task": TASK,
        "dreams": {"batch": 2},
        "federation": {"course": "codream-fast"},
        "fast": {"layout": LAYOUT},
    },
    "sums": {**SMALL, "federation": {"course": "sums"}, "sums": SUMS},
    "ring": {
        **SMALL,
        "federation": {"course": "dp-sgd"},
        "dp_sgd": {"layout": LAYOUT, "epsilon": 8.0, "delta": 1e-4, "sample_rate": 0.2, "batch_size": 100, "steps": 5},
    },
    "private": {**SMALL, "privacy": {"epsilon": 4.0}},
    "noised": {
        **SMALL,
        "client_privacy": {"epsilon": 4.0, "delta": 1e-5, "update_norm": 1.0, "logit_norm": 1.0},
    },
}
# Of each base, the tables whose every key is changed in turn.
TABLES = {
    "codream": ("federation", "task", "dreams", "learning", "aggregation", "code", "predecessor"),
    "fedprox": ("averaging",),
    "fast": ("fast",),
    "sums": ("sums",),
    "ring": ("dp_sgd",),
    "private": ("privacy",),
    "noised": ("client_privacy",),
}
# What another value is, where it is not the next number, or the other truth.
OTHERS: dict[str, Any] = {
    "federation.name": "other",
    "federation.course": "codream-fast",
    "task.shape": (1, 2, 3),
    "task.mean": [0.4],
    "task.std": [0.4],
    "task.class_names": ["b", "a"],
    "dreams.start": "strokes",
    "dreams.photographs": "ab" * 32,
    "dreams.views_by": "cutmix",
    "dreams.way": "gradient",
    "dreams.optimiser": "fedadam",
    "learning.training_rounds": 1,
    "learning.schedule": "cosine",
    "learning.distil_schedule": "cosine",
    "learning.momentum": 0.5,
    "learning.teacher": "trained",
    "aggregation.mode": "resilient",
    "aggregation.least_survivors": 4,
    "aggregation.suite": "chacha20",
    "aggregation.losses": "allow",
    "aggregation.blocks": [["client-0", "client-2", "client-4"], ["client-1", "client-3", "client-5"]],
    "code.mine:start": "12" * 32,
    "predecessor.charter": "12" * 32,
    "predecessor.head": "12" * 32,
    "predecessor.blocks": [["12" * 32]],
    "predecessor.colluders": 2,
    "averaging.model": "mlp",
    "averaging.layout": [["weight", [4, 2]], ["bias", [2]]],
    "dp_sgd.model": "mlp_gn",
    "dp_sgd.layout": [["weight", [4, 2]], ["bias", [2]]],
    "dreams.label_by": "votes",
    "fast.layout": [["bias", [2]], ["weight", [2, 4]]],
    "privacy.delta": 1e-6,
    "privacy.records": 1000,
    "privacy.training_rounds": 1,
    "privacy.momentum": 0.5,
    "privacy.statistics_share": 0.1,
    "privacy.accountant": "rdp",
    "privacy.mode": "ghost",
}
FROM_DREAMS = {"way", "views", "views_by", "logit_clip", "window"}


def made(content: dict[str, Any]) -> FederationConfig:
    found: FederationConfig = check("config.toml", FederationConfig, content)
    return found


def leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every key below, with the value that it has, defaults included."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Settings):
        value = vars(value)
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(f"{path}.{name}" if path else name, inner)
    else:
        yield path, value


def keys_of(base: str) -> Iterator[tuple[str, Any]]:
    """Every key of the tables that this base is there for."""
    config = made(BASES[base])
    for table in TABLES[base]:
        if table == "learning":
            settings = asdict(learning_settings(config))
            yield from leaves("learning", {name: found for name, found in settings.items() if name not in FROM_DREAMS})
        elif table == "privacy":
            yield from leaves("privacy", asdict(privacy_settings(config.privacy or {})))
        else:
            yield from leaves(table, getattr(config, table))


def other(path: str, value: Any) -> Any:
    """Another value that is allowed there too."""
    if path in OTHERS:
        return OTHERS[path]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    assert isinstance(value, float), f"{path}: say in OTHERS what another value than {value!r} is"
    return value / 2 if value else 0.25


def with_value(base: str, path: str, value: Any) -> FederationConfig:
    """The configuration with one key given."""
    content = copy.deepcopy(BASES[base])
    table = content
    *tables, key = path.split(".")
    for name in tables:
        table = table.setdefault(name, {})
    table[key] = value
    if path == "dreams.way" and value == "gradient":
        table["optimiser"] = "adam"  # each way has its own
    if path == "dreams.photographs" and value is not None:
        table["start"] = "photos"  # which alone has them; test_start_photographs.py has two of these
    return made(content)


EVERY_KEY = [(base, path, value) for base in BASES for path, value in keys_of(base)]


def test_every_table_is_looked_at() -> None:
    assert {table for tables in TABLES.values() for table in tables} | {"timing"} == set(FederationConfig.model_fields)
    assert len(EVERY_KEY) > 100


@pytest.fixture(scope="module")
def originals() -> dict[str, tuple[FederationConfig, Any]]:
    """Each base with its course."""
    return {base: (made(content), make_course(made(content))) for base, content in BASES.items()}


@pytest.mark.parametrize(("base", "path", "value"), EVERY_KEY, ids=[f"{base}-{path}" for base, path, _ in EVERY_KEY])
def test_each_key_in_turn_makes_another_charter_and_every_client_refuses_it(
    originals: dict[str, tuple[FederationConfig, Any]], base: str, path: str, value: Any
) -> None:
    config, course = originals[base]
    charter = config.charter(ROSTER)
    changed = with_value(base, path, other(path, value)).charter(ROSTER)
    assert changed.digest != charter.digest

    server = ServerProtocol(changed, ROSTER, course)
    for member in (0, MEMBERS - 1):
        client = ClientProtocol(
            charter=charter, roster=ROSTER, course=course, member=member, signer=SIGNERS[member], policy=PERMISSIVE
        )
        with pytest.raises(CharterRefused, match="compare"):
            server.hello(member, client.hello())
        # A server that goes on all the same is told nothing but Hello.
        invitation = Invitation(Offer(0, changed.everybody, changed.first_head))
        (answer,) = client.receive(invitation)
        assert isinstance(answer, Send) and isinstance(answer.message, Hello) and client.state is State.IDLE
        # And one that lies about the head is answered under the client's own plan.
        (answer,) = client.receive(Invitation(Offer(0, charter.everybody, charter.first_head)))
        assert isinstance(answer, Send) and isinstance(answer.message, Advertisement)
        server.open_epoch(changed.everybody)
        with pytest.raises(RemoteProtocolError):
            server.receive(member, answer.message)
        server = ServerProtocol(changed, ROSTER, course)


def test_control_client_with_the_same_charter_is_welcome(
    originals: dict[str, tuple[FederationConfig, Any]],
) -> None:
    for config, course in originals.values():
        charter = config.charter(ROSTER)
        server = ServerProtocol(charter, ROSTER, course)
        client = ClientProtocol(
            charter=charter, roster=ROSTER, course=course, member=0, signer=SIGNERS[0], policy=PERMISSIVE
        )
        assert any(isinstance(effect, SendTo) for effect in server.hello(0, client.hello()))
        server.open_epoch(charter.everybody)
        (answer,) = client.receive(Invitation(Offer(0, charter.everybody, charter.first_head)))
        assert isinstance(answer, Send)
        assert server.receive(0, answer.message) == []


@pytest.mark.parametrize(("base", "path", "value"), EVERY_KEY, ids=[f"{base}-{path}" for base, path, _ in EVERY_KEY])
def test_default_that_is_written_out_is_the_same_charter(base: str, path: str, value: Any) -> None:
    config = made(BASES[base])
    if path in ("aggregation.mode", "aggregation.least_survivors"):
        value = getattr(config.aggregation_settings(MEMBERS), path.partition(".")[2])
    if path == "aggregation.blocks":
        value = [[f"client-{member}" for member in block] for block in config.charter(ROSTER).blocks]
    if value is not None:
        assert with_value(base, path, value).charter(ROSTER).digest == config.charter(ROSTER).digest


@pytest.mark.parametrize(("key", "value"), [("join", 3.0), ("step", 5.0), ("beat", 0.5), ("lost_after", 7.0)])
def test_servers_patience_is_its_own(key: str, value: float) -> None:
    assert set(vars(made(SMALL).timing)) == {"join", "step", "beat", "lost_after"}
    config = made({**SMALL, "timing": {key: value}})
    assert config.charter(ROSTER).digest == made(SMALL).charter(ROSTER).digest
    assert charter_bytes(config, ROSTER) == charter_bytes(made(SMALL), ROSTER)


def test_another_roster_is_another_charter() -> None:
    _, longer = roster_of(MEMBERS + 1)
    assert made(SMALL).charter(longer).digest != made(SMALL).charter(ROSTER).digest


# -- the file ---------------------------------------------


@pytest.mark.parametrize("base", BASES)
def test_file_makes_the_same_charter_and_the_same_plan(
    originals: dict[str, tuple[FederationConfig, Any]], base: str
) -> None:
    config, course = originals[base]
    data = charter_bytes(config, ROSTER)
    again, charter = read_charter(data, ROSTER)
    assert charter == config.charter(ROSTER) and again.settings == config.settings
    assert charter_bytes(again, ROSTER) == data
    honest = charter.least_honest
    assert make_course(again).specs(honest) == course.specs(honest)
    assert make_course(again).schedule(1) == course.schedule(1)


def test_order_in_which_sums_are_given_does_not_matter() -> None:
    """The digest does not tell it; so neither may the plan."""
    one, other = (
        made({**BASES["sums"], "sums": {"vectors": vectors}})
        for vectors in (
            {"b": {"x": {}, "y": {"length": 2}}, "a": {"z": {}}},
            {"a": {"z": {}}, "b": {"y": {"length": 2}, "x": {}}},
        )
    )
    assert one.charter(ROSTER).digest == other.charter(ROSTER).digest
    assert make_course(one).specs(3) == make_course(other).specs(3)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: b" " + data,
        lambda data: data.replace(b":", b": ", 1),
        lambda data: data.replace(b'"attempts":20', b'"attempts":20.0'),
        lambda data: data.replace(b'"attempts":20,', b""),
        lambda data: data.replace(b'"attempts":20', b'"attempts":20,"attempts":20'),
        lambda data: data.replace(b"secure-codream/2", b"secure-codream/1"),
        lambda data: data.replace(b'"rounds":4', b'"rounds":"4"'),
        lambda data: data.replace(b'"rounds":4', b'"rounds":0'),
        lambda data: b"[" * 1_000_000,
        lambda data: b"{}",
        lambda data: b"",
        lambda data: b"null",
        lambda data: b"\xff" + data,
        lambda data: json.dumps({**json.loads(data), "more": 1}).encode(),
        lambda data: data + b" " * MAX_CHARTER_BYTES,
    ],
)
def test_text_that_the_server_would_not_write_is_refused(change: Any) -> None:
    data = charter_bytes(made(SMALL), ROSTER)
    assert change(data) != data
    with pytest.raises(MalformedMessage):
        read_charter(change(data), ROSTER)
