"""Configuration: each error names the key, what was found and what is allowed; the recipe is what all share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from codream_protocols.charter import MAX_STEPS, Policy, check_charter
from codream_protocols.course import fingerprint
from codream_protocols.courses.codream import UPDATE
from codream_protocols.courses.labels import LOGITS
from codream_protocols.courses.metrics import METRICS
from codream_protocols.courses.registry import COURSES
from codream_protocols.errors import UnsafePlan
from codream_protocols.starts import START_NAMES
from secure_codream.configuration.client import ClientConfig, PolicyTable, read_client
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig, read_federation
from secure_codream.configuration.own_code import source_digest
from secure_codream.configuration.reading import MAX_CONFIG_BYTES, ConfigError, check
from tests.secure_codream.small import roster_of

TASK = {"shape": [1, 8, 8], "classes": 10}


def federation(**tables: Any) -> FederationConfig:
    found: FederationConfig = check("config.toml", FederationConfig, {"task": {**TASK, "shape": (1, 8, 8)}, **tables})
    return found


def write(folder: Path, name: str, content: dict[str, Any]) -> Path:
    path = folder / name
    path.write_text(tomli_w.dumps(content), encoding="utf-8")
    return path


def test_smallest_file_has_every_default(tmp_path: Path) -> None:
    config = read_federation(write(tmp_path, "config.toml", {"task": TASK}))
    assert config.task.shape == (1, 8, 8)
    assert config.dream_settings().coordinates == 128 * 64
    assert config.aggregation_settings(5).colluders == 1
    assert config.timing.join is None


@pytest.mark.parametrize("steps", [0, 1])
def test_half_way_needs_a_middle(tmp_path: Path, steps: int) -> None:
    path = write(tmp_path, "config.toml", {"task": TASK, "dreams": {"half_way": True, "steps": steps}})
    with pytest.raises(ConfigError, match=f"steps is {steps} with half_way; 2 or more is allowed"):
        read_federation(path)


@pytest.mark.parametrize(
    ("dreams", "tasks"),
    [
        ({"steps": 0}, [METRICS, LOGITS]),
        ({"steps": 2}, [METRICS, UPDATE, UPDATE, LOGITS]),
        ({"steps": 2, "half_way": True}, [METRICS, UPDATE, LOGITS, UPDATE, LOGITS]),
    ],
)
def test_steps_are_what_they_say_none_included(dreams: dict[str, Any], tasks: list[str]) -> None:
    course = make_course(federation(dreams=dreams))
    kinds = course.specs(2)
    assert [kinds[kind].task for kind in course.schedule(0)] == tasks


def test_most_steps_with_half_way_fit_into_an_epoch() -> None:
    for half_way in (True, False):
        course = make_course(federation(dreams={"steps": MAX_STEPS - 3, "half_way": half_way}))
        assert len(course.schedule(0)) <= MAX_STEPS


@pytest.mark.parametrize("start", START_NAMES)
def test_starts_by_name_make_a_course_that_starts_alike_everywhere(start: str) -> None:
    config = federation(dreams={"start": start, "batch": 4}, task={"shape": (1, 16, 16), "classes": 10})
    one, other = (make_course(config).start(bytes(range(32)), 0, None) for _ in range(2))
    assert one["dreams"].shape == (4, 1, 16, 16) and np.isfinite(one["dreams"]).all()
    assert fingerprint(one) == fingerprint(other)
    third = make_course(config).start(bytes(32), 0, None)
    assert fingerprint(one) != fingerprint(third)


LARGE = {"shape": (3, 512, 512), "classes": 10}


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (
            {"task": LARGE, "dreams": {"start": "photos", "steps": 0, "batch": 4}},
            "start 'photos' failed: .*photograph 0 of 427 x 640 pixels; allowed: at least 512 x 512",
        ),
        (
            {"task": {**LARGE, "shape": (3, 224, 224)}, "dreams": {"steps": 0, "batch": 60_000}},
            "60000 images of shape .* choose a smaller batch",
        ),
        (
            {"task": LARGE, "dreams": {"steps": 0, "batch": 64, "views": 64}},
            "4160 images of shape .* or fewer views",
        ),
        (
            {"task": LARGE, "federation": {"course": "codream-fast"}, "dreams": {"batch": 1024}},
            "5120 images of shape .* in each of 4 rounds",
        ),
    ],
)
def test_what_no_epoch_could_start_with_is_refused_when_the_course_is_made(tables: dict[str, Any], words: str) -> None:
    """So whatever makes it refuses: `provision`, `doctor`, `charter`, a server and a client."""
    with pytest.raises(ConfigError, match=words):
        make_course(federation(**tables))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise MemoryError('of mine')", "start 'mine_of_a_start:made' failed: MemoryError: of mine"),
        ("return np.zeros((count, *shape))", "start images of float64"),
        ("return np.zeros((count, 1), np.float32)", r"start images of shape \(128, 1\)"),
    ],
)
def test_own_start_that_makes_no_images_is_refused_before_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "mine_of_a_start:made"
    Path("mine_of_a_start.py").write_text(f"import numpy as np\n\n\ndef made(seed, count, shape):\n    {body}\n")
    with pytest.raises(ConfigError, match=words):
        make_course(federation(dreams={"start": name}, code={name: source_digest(name)}))


NOISED = {"epsilon": 8.0, "delta": 1e-5}


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"dreams": {"matched": True}, "privacy": {"epsilon": 8.0}}, "matched: found true with .privacy.; false is"),
        (
            {"dreams": {"steps": 0}, "client_privacy": {**NOISED, "update_norm": 1.0, "logit_norm": 1.0}},
            "update_norm is 1.0 with steps = 0; none is allowed",
        ),
        (
            {"dreams": {"label_by": "votes"}, "learning": {"label_deviation": 6.0}},
            "label_deviation: found 6.0 with label_by 'votes'; 0 is allowed",
        ),
        *(
            (
                {"federation": {"course": "codream-fast"}, "dreams": {name: value}},
                f"{name}: found {value!r} with course 'codream-fast'",
            )
            for name, value in {
                "start": "strokes",
                "matched": True,
                "views": 3,
                "steps": 4,
                "label_by": "votes",
            }.items()
        ),
    ],
)
def test_settings_of_no_effect_are_refused_when_the_course_is_made(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_course(federation(**tables))


def test_an_adaptive_term_without_updates_is_refused_as_it_is_read() -> None:
    with pytest.raises(ConfigError, match=r"adaptive_weight is 1\.0 with steps = 0; 0 is allowed"):
        federation(dreams={"steps": 0, "adaptive_weight": 1.0})


def test_start_that_nobody_knows_is_named() -> None:
    with pytest.raises(ConfigError, match=r"dreams\.start: found 'smoke'; noise, .* or module:function is allowed"):
        federation(dreams={"start": "smoke"})


@pytest.mark.parametrize("course", COURSES)
def test_courses_by_name_are_made(course: str) -> None:
    sums = {"vectors": {"patients": {"number": {"count": True, "bound": 1000}}}}
    ring = {"epsilon": 4.0, "delta": 1e-5, "sample_rate": 0.1, "batch_size": 100.0, "steps": 2}
    own = {"dp_sgd": ring} if course == "dp-sgd" else {"sums": sums}
    made = make_course(federation(federation={"course": course, "rounds": 2}, **own))
    assert made.epochs >= 1 and made.specs(2) and made.schedule(0)


def test_course_that_nobody_knows_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"federation\.course: found 'fedsgd'; codream, .*sums or module:name is allow"
    ):
        federation(federation={"course": "fedsgd"})
    with pytest.raises(ConfigError, match=r"course 'sums' without \[sums.vectors\]"):
        federation(federation={"course": "sums"})


def test_views_and_half_way_dreams_exclude_each_other(tmp_path: Path) -> None:
    for dreams, fine in (({"views": 3}, True), ({"views": 3, "half_way": True}, False)):
        path = write(tmp_path, "config.toml", {"task": TASK, "dreams": dreams})
        if fine:
            assert read_federation(path).dream_settings().labels == 4 * 128
        else:
            with pytest.raises(ConfigError, match="views is 3 with half_way; choose one of them"):
                read_federation(path)


def test_half_way_is_part_of_the_recipe_and_reaches_the_server(tmp_path: Path) -> None:
    with_it, without = (
        read_federation(write(tmp_path, "config.toml", {"task": TASK, "dreams": {"half_way": half_way}}))
        for half_way in (True, False)
    )
    assert with_it.dream_settings().half_way and not without.dream_settings().half_way
    assert with_it.recipe != without.recipe


@pytest.mark.parametrize(
    ("table", "key", "found", "allowed"),
    [
        ("federation", "rounds", 0, "greater than or equal to 1"),
        ("federation", "name", "a b", "should match pattern"),
        ("task", "classes", 1, "greater than or equal to 2"),
        ("dreams", "steps", 4094, "less than or equal to 4093"),
        ("dreams", "steps", -1, "greater than or equal to 0"),
        ("dreams", "batch", 1, "greater than or equal to 2"),
        ("dreams", "way", "weights", "'update' or 'gradient'"),
        ("dreams", "optimiser", "sgd", "'average', 'fedadam' or 'adam'"),
        ("dreams", "server_lr", 0.0, "greater than 0"),
        ("dreams", "update_clip", -1.0, "greater than 0"),
        ("aggregation", "value_bits", 32, "at least 2, at most 24"),
        ("aggregation", "suite", "xor", "'aes-256-ctr' or 'chacha20'"),
        ("aggregation", "least_survivors", 2, "3 (colluders + 2) or more"),
        ("aggregation", "colluders", 0, "at least 1, below 100000"),
        ("aggregation", "mode", "quick", "'lockstep' or 'resilient'"),
        ("aggregation", "losses", "all", "'blocks' or 'allow'"),
        ("aggregation", "attempts", 0, "at least 1, at most 1000"),
        ("timing", "join", 0, "greater than 0"),
        ("timing", "beat", 1e-9, "greater than or equal to 0.1"),
        ("timing", "beat", "often", "valid number"),
    ],
)
def test_value_out_of_range_is_named(tmp_path: Path, table: str, key: str, found: Any, allowed: str) -> None:
    content = {"task": dict(TASK)}
    content.setdefault(table, {})[key] = found
    with pytest.raises(ConfigError) as caught:
        read_federation(write(tmp_path, "config.toml", content))
    assert f"config.toml: {table}.{key}: found {found!r}; " in str(caught.value)
    assert allowed in str(caught.value)


@pytest.mark.parametrize("table", ["federation", "task", "dreams", "aggregation", "timing"])
def test_unknown_keys_are_refused(tmp_path: Path, table: str) -> None:
    content: dict[str, Any] = {"task": dict(TASK)}
    content.setdefault(table, {})["stepz"] = 3
    with pytest.raises(ConfigError, match=rf"{table}\.stepz: found 3; there is no such key"):
        read_federation(write(tmp_path, "config.toml", content))


def test_unknown_tables_and_missing_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_federation(write(tmp_path, "config.toml", {"dream": {}}))
    assert "task: field required" in str(caught.value) and "dream: found {}" in str(caught.value)


def test_every_problem_has_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        federation(dreams={"steps": -1}, timing={"join": -1})
    assert len(str(caught.value).splitlines()) == 2


def test_survivors_must_hide_each_honest_client_behind_another() -> None:
    with pytest.raises(ConfigError, match=r"aggregation.least_survivors: found 3; 4 \(colluders \+ 2\) or more"):
        federation(aggregation={"colluders": 2, "least_survivors": 3})
    assert federation(aggregation={"colluders": 2, "least_survivors": 4})


def test_way_and_optimiser_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"dreams: way 'gradient' with optimiser 'average'; allowed: "):
        federation(dreams={"way": "gradient"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[task", "found no valid TOML"),
        (b"\xff\xfe", "found no valid TOML"),
        (b"#" * (MAX_CONFIG_BYTES + 1), f"at most {MAX_CONFIG_BYTES} are allowed"),
    ],
)
def test_file_that_is_no_configuration_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_federation(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no such file"):
        read_client(tmp_path / "client.toml")


@pytest.mark.parametrize(
    ("key", "given", "read"),
    [
        ("source", "scans.npz", "{folder}/scans.npz"),
        ("source", "./scans", "{folder}/scans"),
        ("source", "../scans/", "{folder}/../scans"),
        ("source", "/data/scans.npz", "/data/scans.npz"),
        ("source", "~/scans.npz", "~/scans.npz"),
        ("source", "digits", "digits"),
        ("source", "my_module:load", "my_module:load"),
        ("root", "sets", "{folder}/sets"),
        ("root", "/sets", "/sets"),
    ],
)
def test_relative_paths_of_a_client_start_at_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, given: str, read: str
) -> None:
    """So that a service finds them wherever it is started."""
    write(tmp_path, "client.toml", {"name": "alice", "model": "cnn2", "data": {key: given}})
    monkeypatch.chdir(tmp_path.parent)
    found = read_client(Path(tmp_path.name) / "client.toml")
    assert str(getattr(found.data, key)) == read.format(folder=tmp_path)


def test_clients_file_is_checked_too(tmp_path: Path) -> None:
    assert read_client(write(tmp_path, "client.toml", {"name": "alice", "model": "cnn2"})).policy.colluders is None
    for content, message in [
        ({"name": "alice"}, "model: field required"),
        ({"name": "alice", "model": "cnn2", "policy": {"colludes": 1}}, r"policy\.colludes: found 1; there is no"),
        (
            {"name": "alice", "model": "cnn2", "policy": {"colluders": 0}},
            r"policy\.colluders: found 0; at least 1",
        ),
        ({"name": "alice", "model": "cnn2", "policy": {"code": {"a:B": "12"}}}, r"policy\.code\.a:B: found '12'"),
        ({"name": "alice", "model": "cnn2", "weight": 1.5}, r"weight: found 1\.5; input should be less than or equal"),
        ({"name": "alice", "model": "cnn2", "data": {"alpha": 0}}, r"data\.alpha: found 0; input should be greater"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_client(write(tmp_path, "client.toml", content))


def test_configuration_survives_the_way_through_its_file(tmp_path: Path) -> None:
    config = federation(dreams={"steps": 3}, learning={"local_steps": 2}, aggregation={"least_survivors": 4})
    path = write(tmp_path, "config.toml", config.model_dump(mode="json", exclude_none=True))
    assert read_federation(path) == config and read_federation(path).recipe == config.recipe


# -- the recipe ---------------------------------------------


@pytest.mark.parametrize(
    "tables",
    [
        {"dreams": {"steps": 11}},
        {"dreams": {"update_clip": 0.5}},
        {"learning": {"local_steps": 3}},
        {"learning": {"loss": {"alpha_bn": 0.0}}},
        {"task": {"shape": (1, 8, 8), "classes": 9}},
        {"federation": {"rounds": 9}},
        {"federation": {"seed": 4}},
        {"federation": {"name": "other"}},
    ],
)
def test_recipe_changes_with_what_all_must_share(tables: dict[str, Any]) -> None:
    assert federation(**tables).recipe != federation().recipe


@pytest.mark.parametrize(
    "tables",
    [
        {"timing": {"join": 3.0}},
        {"aggregation": {"value_bits": 12}},  # which the charter has beside it
    ],
)
def test_recipe_does_not_change_with_the_rest(tables: dict[str, Any]) -> None:
    assert federation(**tables).recipe == federation().recipe


def test_recipe_does_not_depend_on_the_order_of_keys() -> None:
    one = federation(learning={"local_steps": 3, "lr": 0.1})
    other = federation(learning={"lr": 0.1, "local_steps": 3})
    assert one.recipe == other.recipe and len(one.recipe) == 32


@pytest.mark.parametrize("text", ["lr = nan", "lr = inf", "since = 2026-01-01"])
def test_learning_value_that_no_digest_can_hold_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"[task]\nshape = [1, 8, 8]\nclasses = 10\n[learning]\n{text}\n")
    with pytest.raises(ConfigError, match="learning"):
        _ = read_federation(path).recipe


@pytest.mark.parametrize(
    ("aggregation", "members", "resolved"),
    [
        ({}, 3, ("lockstep", 3)),
        ({}, 30, ("lockstep", 3)),
        ({}, 31, ("resilient", 3)),
        ({"colluders": 4}, 8, ("lockstep", 6)),
        ({"mode": "resilient", "least_survivors": 5}, 8, ("resilient", 5)),
    ],
)
def test_what_is_left_out_follows_from_the_number_of_members(
    aggregation: dict[str, Any], members: int, resolved: tuple[str, int]
) -> None:
    found = federation(aggregation=aggregation).aggregation_settings(members)
    assert (found.mode, found.least_survivors) == resolved


def test_too_few_clients_are_named() -> None:
    for aggregation, members, least in (({}, 2, 3), ({"colluders": 3}, 4, 5), ({"least_survivors": 6}, 5, 6)):
        with pytest.raises(ConfigError, match=f"found {members} clients; {least} or more are needed"):
            federation(aggregation=aggregation).aggregation_settings(members)


def test_blocks_name_the_rosters_clients() -> None:
    _, members = roster_of(6)
    names = [member.name for member in members.members]
    found = federation(aggregation={"blocks": [names[3:], names[:3]]}).charter(members)
    assert {frozenset(block) for block in found.blocks} == {frozenset({0, 1, 2}), frozenset({3, 4, 5})}
    with pytest.raises(ConfigError, match=r"\[aggregation\]: blocks name mallory; the roster's clients are needed"):
        federation(aggregation={"blocks": [names, ["mallory"]]}).charter(members)
    for wrong in ([names[:3]], [names, names[:1]], [names[:4], names[4:]]):  # somebody missing, twice, or in too few
        with pytest.raises(UnsafePlan, match="block"):
            check_charter(federation(aggregation={"blocks": wrong}).charter(members))


def test_own_code_needs_its_digest() -> None:
    for tables in ({"federation": {"course": "mine:Course"}}, {"dreams": {"start": "mine:start"}}):
        with pytest.raises(ConfigError, match=r"without an entry in \[code\]; the SHA-256 of its source is needed"):
            federation(**tables)
    assert federation(dreams={"start": "mine:start"}, code={"mine:start": "ab" * 32}).code


def test_policy_is_a_table_of_limits_that_are_left_to_the_charter_unless_given() -> None:
    policy = read_policy().policy()
    assert policy == Policy()
    stricter = read_policy(least_cohort=5, losses=True, least_noise=2.0).policy(most_rho=0.5, least_noise=1.0)
    assert (stricter.least_cohort, stricter.losses, stricter.least_noise, stricter.most_rho) == (5, True, 2.0, 0.5)


def read_policy(**values: Any) -> PolicyTable:
    found: PolicyTable = check("client.toml", PolicyTable, values)
    return found


@pytest.mark.parametrize("name", ["../server", "", "a/b", "two words", "x" * 65])
def test_clients_name_must_be_one_that_a_roster_takes(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        check("client.toml", ClientConfig, {"name": name, "model": "cnn2"})
