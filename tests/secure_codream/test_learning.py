"""From configuration to learning: data, settings, policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

# ruff: noqa: E402

from codream_protocols.charter import Charter, Offer, Plan, derive_plan
from codream_protocols.errors import PolicyViolation
from codream_protocols.identity import Member, Roster, ServerEntry
from secure_codream.configuration.assembly import load_data, make_model, make_participant
from secure_codream.configuration.client import ClientConfig, DataTable
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import AveragingTable, FederationConfig, learning_settings
from secure_codream.configuration.learners import make_learner
from secure_codream.configuration.limits import client_policy
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.experiments.algorithms.fedprox import FedProx
from secure_codream.experiments.algorithms.moon import Moon


def federation(**tables: Any) -> FederationConfig:
    task = {"shape": (1, 8, 8), "classes": 10}
    found: FederationConfig = check("config.toml", FederationConfig, {"task": task, **tables})
    return found


def client(**tables: Any) -> ClientConfig:
    found: ClientConfig = check(
        "client.toml", ClientConfig, {"name": "alice", "model": "mlp", "device": "cpu", **tables}
    )
    return found


def charter_of(config: FederationConfig, members: int = 4) -> Charter:
    """What server and clients of this configuration agree on."""
    keys = iter(number.to_bytes(32, "big") for number in range(1, 2 * members + 2))
    roster = Roster(
        "test",
        1,
        ServerEntry("tcp://127.0.0.1:1", next(keys)),
        tuple(Member(f"client-{number}", next(keys), next(keys)) for number in range(members)),
    )
    return config.charter(roster)


def plan_of(config: FederationConfig, members: int = 4) -> Plan:
    """What they derive for its first epoch."""
    charter = charter_of(config, members)
    return derive_plan(charter, make_course(config), Offer(0, charter.everybody, charter.first_head), 0)


# -- data ---------------------------------------------


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_parts_are_disjoint_of_one_size_and_share_their_test_images(partition: str) -> None:
    tables = [DataTable(partition=partition, alpha=0.1, clients=4, part=part, per_client=20) for part in range(4)]
    loaded = [load_data(table) for table in tables]
    images = np.concatenate([train.images for train, _ in loaded])
    assert len(images) == 80
    if partition == "iid":
        assert len({image.tobytes() for image in images}) >= 78  # the set itself holds a few twins
    assert all(np.array_equal(test.images, loaded[0][1].images) for _, test in loaded)
    assert len(loaded[0][1]) == 600
    held_out = {image.tobytes() for image in loaded[0][1].images}
    assert sum(image.tobytes() in held_out for image in images) <= 2


def test_alpha_is_a_skew() -> None:
    def skew(alpha: float) -> float:
        tables = [
            DataTable(partition="dirichlet", alpha=alpha, clients=5, part=part, per_client=30) for part in range(5)
        ]
        return float(np.mean([load_data(table)[0].class_counts.max() / 30 for table in tables]))

    assert skew(0.05) > 0.5 > 0.3 > skew(100.0)


def test_part_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"\[data\]: part 4 of 4; 0 to 3 is allowed"):
        load_data(DataTable(clients=4, part=4))


def test_mnist_needs_its_folder() -> None:
    with pytest.raises(ConfigError, match=r"\[data\]: root is missing"):
        load_data(DataTable(source="mnist"))


def test_data_of_another_form_than_the_task_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"images of shape \(1, 8, 8\) in 10 classes; .* \(1, 16, 16\) in 10"):
        make_participant(client(), federation(task={"shape": (1, 16, 16), "classes": 10}))


# -- settings and models ---------------------------------------------


def test_settings_follow_the_dreams_tables() -> None:
    config = federation(
        dreams={"way": "gradient", "optimiser": "adam", "update_clip": 0.5, "logit_clip": 7.0, "window": 3},
        learning={"local_epochs": 2, "balanced": False},
    )
    settings = learning_settings(config)
    assert (settings.way, settings.logit_clip, settings.window) == ("gradient", 7.0, 3)
    assert (settings.local_epochs, settings.balanced) == (2, False)


@pytest.mark.parametrize(
    ("learning", "message"),
    [
        ({"local_stepz": 3}, "local_stepz: found 3; there is no such key; did you mean local_steps"),
        (
            {"loss": {"alpha_tvv": 1.0}},
            r"\[learning\]: loss.alpha_tvv: found 1.0; there is no such key; did you mean alpha_tv",
        ),
        ({"logit_clip": 3.0}, "logit_clip: found 3.0; there is no such key"),  # it follows [dreams]
        ({"local_steps": "many"}, "local_steps: found 'many'"),
        ({"momentum": 1.5}, "momentum"),
        ({"local_steps": 0}, "local_steps"),
    ],
)
def test_learning_setting_that_does_not_fit_is_named(learning: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        federation(learning=learning)
    assert "[learning" in str(caught.value)


def test_model_is_made_from_the_clients_seed() -> None:
    def weights(seed: int) -> np.ndarray:
        return next(iter(make_model(client(seed=seed), federation()).parameters())).detach().numpy()

    assert np.array_equal(weights(1), weights(1)) and not np.array_equal(weights(1), weights(2))


# -- policy ---------------------------------------------


def test_policy_permits_the_plan_of_the_same_configuration() -> None:
    for tables in ({}, {"dreams": {"batch": 2, "logit_clip": 0.5, "update_clip": 0.01}}, {"dreams": {"batch": 2}}):
        config = federation(**tables)
        client_policy(client(), config, make_course(config)).check(plan_of(config))


@pytest.mark.parametrize(
    "tables",
    [
        {"dreams": {"batch": 256}},
        {"dreams": {"update_clip": 9.0}},
        {"dreams": {"server_lr": 0.5}},
        {"dreams": {"start": "strokes"}},
        {"learning": {"local_steps": 3}},
        {"federation": {"rounds": 5}},
        {"aggregation": {"colluders": 2}},
        {"aggregation": {"mode": "resilient"}},
        {"aggregation": {"least_survivors": 4}},
    ],
)
def test_what_is_agreed_otherwise_is_another_charter(tables: dict[str, Any]) -> None:
    """And a charter that is not its own, a client refuses at the server's first word."""
    assert charter_of(federation(**tables)).digest != charter_of(federation()).digest


def test_defaults_written_out_are_the_same_charter() -> None:
    written = federation(learning={"local_steps": 10}, aggregation={"mode": "lockstep", "least_survivors": 3})
    assert charter_of(written).digest == charter_of(federation()).digest


def test_clients_own_policy_goes_beyond_the_federations() -> None:
    config = federation()
    for table, what in [
        ({"least_cohort": 5}, "members: 4"),
        ({"colluders": 2}, "tolerated colluders: 1"),
        ({"modes": ("resilient",)}, "mode 'lockstep'"),
        ({"most_steps": 11}, "steps: 12"),
        ({"most_value_bits": 12}, "bits of a value: 16"),
        ({"suites": ("chacha20",)}, "mask suite 'aes-256-ctr'"),
    ]:
        with pytest.raises(PolicyViolation, match=what):
            client_policy(client(policy=table), config, make_course(config)).check(plan_of(config))


# -- the other courses ---------------------------------------------


def test_a_deployments_averaging_has_the_comparisons_constants() -> None:
    table = AveragingTable()
    assert (table.proximal, table.contrast, table.temperature) == (FedProx().mu, Moon().mu, Moon().temperature)


@pytest.mark.parametrize(("begins", "rounds", "has"), [(0, 2, True), (2, 2, False)])
def test_codream_fast_has_its_adversarial_term_from_its_round_on(begins: int, rounds: int, has: bool) -> None:
    """The student follows from the charter's seed, so that all clients begin with the same."""
    config = federation(
        federation={"course": "codream-fast", "rounds": rounds, "seed": 3},
        fast={"adversarial_from": begins, "noise": 8},
        dreams={"views": 0},
    )
    course = make_course(config)
    students = []
    for name in ("alice", "bob"):
        who = client(name=name, data={"source": "digits", "per_client": 20})
        learner: Any = make_learner(who, config, course, model=None, data=None).learner
        students.append(learner._student)
    assert [student is not None for student in students] == [has, has]
    if has:
        one, other = (student.model.state_dict() for student in students)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("course", ["codream", "codream-fast", "fedavg", "fedprox", "scaffold", "moon", "sums"])
def test_a_client_with_a_budget_of_its_own_trains_privately_or_not_at_all(course: str) -> None:
    """Where parameters are averaged it trained without privacy, against what its own file promises."""
    tables: dict[str, Any] = {"federation": {"course": course}}
    if course == "sums":
        tables["sums"] = {"vectors": {"visits": {"patients": {"bound": 1000, "count": True}}}}
    config = federation(**tables)
    who = client(name="alice", answers="mine:answer", budget={"epsilon": 1.0, "delta": 1e-5})
    with pytest.raises(ConfigError, match=r"\[budget\]"):
        make_learner(who, config, make_course(config))


@pytest.mark.parametrize("course", ["fedavg", "fedprox", "scaffold", "moon"])
def test_privacy_with_averaged_parameters_is_refused_before_anybody_signs(course: str) -> None:
    """`provision`, `charter` and `doctor` make the course, too; each client refused only at its start."""
    with pytest.raises(ConfigError, match=r"\[privacy\] with a course that averages parameters"):
        make_course(federation(federation={"course": course}, privacy={"epsilon": 8.0}))


def test_sums_need_no_table_of_images_and_their_charter_has_none() -> None:
    vectors = {"visits": {"patients": {"bound": 1000, "count": True}}}
    tables = {"federation": {"course": "sums"}, "sums": {"vectors": vectors}}
    config: FederationConfig = check("config.toml", FederationConfig, tables)
    assert not {"task", "dreams", "learning"} & set(config.settings) and make_course(config).epochs == 1
    with pytest.raises(ConfigError, match="task"):
        check("config.toml", FederationConfig, {"federation": {"course": "codream"}})
