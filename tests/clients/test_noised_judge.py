"""The judge of a private client's rounds: noised counts, charged, and nothing else of the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from codream_clients.learning.judge import Judge
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.privacy.accounting import SampledGaussian, concentrated_rho, epsilon_of
from codream_clients.privacy.judge import TOGETHER, NoisedJudge
from codream_clients.privacy.ledger import BudgetExceeded
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.plan import PlannedCharges, PrivacyPlan, PrivacySettings, plan_privacy
from codream_clients.privacy.releases import Releases
from tests.clients.test_judge import CPU, Rule, images

SETTINGS = PrivacySettings(epsilon=4.0, delta=1e-5, batch_size=50, accountant="rdp")
PLAN: PrivacyPlan = plan_privacy(SETTINGS, records=1000, rounds=3, held_back=True)
HELD = images(500, 500)


def judge(releases: Releases | None = None, *, seed: int | None = 0) -> NoisedJudge:
    shelf = releases or Releases(PlannedCharges(PLAN).reserve)
    return NoisedJudge(Judge(HELD, CPU, held_back=True), PLAN, shelf, NoiseSource(seed), CPU)


def test_judgements_are_planned_beside_training_within_the_one_budget() -> None:
    judgements = [charge for charge in PLAN.charges if charge.purpose.startswith("judgement")]
    assert judgements == [SampledGaussian(20.0, 1.0, 1, f"judgement {n}") for n in range(4)]
    assert concentrated_rho(judgements) == pytest.approx(4 * 0.00125)
    assert epsilon_of(PLAN.charges, PLAN.delta, "rdp") <= 4.0
    alone = plan_privacy(SETTINGS, records=1000, rounds=3)
    assert alone.noise_multiplier < PLAN.noise_multiplier < 1.05 * alone.noise_multiplier
    assert not plan_privacy(PrivacySettings(epsilon=4.0, judge_noise=0), records=9, rounds=3, held_back=True).judgements


def test_a_collapse_is_worse_and_noise_alone_is_not() -> None:
    """Of 1,000 images the best has all right; the noise's deviation is 20."""
    able = judge()
    assert not able.judge(Rule(500.0), 0).worse
    assert not able.judge(Rule(510.0), 1).worse, "noise alone"
    verdict = able.judge(Rule(900.0), 2)
    assert verdict.worse and 500 < verdict.score.correct < 700 and verdict.score.recall is None
    assert float(able.weights["threshold"]) in (500.0, 510.0)


def test_nothing_of_the_images_is_told_but_the_noised_count() -> None:
    """Two models that differ in one image more or less cannot be told from the count: it is another with each try."""
    counts = {judge(seed=seed).judge(Rule(500.0 + more), 0).score.correct for seed in range(6) for more in (0, 1)}
    assert len(counts) > 4 and min(counts) < 1000


def test_each_round_is_counted_and_charged_once_and_kept_for_the_next_process(tmp_path: Path) -> None:
    reserved: list[SampledGaussian] = []
    first = judge(Releases(reserved.append, tmp_path), seed=None)
    once, again = first.judge(Rule(500.0), 1), first.judge(Rule(500.0), 1)
    assert once == again and reserved == [PLAN.judgement(1)]
    later = judge(Releases(reserved.append, tmp_path), seed=None)
    assert later.judge(Rule(500.0), 1).score == once.score and len(reserved) == 1
    assert later.judge(Rule(500.0), 9).score and reserved[1:] == [PLAN.judgement(3)], "after the last round"


@pytest.mark.parametrize("count", [0, 1, TOGETHER + 1])
def test_one_image_more_changes_no_pass_of_the_others_and_fails_alone(count: int) -> None:
    seen: list[int] = []

    class Watched(Rule):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            seen.append(len(batch))
            if (batch == 13.0).any():
                raise ValueError("such a pixel")
            return super().forward(batch)

    held = images(count, 0)
    able = NoisedJudge(
        Judge(held, CPU, held_back=True), PLAN, Releases(PlannedCharges(PLAN).reserve), NoiseSource(0), CPU
    )
    model = Watched(500.0)
    right = able._correct(model)
    assert seen == [TOGETHER] * -(-count // TOGETHER)
    if count:
        held.images[0] = 13.0
        assert right - able._correct(model) == 1 and set(seen) == {TOGETHER}
    verdict = able.judge(model, 0)
    assert verdict.score.images == count and 0 <= verdict.score.accuracy <= 1


def test_without_budget_nothing_is_counted() -> None:
    books = PlannedCharges(PLAN)
    books.reserve(PLAN.judgement(1))
    able = judge(Releases(books.reserve))
    with pytest.raises(BudgetExceeded):
        able.judge(Rule(500.0), 1)


@pytest.mark.parametrize("rolls_back", [True, False])
def test_a_private_round_that_fails_is_rolled_back_for_what_answers(rolls_back: bool) -> None:
    """Control: without it the destroyed model would answer on."""
    model = Rule(500.0)
    participant = Participant(
        LearningSettings(own_weight=0.0, distil_epochs=1),
        model,
        HELD,
        None,
        0,
        CPU,
        local_training=lambda network, data, epochs, seed: None,
        judge=judge(),
        rolls_back=rolls_back,
    )
    participant.warm_up()
    with torch.no_grad():
        model.threshold.fill_(900.0)
    metrics = participant.measure(number=1)
    assert metrics.worse and metrics.rolled_back is rolls_back and metrics.held_recall is None
    assert float(model.threshold.detach()) == (500.0 if rolls_back else 900.0)
    assert np.isclose(participant.held_counts[1], 1000)
