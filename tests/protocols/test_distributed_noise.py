"""Rotation, clipping, rounding, noise shares and the ring that carries them; then attacks, each with a control."""

from __future__ import annotations

import math
import secrets
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, chi2

from codream_protocols import distributed_noise as module
from codream_protocols.charter import Offer, Plan, derive_plan
from codream_protocols.client import ClientProtocol
from codream_protocols.courses.labels import VOTES_APART
from codream_protocols.discrete_gaussian import discrete_gaussian
from codream_protocols.distributed_noise import (
    Noise,
    decode_sum,
    encode,
    largest_square,
    make_noise,
    multiplier_for,
    noise_multiplier,
    noise_rho,
    noised_modulus_bits,
    replaced_rho,
)
from codream_protocols.encoding import decode as decode_vector
from codream_protocols.encoding import encode as encode_vector
from codream_protocols.errors import LocalProtocolError, PolicyViolation, UnsafePlan
from codream_protocols.messages import Invitation, MaskedInput
from codream_protocols.rotation import block_size, padded_length, rotate, step_signs, unrotate
from codream_protocols.specs import Block, VectorSpec
from codream_protocols.zcdp import epsilon_of, rho_of
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import PERMISSIVE, Federation

SEEDS = st.integers(0, 2**32 - 1)
LENGTHS = st.sampled_from([1, 2, 3, 60, 256, 257, 1290])


def gaussian_rho(sensitivity_squared: float, variance: float) -> float:
    """rho of the Gaussian mechanism, continuous or discrete."""
    return sensitivity_squared / (2 * variance)


class Silent:
    """In the sampler's place: no noise at all."""

    def sample(self, count: int, random_bytes: Any) -> np.ndarray:
        return np.zeros(count, dtype=np.int64)


def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "discrete_gaussian", lambda variance: Silent())


def signed(words: np.ndarray, modulus_bits: int) -> np.ndarray:
    half = 1 << (modulus_bits - 1)
    return (words.astype(np.int64) + half) % (2 * half) - half


# -- one vector in place of another ---------------------------------------------


def test_a_vector_in_place_of_another_costs_four_times_as_much() -> None:
    noise = make_noise(1.0, 1290, 5.0, 3)
    assert replaced_rho(noise, 1290, 3) == pytest.approx(4 * noise_rho(noise, 1290, 3), rel=1e-9)


def test_votes_that_are_rounded_lie_further_apart_than_votes() -> None:
    """Both within the norm that is checked, as rounding may have them, and more than sqrt(2) of it apart: 2 rho is not
    enough, though it would be without a rotation."""
    labels, classes = 700, 3
    length = labels * classes
    noise = make_noise(math.sqrt(labels), length, 5.0, 3)
    rng = np.random.default_rng(0)
    signs = np.where(rng.random(padded_length(length)) < 0.5, -1.0, 1.0)
    named = rng.integers(classes, size=labels)
    one, other = (np.eye(classes)[(named + moved) % classes].ravel() for moved in (0, 1))
    scaled, others = (rotate(votes * (noise.radius / noise.norm), signs) for votes in (one, other))
    rounded = np.where(others > 0, np.floor(scaled), np.ceil(scaled))
    replaced = np.where(scaled > 0, np.floor(others), np.ceil(others))
    assert max(rounded @ rounded, replaced @ replaced) <= largest_square(noise, length)
    squared = float((rounded - replaced) @ (rounded - replaced))
    assert squared > 2 * largest_square(noise, length)
    stated = replaced_rho(noise, length, 3, apart=VOTES_APART)
    assert gaussian_rho(squared, 3 * noise.variance) <= stated < 2.8 * noise_rho(noise, length, 3)


# -- rotation ---------------------------------------------


@given(length=LENGTHS, seed=SEEDS)
@settings(max_examples=30)
def test_rotation_keeps_the_norm_and_is_undone(length: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=length)
    signs = step_signs(seed.to_bytes(32, "big"), 3, length)
    assert len(signs) == padded_length(length) and set(np.unique(signs)) <= {-1.0, 1.0}
    rotated = rotate(values, signs)
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(values))
    np.testing.assert_allclose(unrotate(rotated, signs, length), values, atol=1e-12)


def test_rotation_is_hadamards_matrix_times_the_signs() -> None:
    hadamard = np.array([[1.0]])
    for _ in range(3):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    signs = step_signs(bytes(32), 0, 8)
    values = np.arange(8.0)
    np.testing.assert_allclose(rotate(values, signs), hadamard @ (values * signs) / 8**0.5)


def test_rotation_flattens_a_single_spike() -> None:
    spike = np.zeros(8192)
    spike[5] = 1.0
    assert np.abs(rotate(spike, step_signs(bytes(32), 0, 8192))).max() == pytest.approx(1 / 16)


def test_padding_is_less_than_a_block() -> None:
    assert [padded_length(length) for length in (1, 3, 8, 255, 256, 257, 1290, 8192)] == [
        1, 4, 8, 256, 256, 512, 1536, 8192,
    ]  # fmt: skip
    assert all(padded_length(length) - length < block_size(length) for length in range(1, 2000))


def test_signs_differ_between_steps_and_plans() -> None:
    signs = [step_signs(plan, step, 256) for plan in (bytes(32), b"x" * 32) for step in (0, 1)]
    for place, one in enumerate(signs):
        assert abs(one.sum()) < 6 * 256**0.5
        assert all((one != other).any() for other in signs[:place])


# -- clipping and rounding ---------------------------------------------


@given(length=LENGTHS, seed=SEEDS, stretch=st.sampled_from([0.0, 0.3, 1.0, 50.0]))
@settings(max_examples=40)
def test_the_sensitivity_holds_for_every_vector(length: int, seed: int, stretch: float) -> None:
    """Whatever a client holds, its integers before noise are within the norm that the accounting takes."""
    noise = make_noise(2.0, length, 1.0, 3)
    rng = np.random.default_rng(seed)
    values = rng.normal(size=length)
    values *= stretch * noise.norm / np.linalg.norm(values)
    with pytest.MonkeyPatch.context() as patch:
        without_noise(patch)
        words = encode(values, noise, step_signs(bytes(32), 0, length), modulus_bits=32, rounding=rng)
    integers = signed(words, 32)
    assert int(integers @ integers) <= largest_square(noise, length)


def test_rounding_is_repeated_until_the_norm_fits() -> None:
    class Unlucky:
        """Rounds everything up twice, then everything down."""

        draws = 0

        def random(self, count: int) -> np.ndarray:
            self.draws += 1
            return np.full(count, 0.999 if self.draws < 3 else 0.0)

    noise, unlucky = Noise(1.0, 2, 1), Unlucky()
    flat = np.full(256, 2 / 16)
    rounded = module._round(flat, largest_square(noise, 256), unlucky)
    assert unlucky.draws == 3 and not rounded.any()
    assert largest_square(noise, 256) < 256  # what was rounded up does not fit


def test_a_vector_beyond_its_norm_cannot_be_rounded() -> None:
    with pytest.raises(LocalProtocolError, match="norm"):
        module._round(np.full(4, 10.0), 100, np.random.default_rng(0))


def test_sensitivity_is_theorem_one_with_the_grid_as_unit() -> None:
    radius, coordinates = 725, 8192
    conditional = radius**2 + coordinates / 4 + math.sqrt(2 * 0.5) * (radius + math.sqrt(coordinates) / 2)
    assert largest_square(Noise(1.0, radius, 1), coordinates) == math.floor(conditional)
    assert largest_square(Noise(1.0, 1, 1), 1) == 2  # conditional: 1 + 1/4 + 1.5; (1 + 1)^2 = 4 is more
    assert largest_square(Noise(1.0, 3, 1), 4096) <= (3 + 64) ** 2
    assert largest_square(Noise(1.0, radius, 1), coordinates) < radius**2 * 1.006  # the price of rounding


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(LocalProtocolError, match="finite"):
        encode(
            np.array([0.0, bad]),
            Noise(1.0, 8, 4),
            step_signs(bytes(32), 0, 2),
            modulus_bits=16,
            rounding=np.random.default_rng(0),
        )


def test_a_short_vector_is_scaled_and_a_long_one_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    without_noise(monkeypatch)
    noise, signs = make_noise(3.0, 64, 1.0, 2), step_signs(bytes(32), 0, 64)
    for length, expected in ((1.5, 1.5), (3.0, 3.0), (300.0, 3.0)):
        values = np.zeros(64)
        values[7] = length
        words = [
            encode(values, noise, signs, modulus_bits=32, rounding=np.random.default_rng(seed)) for seed in range(200)
        ]
        total = np.sum(words, axis=0, dtype=np.uint32)
        mean = decode_sum(total, noise, signs, 64, modulus_bits=32) / 200
        assert mean[7] == pytest.approx(expected, rel=0.01)
        assert np.abs(np.delete(mean, 7)).max() < 0.02 * noise.norm


# -- noise shares ---------------------------------------------


@pytest.mark.parametrize(("honest", "multiplier"), [(2, 0.5), (2, 29.2), (7, 4.6), (199, 1.0)])
@pytest.mark.parametrize("length", [3, 1290, 8192])
def test_the_shares_of_the_fewest_honest_survivors_reach_the_multiplier(
    honest: int, multiplier: float, length: int
) -> None:
    noise = make_noise(1.0, length, multiplier, honest)
    found = noise_multiplier(noise, length, honest)
    assert multiplier * (1 - 1e-12) <= found < multiplier * 1.02
    assert found == pytest.approx(math.sqrt(honest * noise.variance / largest_square(noise, length)))
    assert noise_rho(noise, length, honest) <= gaussian_rho(1.0, multiplier**2) * (1 + 1e-12)
    assert noise_multiplier(noise, length, honest - 1) < multiplier


def test_the_sum_of_shares_has_the_stated_variance() -> None:
    """99.99 % interval of the sample variance of 20 shares' sum, over 200,000 coordinates."""
    noise = make_noise(1.0, 1290, 3.0, 20)
    count = 200_000
    sampler = discrete_gaussian(noise.variance)
    total = sum(sampler.sample(count) for _ in range(20))
    stated = 20 * noise.variance
    assert stated >= 9.0 * largest_square(noise, 1290)
    low, high = chi2.ppf([5e-5, 1 - 5e-5], count) / count
    assert low < float((total**2).mean()) / stated < high
    less = sum(sampler.sample(count) for _ in range(19))  # the control: one share is missing
    assert float((less**2).mean()) / stated < low


def test_calibration_spends_the_budget_and_no_more() -> None:
    multiplier = multiplier_for(4.0, 1e-5, 44)
    noise = make_noise(1.0, 8192, multiplier, 6)
    spent = 44 * noise_rho(noise, 8192, 6)
    assert rho_of(4.0, 1e-5) * 0.9999 < spent <= rho_of(4.0, 1e-5) * (1 + 1e-9)
    assert epsilon_of(spent, 1e-5) == pytest.approx(4.0, rel=1e-3)


def test_shares_too_narrow_to_make_a_gaussian_count_for_less() -> None:
    """A server could ask for enough variance in shares of 0 and 1: the theorem's tau is then no longer nothing."""
    narrow, wide = Noise(1.0, 1, 1), Noise(1.0, 1, 100)
    for noise, least, most in ((narrow, 0.97, 0.99), (wide, 1 - 1e-12, 1 + 1e-12)):
        plain = math.sqrt(199 * noise.variance / largest_square(noise, 4096))
        assert least < noise_multiplier(noise, 4096, 199) / plain < most


def test_noise_beyond_the_sampler_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="variance"):
        make_noise(1.0, 8192, 1e4, 2)


# -- the ring ---------------------------------------------


def wrapped(clients: int, multiplier: float, modulus_bits: int) -> int:
    """How many of 256 coordinates wrap when equal vectors at full norm, all of it in one coordinate, are summed."""
    noise = make_noise(1.0, 256, multiplier, clients)
    signs = step_signs(bytes(32), 0, 256)
    rounding = np.random.default_rng(5)
    spike = np.zeros(256)
    spike[9] = 1.0
    words = [encode(spike, noise, signs, modulus_bits=32, rounding=rounding) for _ in range(clients)]
    total = np.sum([signed(one, 32) for one in words], axis=0)
    return int((signed(total, modulus_bits) != total).sum())


@pytest.mark.parametrize(("clients", "multiplier"), [(3, 5.0), (100, 0.2), (200, 30.0)])
def test_sums_do_not_wrap_at_the_modulus_that_is_asked_for(clients: int, multiplier: float) -> None:
    bits = noised_modulus_bits(make_noise(1.0, 256, multiplier, clients), 256, clients, 13)
    assert wrapped(clients, multiplier, bits) == 0
    assert wrapped(clients, multiplier, bits - 4) > 0  # the control: four bits fewer


@pytest.mark.parametrize(("clients", "multiplier"), [(3, 5.0), (100, 0.2), (200, 30.0), (12, 1.0)])
@pytest.mark.parametrize("length", [1, 20, 256, 50_000])
def test_modulus_is_the_formulas_or_one_bit_more(clients: int, multiplier: float, length: int) -> None:
    noise = make_noise(1.0, length, multiplier, clients)
    proxy = (clients * noise.radius) ** 2 / block_size(length) + clients * noise.variance
    largest = math.sqrt(2 * proxy * math.log(2 * padded_length(length) * 13 * 2**40)) + clients
    formula = math.ceil(math.log2(largest + 1)) + 1
    assert noised_modulus_bits(noise, length, clients, 13) - formula in (0, 1)


def test_nothing_that_parties_must_derive_alike_rests_on_a_librarys_logarithm() -> None:
    """But `multiplier_for`, whose result is rounded up to a coarse grid."""
    source = Path(module.__file__).read_text()
    assert "math.log" not in source and "math.exp" not in source


def noised_spec(length: int = 20, multiplier: float = 5.0, honest: int = 2, norm: float = 1.0) -> VectorSpec:
    return VectorSpec("update", (Block("dream", length, 1.0),)).with_noise(norm, multiplier, honest)


def noised_federation(members: int = 5, *, spec: VectorSpec | None = None, **options: Any) -> Federation:
    return Federation(members, specs=(spec or noised_spec(),), colluders=1, least_survivors=3, **options)


def noised_plan(spec: VectorSpec | None = None) -> Plan:
    federation = noised_federation(spec=spec)
    offer = Offer(0, tuple(range(5)), federation.charter.first_head)
    return derive_plan(federation.charter, LaboratoryCourse((spec or noised_spec(),)), offer, 0)


def test_the_ring_is_as_wide_as_the_noise_needs() -> None:
    plan = noised_plan()
    assert plan.modulus_bits(0) == noised_spec().least_modulus_bits(16, 5, 3)


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_a_plan_without_a_sound_norm_is_refused(norm: float) -> None:
    spec = noised_spec()
    assert spec.noise is not None
    noise = msgspec.structs.replace(spec.noise, norm=norm)
    with pytest.raises(UnsafePlan, match="norm"):
        noised_plan(msgspec.structs.replace(spec, noise=noise))


@pytest.mark.parametrize("field", ["norm", "radius", "variance"])
def test_the_plans_digest_covers_the_noise(field: str) -> None:
    spec = noised_spec()
    assert spec.noise is not None
    noise = msgspec.structs.replace(spec.noise, **{field: getattr(spec.noise, field) + 1})
    assert noised_plan(msgspec.structs.replace(spec, noise=noise)).digest != noised_plan(spec).digest


# -- with secure aggregation ---------------------------------------------


@pytest.mark.parametrize("dropped", [(), (4,)])
def test_noised_vectors_are_aggregated_as_any_other(dropped: tuple[int, ...]) -> None:
    """All clients, and without one's block: the sum is what the survivors encoded, and decodes."""
    federation = noised_federation(6, mode="resilient", spec=noised_spec(300, 0.05, 2))
    values = np.linspace(-1, 1, 300) / 12
    federation.input_of = lambda member, effect: {"dream": values * (member + 1)}
    assert federation.set_up()
    plan = federation.plan
    assert plan is not None
    reveal = federation.step(lost={(member, MaskedInput) for member in dropped})
    assert reveal is not None and reveal.survivors == ((0, 1, 2) if dropped else tuple(range(6)))
    assert len(reveal.total) == 512 == plan.specs[0].words
    assert (reveal.total == federation.plain_sum(0, reveal.survivors) % (1 << plan.modulus_bits(0))).all()
    decoded = decode_vector(plan, 0, reveal.total, len(reveal.survivors))["dream"]
    lengths = [min(1.0, 1 / float(np.linalg.norm(values * (member + 1)))) * (member + 1) for member in reveal.survivors]
    deviation = 0.05 * (len(reveal.survivors) / 2) ** 0.5
    np.testing.assert_allclose(decoded, values * sum(lengths), atol=6 * deviation)
    assert np.linalg.norm(decoded - values * sum(lengths)) < 1.5 * deviation * 300**0.5


# -- attacks ---------------------------------------------


def without(*rules: str) -> type[ClientProtocol]:
    """A client with these rules taken out."""
    for rule in rules:
        assert callable(getattr(ClientProtocol, rule))
    return type("Without", (ClientProtocol,), dict.fromkeys(rules, lambda self, *arguments: None))


def invited(client_class: type[ClientProtocol], *, least: float, spec: VectorSpec) -> Federation:
    """The first client is invited under a charter whose vectors have this noise; its policy demands `least`."""
    policy = msgspec.structs.replace(PERMISSIVE, least_noise=least)
    federation = noised_federation(spec=spec, client_class=client_class, policy=policy, mode="resilient")
    offer = Offer(0, federation.charter.everybody, federation.charter.first_head)
    federation.tell(0, Invitation(offer))
    return federation


@pytest.mark.parametrize(
    "spec",
    [
        noised_spec(multiplier=4.9, honest=4),
        noised_spec(multiplier=5.0, honest=5),  # shares for more honest members than any sum has for sure
        VectorSpec("update", (Block("dream", 20, 1.0),)),
    ],
    ids=["less", "counted on too many", "none"],
)
def test_less_noise_than_a_client_demands_is_refused(spec: VectorSpec) -> None:
    invited(ClientProtocol, least=5.0, spec=noised_spec(multiplier=5.0, honest=4))
    with pytest.raises(PolicyViolation, match="noise of"):
        invited(ClientProtocol, least=5.0, spec=spec)
    control = invited(without("_rule_policy"), least=5.0, spec=spec)  # the rule is off: the client takes part
    assert control.clients[0].plan is not None


def spend(client_class: type[ClientProtocol]) -> tuple[Federation, float]:
    """A budget of three steps and a half; the server asks for three, and then for a second epoch."""
    spec = noised_spec()
    plan = noised_plan(spec)
    rho = plan.rho(spec)
    policy = msgspec.structs.replace(PERMISSIVE, most_rho=3.5 * rho)
    federation = noised_federation(spec=spec, client_class=client_class, policy=policy, steps=3)
    assert federation.set_up()
    for _ in range(3):
        assert federation.step() is not None
    assert federation.finish() is not None
    federation.tell(0, Invitation(Offer(1, federation.charter.everybody, federation.clients[0].head)))
    return federation, rho


def test_a_server_that_asks_for_more_than_the_budget_is_refused() -> None:
    with pytest.raises(PolicyViolation, match="rho"):
        spend(ClientProtocol)


def test_a_server_that_asks_for_more_than_the_budget_control() -> None:
    federation, rho = spend(without("_rule_privacy_budget"))
    assert federation.clients[0].spent_rho == pytest.approx(3 * rho)
    assert federation.clients[0].plan is not None and federation.clients[0].plan.offer.epoch == 1


CLAIM, DELTA, LENGTH, TRIALS = 4.0, 1e-5, 64, 4000


def lower_bound(present: np.ndarray, absent: np.ndarray) -> float:
    """The epsilon that these statistics prove, with 99.9 % confidence, for the best of 19 thresholds (Bonferroni)."""
    found, thresholds = 0.0, np.quantile(np.concatenate((present, absent)), np.linspace(0.05, 0.95, 19))
    level = 0.001 / (2 * len(thresholds))
    for threshold in thresholds:
        hits, alarms = int((present > threshold).sum()), int((absent > threshold).sum())
        true = beta.ppf(level, hits, TRIALS - hits + 1) if hits else 0.0
        false = beta.ppf(1 - level, alarms + 1, TRIALS - alarms) if alarms < TRIALS else 1.0
        if true > DELTA:
            found = max(found, math.log((true - DELTA) / false))
    return found


def audit(*, honest: int = 2, shares: int | None = None) -> float:
    """Who sees a sum and knows every vector but the victim's: what epsilon does telling its presence prove?

    Args:
        honest: for how many honest survivors the shares are made.
        shares: how many of the noise shares in the sum the observer does not know; all of `honest` unless given.
    """
    spec = noised_spec(LENGTH, multiplier_for(CLAIM, DELTA, 1), honest)
    plan = noised_plan(spec)
    assert spec.noise is not None
    victim = np.random.default_rng(1).normal(size=LENGTH)
    victim *= spec.noise.norm / np.linalg.norm(victim)
    direction = rotate(victim, step_signs(plan.digest, 0, LENGTH))
    statistics = []
    for vector in (victim, np.zeros(LENGTH)):
        scores = np.empty(TRIALS)
        for trial in range(TRIALS):
            words = encode_vector(plan, 0, {"dream": vector}, secrets.token_bytes)[0].astype(np.int64)
            for _ in range((honest if shares is None else shares) - 1):
                words += encode_vector(plan, 0, {"dream": np.zeros(LENGTH)}, secrets.token_bytes)[0]
            scores[trial] = signed(words % (1 << plan.modulus_bits(0)), plan.modulus_bits(0)) @ direction
        statistics.append(scores)
    return lower_bound(*statistics)


def test_presence_cannot_be_told_beyond_the_claim() -> None:
    proven = audit()
    assert 0.5 < proven <= CLAIM  # the audit is sharp enough to see something, and sees no more than was promised


def test_noise_left_out_is_caught_by_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    without_noise(monkeypatch)
    assert audit() > CLAIM


def test_a_tenth_of_the_deviation_is_caught_by_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "discrete_gaussian", lambda variance: discrete_gaussian(variance // 100))
    assert audit() > CLAIM


def residual_variance(honest: int) -> tuple[float, float]:
    """Five survivors, two of whom tell their shares: variance of what is left, over the stated one; and its least."""
    spec = noised_spec(8192, 3.0, honest)
    assert spec.noise is not None
    sampler = discrete_gaussian(spec.noise.variance)
    shares = [sampler.sample(8192) for _ in range(5)]
    left = sum(shares) - shares[0] - shares[1]
    stated = 3.0**2 * largest_square(spec.noise, 8192)
    return float((left**2).mean()) / stated, float(chi2.ppf(1e-4, 8192) / 8192)


def test_colluders_who_take_their_shares_off_leave_the_stated_noise() -> None:
    found, least = residual_variance(honest=3)
    assert found > least


def test_colluders_who_take_their_shares_off_control() -> None:
    """Shares that count on all five survivors leave too little; where one of 25 is left, the audit proves it."""
    found, least = residual_variance(honest=5)
    assert found < least
    assert audit(honest=25, shares=1) > CLAIM
