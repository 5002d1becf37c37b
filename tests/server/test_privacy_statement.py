"""What a server may say about client-level privacy, and that its figures are those of the charter's plans."""

from __future__ import annotations

import json

import numpy as np
import pytest

from codream_protocols.charter import Aggregation, Charter, Offer, derive_plan, even_blocks
from codream_protocols.courses.codream import ClientPrivacy, CoDream, DreamSettings
from codream_protocols.distributed_noise import noise_rho
from codream_protocols.zcdp import epsilon_of, rho_of
from codream_server.privacy_statement import client_privacy_statement, noise_multiplier_of

PRIVACY = ClientPrivacy(epsilon=2.0, delta=1e-5, update_norm=1.5, logit_norm=1.0)
EIGHT = ClientPrivacy(epsilon=8.0, delta=1e-5, update_norm=1.5, logit_norm=1.0)
DREAMS = DreamSettings(rounds=3, steps=2, batch=4, shape=(1, 4, 4), classes=3)


def start(seed: bytes, batch: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.zeros((batch, *shape), np.float32)


def charter(aggregation: Aggregation, members: int = 6) -> Charter:
    blocks = even_blocks(members, aggregation.colluders)
    return Charter(roster=bytes(32), members=members, settings=bytes(32), aggregation=aggregation, blocks=blocks)


@pytest.mark.parametrize(
    ("aggregation", "honest"),
    [
        (Aggregation(), 5),  # lockstep: everybody but the colluders
        (Aggregation(colluders=2, least_survivors=4), 4),
        (Aggregation(mode="resilient"), 2),  # the smallest block but the colluder
        (Aggregation(mode="resilient", losses="allow", least_survivors=4), 3),
    ],
)
def test_statement_is_of_the_charters_fewest_honest_members_and_all_rounds_keep_the_budget(
    aggregation: Aggregation, honest: int
) -> None:
    agreed = charter(aggregation)
    course = CoDream(DREAMS, start, PRIVACY)
    assert noise_multiplier_of(PRIVACY, DREAMS) == course.noise_multiplier
    plans = [
        derive_plan(agreed, course, Offer(number, agreed.everybody, bytes(32)), number)
        for number in range(course.epochs)
    ]
    spent = sum(plan.total_rho for plan in plans)
    statement = client_privacy_statement(PRIVACY, DREAMS, agreed, spent_rho=spent)
    assert statement.honest_shares == honest == agreed.least_honest
    assert statement.colluders == aggregation.colluders
    assert statement.excess_noise == pytest.approx(6 / honest)
    assert 0.9 * PRIVACY.epsilon < statement.epsilon_spent <= PRIVACY.epsilon * (1 + 1e-9)
    assert statement.rho == rho_of(2.0, 1e-5) >= statement.rho_spent * (1 - 1e-9)
    assert json.loads(json.dumps(vars(statement)))["unit"].startswith("a client")


def test_what_it_costs_by_clients_that_reveal_their_shares_is_that_of_their_charters() -> None:
    """With one colluder more the plan's own rho, counted on one honest share less, says the same."""
    agreed = charter(Aggregation(colluders=1, least_survivors=5))
    course = CoDream(DREAMS, start, PRIVACY)
    stated = client_privacy_statement(PRIVACY, DREAMS, agreed, spent_rho=0.0)
    assert len(stated.epsilon_by_colluders) == 6 and stated.epsilon_by_colluders[1] == pytest.approx(2.0)
    offer = Offer(0, agreed.everybody, bytes(32))
    spec = next(kind for kind in derive_plan(agreed, course, offer, 0).specs if kind.noise is not None)
    for revealed, epsilon in enumerate(stated.epsilon_by_colluders):
        ratio = noise_rho(spec.noise, spec.length, 6 - revealed) / noise_rho(spec.noise, spec.length, 5)
        assert epsilon == pytest.approx(epsilon_of(rho_of(2.0, 1e-5) * ratio, 1e-5))
    assert list(stated.epsilon_by_colluders) == sorted(stated.epsilon_by_colluders)
    alone = client_privacy_statement(EIGHT, DREAMS, charter(Aggregation(colluders=0), members=3), spent_rho=0.0)
    said = [*alone.epsilon_by_colluders[:2]]
    assert said == pytest.approx([8.0, 10.21], abs=0.005)  # the documentation's


def test_spare_rounds_ask_for_more_noise() -> None:
    spare = ClientPrivacy(epsilon=2.0, delta=1e-5, update_norm=1.5, logit_norm=1.0, spare_rounds=3)
    ratio = noise_multiplier_of(spare, DREAMS) / noise_multiplier_of(PRIVACY, DREAMS)
    assert ratio == pytest.approx(2**0.5)
