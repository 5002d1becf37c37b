"""Configuration: each error names the key, what was found and what is allowed; the recipe is what all share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from secure_codream.config import (
    MAX_CONFIG_BYTES,
    ClientConfig,
    ConfigError,
    FederationConfig,
    check,
    read_client,
    read_federation,
)

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
    assert config.aggregation_settings().colluders == 1
    assert config.timing_settings().join == 120.0


@pytest.mark.parametrize("steps", [1, 4094])
def test_half_way_needs_a_middle_and_a_step_more(tmp_path: Path, steps: int) -> None:
    path = write(tmp_path, "config.toml", {"task": TASK, "dreams": {"half_way": True, "steps": steps}})
    with pytest.raises(ConfigError, match=f"steps {steps} with half_way; 2 to 4093 are allowed"):
        read_federation(path)


def test_views_and_half_way_dreams_exclude_each_other(tmp_path: Path) -> None:
    for dreams, fine in (({"views": 3}, True), ({"views": 3, "half_way": True}, False)):
        path = write(tmp_path, "config.toml", {"task": TASK, "dreams": dreams})
        if fine:
            assert read_federation(path).dream_settings().labels == 4 * 128
        else:
            with pytest.raises(ConfigError, match="views 3 with half_way; choose one of them"):
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
        ("dreams", "steps", 4095, "less than or equal to 4094"),
        ("dreams", "batch", 1, "greater than or equal to 2"),
        ("dreams", "way", "weights", "'update' or 'gradient'"),
        ("dreams", "optimiser", "sgd", "'average', 'fedadam', 'adam' or 'distadam'"),
        ("dreams", "server_lr", 0.0, "greater than 0"),
        ("dreams", "update_clip", -1.0, "greater than 0"),
        ("aggregation", "value_bits", 32, "less than or equal to 24"),
        ("aggregation", "suite", "xor", "'aes-256-ctr' or 'chacha20'"),
        ("aggregation", "least_survivors", 1, "greater than or equal to 2"),
        ("timing", "join", 0, "greater than 0"),
        ("timing", "attempts", 0, "greater than or equal to 1"),
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
    with pytest.raises(ConfigError, match=rf"{table}\.stepz: found 3; extra inputs are not permitted"):
        read_federation(write(tmp_path, "config.toml", content))


def test_unknown_tables_and_missing_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_federation(write(tmp_path, "config.toml", {"dream": {}}))
    assert "task: field required" in str(caught.value) and "dream: found {}" in str(caught.value)


def test_every_problem_has_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        federation(dreams={"steps": 0}, timing={"join": -1})
    assert len(str(caught.value).splitlines()) == 2


def test_survivors_must_hide_each_honest_client_behind_another() -> None:
    with pytest.raises(ConfigError, match=r"aggregation: .*least_survivors 3; 4 \(colluders \+ 2\) or more"):
        federation(aggregation={"colluders": 2, "least_survivors": 3})
    assert federation(aggregation={"colluders": 2, "least_survivors": 4})


def test_way_and_optimiser_that_do_not_fit_are_named() -> None:
    config = federation(dreams={"way": "gradient"})
    with pytest.raises(ConfigError, match=r"\[dreams\]: way 'gradient' with optimiser 'average'; allowed: "):
        config.dream_settings()


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


def test_clients_file_is_checked_too(tmp_path: Path) -> None:
    assert read_client(write(tmp_path, "client.toml", {"name": "alice", "model": "cnn2"})).policy.colluders == 1
    for content, message in [
        ({"name": "alice"}, "model: field required"),
        ({"name": "alice", "model": "cnn2", "policy": {"colludes": 1}}, r"policy\.colludes: found 1; extra inputs"),
        ({"name": "alice", "model": "cnn2", "weight": 1.5}, r"weight: found 1\.5; input should be less than or equal"),
        ({"name": "alice", "model": "cnn2", "data": {"alpha": 0}}, r"data\.alpha: found 0; input should be greater"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_client(write(tmp_path, "client.toml", content))


def test_configuration_survives_the_way_through_its_file(tmp_path: Path) -> None:
    config = federation(dreams={"steps": 3}, learning={"local_steps": 2}, aggregation={"threshold": 4})
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
    ],
)
def test_recipe_changes_with_what_all_must_share(tables: dict[str, Any]) -> None:
    assert federation(**tables).recipe != federation().recipe


@pytest.mark.parametrize(
    "tables",
    [
        {"timing": {"join": 3.0}},
        {"federation": {"rounds": 9, "seed": 4, "name": "other"}},
        {"aggregation": {"value_bits": 12}},
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


@pytest.mark.parametrize("name", ["../server", "", "a/b", "two words", "x" * 65])
def test_clients_name_must_be_one_that_a_roster_takes(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        check("client.toml", ClientConfig, {"name": name, "model": "cnn2"})
