"""The rounds of a federation with client-level noise: plans, sums, the budget and what is said about it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from codream_protocols.identity import Member, Roster, ServerEntry
from codream_protocols.plan import check_plan
from codream_protocols.server import Reveal
from codream_protocols.tasks import LEARN, LOGITS, UPDATE
from codream_protocols.vectors import encode_vector
from codream_protocols.zcdp import epsilon_of, rho_of
from codream_server.coordinator import Coordinator
from codream_server.feddream import FedDreamDataset
from codream_server.privacy_statement import noise_multiplier_of
from codream_server.settings import AggregationSettings, ClientPrivacySettings, DreamSettings

MEMBERS, BATCH, CLASSES = 6, 4, 3
PRIVACY = ClientPrivacySettings(epsilon=2.0, delta=1e-5, update_norm=1.5, logit_norm=1.0)
AGGREGATION = AggregationSettings(colluders=1, least_survivors=4)


def make(privacy: ClientPrivacySettings | None = PRIVACY, **options: Any) -> Coordinator:
    key = (number.to_bytes(32, "big") for number in range(1, 2 * MEMBERS + 2))
    server = ServerEntry("tcp://127.0.0.1:1", next(key))
    members = tuple(Member(f"client-{number}", next(key), next(key)) for number in range(MEMBERS))
    return Coordinator(
        dreams=DreamSettings(
            **{"rounds": 3, "steps": 2, "batch": BATCH, "shape": (1, 4, 4), "classes": CLASSES, **options}
        ),
        aggregation=AGGREGATION,
        roster=Roster("test", 1, server, members),
        recipe=bytes(32),
        session=bytes(16),
        seed=7,
        dataset=FedDreamDataset(10),
        privacy=privacy,
    )


def values_of(task: str) -> dict[str, np.ndarray]:
    if task == UPDATE:
        return {"dreams": np.full(BATCH * 16, 0.125)}
    if task == LOGITS:
        return {"numerators": np.full(BATCH * CLASSES, 3.0), "denominators": np.full(CLASSES, 0.5)}
    return {"done": np.ones(1)}


def run_step(coordinator: Coordinator, step: int) -> Any:
    plan = coordinator._plan
    assert plan is not None
    clips, _ = coordinator.broadcast(step)
    rounding = np.random.default_rng(step)
    words = [encode_vector(plan, step, clips, values_of(coordinator.task(step)), rounding) for _ in plan.cohort]
    total = (np.sum(words, axis=0, dtype=np.int64) % (1 << plan.modulus_bits)).astype(words[0].dtype)
    return coordinator.absorb(Reveal(step, total, plan.cohort, False, clips))


@pytest.mark.parametrize("half_way", [False, True])
def test_everything_that_clients_send_of_their_data_is_noised(half_way: bool) -> None:
    coordinator = make(half_way=half_way)
    plan = coordinator.next_plan(range(MEMBERS))
    check_plan(plan)
    assert plan.steps == coordinator.steps_per_round
    multiplier = noise_multiplier_of(PRIVACY, coordinator._settings)
    for spec in plan.specs:
        if spec.task == LEARN:
            assert spec.noise is None and [(block.name, block.length) for block in spec.blocks] == [("done", 1)]
        else:
            assert multiplier <= plan.noise_multiplier(spec) < 1.05 * multiplier
    assert {plan.spec(step).task for step in range(plan.steps)} == {UPDATE, LOGITS, LEARN}


def test_all_rounds_together_keep_the_budget_and_use_it() -> None:
    coordinator = make()
    while not coordinator.done:
        plan = coordinator.next_plan(range(MEMBERS))
        for step in range(plan.steps):
            run_step(coordinator, step)
    statement = coordinator.client_privacy
    assert statement is not None
    assert 0.95 * PRIVACY.epsilon < statement.epsilon_spent <= PRIVACY.epsilon
    assert statement.epsilon_spent == epsilon_of(statement.rho_spent, PRIVACY.delta)
    assert statement.rho == rho_of(2.0, 1e-5) >= statement.rho_spent
    assert (statement.honest_shares, statement.colluders, statement.excess_noise) == (3, 1, 2.0)
    assert json.loads(json.dumps(vars(statement)))["unit"].startswith("a client")


def test_a_round_that_failed_is_paid_for_and_spare_rounds_leave_room() -> None:
    spare = ClientPrivacySettings(epsilon=2.0, delta=1e-5, update_norm=1.5, logit_norm=1.0, spare_rounds=3)
    assert noise_multiplier_of(spare, make()._settings) == pytest.approx(
        math.sqrt(2) * noise_multiplier_of(PRIVACY, make()._settings)
    )
    coordinator = make(spare)
    plan = coordinator.next_plan(range(MEMBERS))
    coordinator.broadcast(0)
    coordinator.give_up()
    assert coordinator.round == 0
    statement = coordinator.client_privacy
    assert statement is not None and statement.rho_spent == plan.rho(plan.spec(0)) > 0


def test_sums_are_means_over_the_survivors_cut_to_what_a_mean_can_be() -> None:
    loud = ClientPrivacySettings(epsilon=900.0, delta=0.01, update_norm=1.5, logit_norm=2.0)
    coordinator = make(loud, update_clip=0.2)
    plan = coordinator.next_plan(range(MEMBERS))
    before = coordinator._dreams.copy()
    result = run_step(coordinator, 0)
    moved = coordinator._dreams - before
    assert result.task == UPDATE and result.entropy is None and result.clipped is None
    norm = 0.125 * 8 / 0.2  # in units of the clip: beyond 1.5
    assert moved.mean() == pytest.approx(0.125 * 1.5 / norm, rel=0.2)
    assert np.abs(moved).max() <= 0.2 + 1e-6
    for step in range(1, plan.steps):
        result = run_step(coordinator, step)
    assert result.task == LEARN and result.metrics is None and coordinator.round == 1
    (dreams, labels) = coordinator.dataset.batches[0]
    assert np.abs(labels).max() <= 30 and labels.mean() == pytest.approx(6.0, rel=0.3)
    assert len(dreams) == BATCH


def test_without_privacy_nothing_is_noised_and_nothing_is_claimed() -> None:
    coordinator = make(None)
    plan = coordinator.next_plan(range(MEMBERS))
    assert coordinator.client_privacy is None
    assert all(spec.noise is None for spec in plan.specs) and plan.total_rho == 0
