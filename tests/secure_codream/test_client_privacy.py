"""`[client_privacy]`: from the file to policies, plans and whole runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.models.zoo import build
from codream_protocols.charter import Offer, Plan, derive_plan
from codream_protocols.courses.codream import ClientPrivacy, CoDream, DreamSettings
from codream_protocols.errors import PolicyViolation
from codream_protocols.identity import Member, Roster, ServerEntry
from codream_protocols.zcdp import rho_of
from secure_codream import run_local
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.limits import client_policy
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.simulation.in_process import DreamFederation

TABLE = {"epsilon": 3.0, "delta": 1e-6, "update_norm": 20.0, "logit_norm": 1.0}


def federation(**tables: Any) -> FederationConfig:
    content = {"task": {"shape": (1, 8, 8), "classes": 10}, "dreams": {"batch": 16, "steps": 2}, **tables}
    found: FederationConfig = check("config.toml", FederationConfig, content)
    return found


def client(**policy: Any) -> ClientConfig:
    found: ClientConfig = check("client.toml", ClientConfig, {"name": "alice", "model": "mlp", "policy": policy})
    return found


def roster_of(members: int) -> Roster:
    keys = iter(number.to_bytes(32, "big") for number in range(1, 2 * members + 2))
    server = ServerEntry("tcp://127.0.0.1:1", next(keys))
    return Roster("t", 1, server, tuple(Member(f"c{number}", next(keys), next(keys)) for number in range(members)))


def plan_of(config: FederationConfig, members: int = 4) -> Plan:
    charter = config.charter(roster_of(members))
    return derive_plan(charter, make_course(config), Offer(0, charter.everybody, charter.first_head), 0)


def policy_of(config: FederationConfig, **policy: Any) -> Any:
    return client_policy(client(**policy), config, make_course(config))


@pytest.mark.parametrize(
    ("key", "value"), [("epsilon", 0), ("delta", 0), ("delta", 0.5), ("update_norm", 0), ("spare_rounds", -1)]
)
def test_values_that_do_not_fit_are_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"client_privacy.{key}"):
        federation(client_privacy={**TABLE, key: value})


def test_the_table_is_part_of_the_charter() -> None:
    digests = {
        federation(**tables).charter(roster_of(4)).digest
        for tables in ({}, {"client_privacy": TABLE}, {"client_privacy": {**TABLE, "epsilon": 3.5}})
    }
    assert len(digests) == 3


def test_a_client_permits_the_plan_of_its_own_configuration() -> None:
    config = federation(client_privacy=TABLE)
    plan, policy = plan_of(config), policy_of(config)
    policy.check(plan)
    assert policy.most_rho == rho_of(3.0, 1e-6)
    assert 0.95 * policy.most_rho < 4 * plan.total_rho <= policy.most_rho * (1 + 1e-9)  # four rounds by default
    assert [spec.task for spec in plan.specs] == ["update", "logits"]


def test_noise_is_sized_by_the_fewest_honest_members() -> None:
    """In lockstep all but the colluders; where blocks may drop out, a smallest block without them."""
    variances = {}
    for mode in ("lockstep", "resilient"):
        plan = plan_of(federation(client_privacy=TABLE, aggregation={"mode": mode}), members=9)
        variances[mode] = [spec.noise.variance for spec in plan.specs if spec.noise is not None]
        assert plan.charter.least_honest == (8 if mode == "lockstep" else 2)
        assert all(plan.noise_multiplier(spec) > 0.999 * plan_multiplier() for spec in plan.specs)
    for few, many in zip(variances["resilient"], variances["lockstep"], strict=True):
        assert few == pytest.approx(4 * many, rel=0.35)  # the grid of the noise is not the same


def plan_multiplier() -> float:
    course = make_course(federation(client_privacy=TABLE))
    assert isinstance(course, CoDream)
    return course.noise_multiplier


def test_a_client_refuses_less_noise_than_its_configuration_says() -> None:
    config, weaker = federation(client_privacy=TABLE), federation(client_privacy={**TABLE, "epsilon": 4.0})
    with pytest.raises(PolicyViolation, match="noise of"):
        policy_of(config).check(plan_of(weaker))
    policy_of(federation()).check(plan_of(weaker))  # control: a client without the table


def test_a_client_of_a_noised_federation_sends_nothing_without_noise() -> None:
    with pytest.raises(PolicyViolation, match="noise of 0 times the sensitivity for task 'metrics'"):
        policy_of(federation(client_privacy=TABLE)).check(plan_of(federation()))
    policy_of(federation()).check(plan_of(federation()))  # control


def test_a_client_can_demand_noise_of_a_federation_that_has_none_or_less() -> None:
    for config in (federation(), federation(client_privacy=TABLE)):
        policy_of(config).check(plan_of(config))
        with pytest.raises(PolicyViolation, match="noise of"):
            policy_of(config, least_noise=1e3).check(plan_of(config))


def run(**tables: Any) -> Any:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((60, 1, 8, 8), dtype=np.float32)
    labels = np.arange(60) % 3
    return run_local(
        [build("mlp", channels=1, size=8, classes=3, seed=seed) for seed in range(4)],
        [(images[start : start + 12], labels[start : start + 12]) for start in (0, 12, 24, 36)],
        (images[48:], labels[48:]),
        classes=3,
        federation={"rounds": 2},
        dreams={"batch": 8, "steps": 2},
        learning={"warm_up_epochs": 1, "distil_epochs": 1, "local_epochs": 1, "local_steps": 2},
        **tables,
    )


def test_a_run_keeps_its_budget_and_says_so() -> None:
    found = run(client_privacy=TABLE)
    statement = found.client_privacy
    assert found.accuracies.shape == (3, 4)
    assert 0.95 * 3.0 < statement.epsilon_spent <= 3.0 and statement.delta == 1e-6
    assert statement.honest_shares == 3  # lockstep: everybody but one colluder
    assert all(np.isfinite(array).all() for batch in found.dreams for array in batch)
    assert run().client_privacy is None


def dreams_from_zeros(privacy: ClientPrivacy | None) -> Any:
    """The first dreams of four clients, from one start whatever the charter."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((48, 1, 8, 8), dtype=np.float32), np.arange(48) % 3
    learning = LearningSettings(warm_up_epochs=1, distil_epochs=0, local_epochs=0, local_steps=2)
    participants = [
        Participant(
            learning,
            build("mlp", channels=1, size=8, classes=3, seed=number),
            LabelledImages(images[12 * number : 12 * number + 12], labels[12 * number : 12 * number + 12], 3),
            None,
            number,
            torch.device("cpu"),
        )
        for number in range(4)
    ]
    settings = DreamSettings(rounds=1, steps=2, batch=8, shape=(1, 8, 8), classes=3)
    course = CoDream(settings, lambda seed, count, shape: np.zeros((count, *shape), dtype=np.float32), privacy)
    federation = DreamFederation(participants, course, seed=0)
    federation.warm_up()
    federation.round()
    return federation.batches[0][0]


def test_noise_is_really_there() -> None:
    """With almost no noise the dreams are those of the run without; with the noise of epsilon 3 they are others."""
    noised = ClientPrivacy(epsilon=3.0, delta=1e-6, update_norm=20.0, logit_norm=1.0)
    faint = ClientPrivacy(epsilon=1000.0, delta=0.01, update_norm=20.0, logit_norm=1.0)
    without, little, much = (dreams_from_zeros(privacy) for privacy in (None, faint, noised))
    assert np.abs(little - without).mean() < 0.5 * np.abs(much - without).mean()


def test_a_run_repeats_from_its_seed_noise_and_all() -> None:
    first, again = (run(client_privacy=TABLE, seed=5) for _ in range(2))
    other = run(client_privacy=TABLE, seed=6)
    assert np.array_equal(first.accuracies, again.accuracies)
    for batch, same, another in zip(first.dreams, again.dreams, other.dreams, strict=True):
        assert all(np.array_equal(one, two) for one, two in zip(batch, same, strict=True))
        assert not np.array_equal(batch[0], another[0])
