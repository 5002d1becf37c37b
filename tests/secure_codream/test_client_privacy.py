"""`[client_privacy]`: from the file to policies, plans and whole runs."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from codream_clients.models import build
from codream_protocols.errors import PolicyViolation
from codream_protocols.identity import Member, Roster, ServerEntry
from codream_protocols.plan import Plan
from codream_protocols.tasks import LEARN, LOGITS, METRICS, UPDATE, metrics_spec
from codream_protocols.zcdp import rho_of
from codream_server.coordinator import Coordinator
from codream_server.feddream import FedDreamDataset
from secure_codream import run_local
from secure_codream.config import ClientConfig, ConfigError, FederationConfig, check
from secure_codream.learning import client_policy

TABLE = {"epsilon": 3.0, "delta": 1e-6, "update_norm": 20.0, "logit_norm": 1.0}


def federation(**tables: Any) -> FederationConfig:
    content = {"task": {"shape": (1, 8, 8), "classes": 10}, "dreams": {"batch": 16, "steps": 2}, **tables}
    found: FederationConfig = check("config.toml", FederationConfig, content)
    return found


def client(**policy: Any) -> ClientConfig:
    found: ClientConfig = check("client.toml", ClientConfig, {"name": "alice", "model": "mlp", "policy": policy})
    return found


def plan_of(config: FederationConfig, members: int = 4) -> Plan:
    keys = iter(number.to_bytes(32, "big") for number in range(1, 2 * members + 2))
    server = ServerEntry("tcp://127.0.0.1:1", next(keys))
    roster = Roster("t", 1, server, tuple(Member(f"c{number}", next(keys), next(keys)) for number in range(members)))
    coordinator = Coordinator(
        dreams=config.dream_settings(),
        aggregation=config.aggregation_settings(),
        roster=roster,
        recipe=config.recipe,
        session=bytes(16),
        seed=0,
        dataset=FedDreamDataset(1),
        privacy=config.client_privacy_settings(),
    )
    return coordinator.next_plan(range(members))


@pytest.mark.parametrize(
    ("key", "value"), [("epsilon", 0), ("delta", 0), ("delta", 0.5), ("update_norm", 0), ("spare_rounds", -1)]
)
def test_values_that_do_not_fit_are_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"client_privacy.{key}"):
        federation(client_privacy={**TABLE, key: value})


def test_clips_cannot_follow_a_figure_that_is_not_sent() -> None:
    with pytest.raises(ConfigError, match="adapt_clip"):
        federation(client_privacy=TABLE, dreams={"adapt_clip": True})


def test_the_table_is_part_of_the_recipe() -> None:
    recipes = {
        federation(**tables).recipe
        for tables in ({}, {"client_privacy": TABLE}, {"client_privacy": {**TABLE, "epsilon": 3.5}})
    }
    assert len(recipes) == 3


def test_a_client_permits_the_plan_of_its_own_configuration() -> None:
    config = federation(client_privacy=TABLE)
    plan, policy = plan_of(config), client_policy(client(), config)
    policy.check(plan)
    policy.check_noise(plan)
    assert policy.most_rho == rho_of(3.0, 1e-6)
    assert 4 * plan.total_rho <= policy.most_rho * (1 + 1e-9)  # four rounds by default
    assert set(policy.tasks) == {UPDATE, LOGITS, LEARN}


def test_a_client_refuses_less_noise_than_its_configuration_says() -> None:
    """The recipe is forged, so that the noise alone decides; the control is a client without the table."""
    config, weaker = federation(client_privacy=TABLE), federation(client_privacy={**TABLE, "epsilon": 4.0})
    plan = msgspec.structs.replace(plan_of(weaker), recipe=config.recipe)
    policy = client_policy(client(), config)
    policy.check(plan)
    with pytest.raises(PolicyViolation, match="noise of"):
        policy.check_noise(plan)
    client_policy(client(), federation()).check_noise(plan)


def test_a_client_of_a_noised_federation_gives_no_metrics() -> None:
    config = federation(client_privacy=TABLE)
    plan = plan_of(config)
    asked = msgspec.structs.replace(plan, specs=(*plan.specs[:2], metrics_spec()))
    with pytest.raises(PolicyViolation, match=METRICS):
        client_policy(client(), config).check(asked)
    client_policy(client(), federation()).check(msgspec.structs.replace(asked, recipe=federation().recipe))  # control


def test_a_client_can_demand_noise_of_a_federation_that_has_none_or_less() -> None:
    for config in (federation(), federation(client_privacy=TABLE)):
        client_policy(client(), config).check_noise(plan_of(config))
        with pytest.raises(PolicyViolation, match="noise of"):
            client_policy(client(least_noise=1e3), config).check_noise(plan_of(config))


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
    assert statement.honest_shares == 2
    assert all(np.isfinite(array).all() for batch in found.dreams for array in batch)
    assert run().client_privacy is None


def test_noise_is_really_there() -> None:
    """With almost no noise the dreams are those of the run without; with the noise of epsilon 3 they are others."""
    plain, faint, noised = (
        run(**tables).dreams[0][0]
        for tables in (
            {},
            {"client_privacy": {**TABLE, "epsilon": 1000.0, "delta": 0.01}, "aggregation": {"least_survivors": 4}},
            {"client_privacy": TABLE},
        )
    )
    assert np.abs(faint - plain).mean() < 0.5 * np.abs(noised - plain).mean()
