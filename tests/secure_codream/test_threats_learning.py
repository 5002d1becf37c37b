"""The attacks on learning and by observation, with their controls, and what they are measured by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import load_digits_data
from codream_clients.learning.participant import Participant
from codream_clients.privacy import training as private_training
from secure_codream.threats.attacks import inference as learning
from secure_codream.threats.attacks import inversion, lying, observation, oracles, state
from secure_codream.threats.laboratory.attack import (
    Attack,
    Verdict,
    judge,
)
from secure_codream.threats.laboratory.defences import ALL
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.measures import (
    advantage,
    bootstrapped,
    correlation,
    exposure,
    likelihood_ratios,
    log_odds,
    proportion,
    psnr,
)
from secure_codream.threats.laboratory.server_view import Watched
from secure_codream.threats.laboratory.switches import describe, switched_off
from secure_codream.threats.promises import BY_KEY

MODULES = (inversion, learning, lying, observation, oracles, state)
EVERY = [(module, attack) for module in MODULES for attack in module.ATTACKS]
QUICK = [(module, attack) for module, attack in EVERY if attack.quick]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- attacks ---------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize(("module", "attack"), QUICK, ids=lambda value: getattr(value, "name", None))
def test_attack_fails_where_it_should_and_its_control_works(module: ModuleType, attack: Attack) -> None:
    """As the whole suite shows in one run (`test_threats.py`); here one at a time."""
    evidence = []
    for defences in (ALL, ALL.without(*attack.defences)):
        with switched_off(defences, module.SWITCHES):
            evidence.append(attack.run(defences, Laboratory(0, quick=True)))
    limit = any(BY_KEY[key].is_limit for key in attack.promises)
    assert judge(attack, *evidence) is (Verdict.LIMIT if limit else Verdict.DEFENDED), evidence
    assert evidence[0].learned != evidence[1].learned or evidence[0].refusal


def test_there_are_attacks_enough_with_names_promises_and_defences_of_their_own() -> None:
    names = [attack.name for _, attack in EVERY]
    assert len(names) == len(set(names)) >= 12
    for module, attack in EVERY:
        assert set(attack.promises) <= set(BY_KEY)
        assert attack.adversary and attack.goal.endswith(".")
        for defence in attack.defences:
            assert describe(defence, module.SWITCHES)


def test_pictures_are_images() -> None:
    evidence = inversion.GradientInversion().run(ALL, Laboratory(1))
    assert len(evidence.pictures) == 4
    for picture in evidence.pictures:
        assert picture.pixels.shape == (8, 8)
        assert 0 <= picture.pixels.min() <= picture.pixels.max() <= 1


def test_an_attack_is_the_same_each_time_but_for_masks() -> None:
    defences = ALL.without("masks")
    with switched_off(defences):
        first, second = (inversion.GradientInversion().run(defences, Laboratory(2)) for _ in range(2))
    assert first.value == second.value


# -- what the server holds ---------------------------------------------


def test_server_reads_masked_frames_as_noise_and_plain_ones_as_they_are() -> None:
    vectors = np.random.default_rng(0).uniform(-0.5, 0.5, size=(4, 50))
    for defences, readable in ((ALL, False), (ALL.without("masks"), True)):
        with switched_off(defences):
            server = Watched(Laboratory(), defences, clients=4, length=50, clip=1.0, steps=2)
            assert np.allclose(server.step(vectors), vectors.sum(axis=0), atol=1e-3)
            assert np.allclose(server.read(2), vectors[2], atol=1e-4) is readable


@pytest.mark.parametrize(("losses", "left"), [("allow", (0, 2, 3, 4, 5)), ("blocks", (3, 4, 5))])
def test_who_drops_out_takes_its_block_along_unless_losses_are_allowed(losses: Any, left: tuple[int, ...]) -> None:
    vectors = np.random.default_rng(0).uniform(-0.5, 0.5, size=(6, 50))
    server = Watched(Laboratory(), ALL, clients=6, length=50, clip=1.0, steps=2, losses=losses)
    assert np.allclose(server.step(vectors), vectors.sum(axis=0), atol=1e-3)
    assert np.allclose(server.step(vectors, lost=[1]), vectors[list(left)].sum(axis=0), atol=1e-3)
    assert server.survivors == left


def test_server_gets_noise_of_the_size_that_was_asked_for() -> None:
    vectors = np.zeros((4, 512))
    server = Watched(Laboratory(), ALL, clients=4, length=512, clip=1.0, norm=2.0, noise_multiplier=1.0)
    # Three shares are the whole noise, since one of four may collude; rounding adds a little to the sensitivity.
    assert np.std(server.step(vectors)) == pytest.approx(2.0 * math.sqrt(4 / 3), rel=0.15)
    assert server.rho == pytest.approx(0.5, rel=0.01)


def test_noised_sums_are_the_same_each_time() -> None:
    vectors = np.zeros((4, 64))
    sums = [
        Watched(Laboratory(seed), ALL, clients=4, length=64, clip=1.0, noise_multiplier=1.0).step(vectors)
        for seed in (1, 1, 2)
    ]
    assert (sums[0] == sums[1]).all() and (sums[0] != sums[2]).any()


# -- inversion and training ---------------------------------------------


def test_a_gradient_of_one_record_is_read_off_exactly() -> None:
    picture = np.random.default_rng(0).random(64)
    model = inversion._perceptron(8, seed=0)
    gradient = inversion._gradient(model, torch.from_numpy(picture).float().reshape(1, 1, 8, 8), torch.tensor([3]))
    assert inversion.read_off(gradient.double().numpy(), 8) == pytest.approx(picture, abs=1e-4)


def weights_of(client: Participant) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for part in client.model.parameters()])


def test_private_training_is_the_deployed_one_and_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_digits_data(0)[0].subset(np.arange(40))
    first, second, other = (weights_of(learning.trained(data, seed, private=True)) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.allclose(first, other, atol=1e-2)
    monkeypatch.setattr(private_training, "private_sgd", lambda *arguments, **options: None)
    assert torch.equal(weights_of(learning.trained(data, 1, private=True)), weights_of_model(learning._model(1)))


def weights_of_model(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for part in model.parameters()])


def test_the_control_takes_nothing_but_the_noise_out_of_the_deployed_training() -> None:
    data = load_digits_data(0)[0].subset(np.arange(40))
    with switched_off(ALL.without("training-noise"), learning.SWITCHES):
        quiet = [weights_of(learning.trained(data, 1, private=True)) for _ in range(2)]
    noised = weights_of(learning.trained(data, 1, private=True))
    start = weights_of_model(learning._model(1))
    assert torch.equal(*quiet) and (quiet[0] - start).norm() < 0.2 * (noised - start).norm()


def test_a_deployed_training_without_noise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant of a finding of old: attacks that train by themselves would call it defended."""
    with learning._no_training_noise():
        learning._models.cache_clear()
        evidence = learning.MembershipInModel().run(ALL, Laboratory(0))
    learning._models.cache_clear()
    assert evidence.worked


def test_class_counts_are_read_from_weights_of_one_client_and_of_a_sum() -> None:
    laboratory = Laboratory(3)
    weights, counts = learning.label_weights(laboratory, 4, class_aware=True)
    assert (learning.read_counts(weights[1]) == counts[1]).all()
    assert (learning.read_counts(weights.sum(axis=0), 4) == counts.sum(axis=0)).all()


def test_odds_without_bounds_are_those_of_the_softmax_and_never_tie() -> None:
    logits = np.array([[2.0, 1.0, 0.0], [900.0, -900.0, 0.0], [901.0, -900.0, 0.0]], dtype=np.float32)
    labels = np.array([0, 0, 0])
    odds = learning._unbounded_odds(logits, labels)
    assert odds[0] == pytest.approx(learning._odds(logits, labels)[0]) and odds[0] < odds[1] < odds[2]


# -- lies and states ---------------------------------------------


@pytest.mark.parametrize("counts", [[0, 0, 3, 5], [1, 2, 2, 7], [0, 0, 0, 1]])
def test_counts_are_read_off_a_ladder_of_clips(counts: list[int]) -> None:
    rungs = np.arange(max(counts) + 1) + 0.5
    assert oracles.sorted_counts(np.minimum(np.array(counts)[:, None], rungs).sum(axis=0), len(counts)) == counts


def test_a_lie_is_masked_and_tagged_as_it_is_and_only_where_it_is_told() -> None:
    federation = Laboratory().federation(mode="lockstep", steps=2)
    assert federation.set_up()
    for client, taken in ((lying.LIAR, True), (lying.LIAR, False)):
        with lying.lying(federation.clients[client], lambda plan, step, vector: vector.astype(np.int64) - 1):
            reveal = federation.step() if taken else None
        if reveal is not None:
            expected = federation.plain_sum(0, federation.everybody).astype(np.int64)
            assert (np.asarray(reveal.total, dtype=np.int64) - expected == -1).mean() > 0.9
    reveal = federation.step()
    assert reveal is not None and (reveal.total == federation.plain_sum(1, reveal.survivors)).all()
    assert federation.finish() is not None


def test_bounds_of_privacy() -> None:
    assert learning.largest_advantage(0.0, 0.0) == 0
    assert learning.largest_advantage(math.log(3), 0.0) == pytest.approx(0.5)
    assert learning.largest_exposure(0.0, 0.0, 1024) == pytest.approx(1 / math.log(2))


# -- measures ---------------------------------------------


def test_psnr_of_known_errors() -> None:
    truth = np.full((2, 4), 0.5)
    assert psnr(truth + 0.1, truth) == pytest.approx([20.0, 20.0])
    assert psnr(truth, truth) == pytest.approx([100.0, 100.0])
    assert psnr(np.full(4, 7.0), np.ones(4)) == pytest.approx(100.0)  # cut to what a picture can show


def test_correlation_of_known_vectors() -> None:
    values = np.array([1.0, 2.0, 4.0])
    assert correlation(values, 3 * values + 1) == pytest.approx(1)
    assert correlation(values, -values) == pytest.approx(-1)
    assert correlation(values, np.ones(3)) == 0


def test_exact_interval_of_a_share() -> None:
    assert proportion(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))  # in closed form where nothing was right
    assert proportion(10, 10) == pytest.approx((0.025**0.1, 1.0))
    low, high = proportion(50, 100)
    assert (round(low, 4), round(high, 4)) == (0.3983, 0.6017)  # Clopper and Pearson's table


def test_advantage_is_zero_for_a_coin_and_one_for_certainty() -> None:
    value, (low, high) = advantage(50, 100)
    assert value == 0 and low < 0 < high
    value, (low, high) = advantage(100, 100)
    assert value == high == 1 and low > 0.9


def test_bootstrap_covers_the_mean_and_sees_rows() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, size=400)
    low, high = bootstrapped(values, seed=0)
    assert low < 3.0 < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    rows = np.repeat(values[:20, None], 50, axis=1)  # a row's values say the same: no more is known than from one
    assert bootstrapped(rows, seed=0) == pytest.approx(bootstrapped(values[:20], seed=0))


def test_exposure_counts_bits_of_rank() -> None:
    others = np.arange(1023, dtype=np.float64)
    assert exposure(-1.0, others) == 10
    assert exposure(2000.0, others) == 0
    assert exposure(510.5, others) == pytest.approx(1.0, abs=0.01)
    ranks = [exposure(value, others) for value in np.random.default_rng(0).uniform(-0.5, 1022.5, 20_000)]
    assert np.mean(ranks) == pytest.approx(1 / math.log(2), abs=0.05)


def test_log_odds_are_finite_and_symmetric() -> None:
    assert log_odds(np.array([0.5, 0.0, 1.0])) == pytest.approx([0.0, -27.631, 27.631], abs=1e-3)


def test_likelihood_ratios_find_members_and_nothing_in_noise() -> None:
    draws = np.random.default_rng(0)
    members = draws.random((20, 300)) < 0.5
    noise = draws.normal(size=members.shape)
    shares = []
    for scores in (noise, noise + 2.0 * members):
        right = [(likelihood_ratios(scores, members, row) > 0) == members[row] for row in range(20)]
        shares.append(np.mean(right))
    assert shares[0] == pytest.approx(0.5, abs=0.03)
    # Two unit Gaussians, two deviations apart, their means known well: Phi(1).
    assert shares[1] == pytest.approx(0.841, abs=0.03)
