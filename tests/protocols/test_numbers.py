"""Ring, vectors, packing, masks, Shamir, secrets: the layers on which the machines stand."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codream_protocols import packing, ring, shamir
from codream_protocols.errors import LocalProtocolError, VectorRefused
from codream_protocols.identity import Signer
from codream_protocols.masks import SUITES, add_mask, word_type
from codream_protocols.plan import Block, VectorSpec
from codream_protocols.secret import Secret, SecretArray
from codream_protocols.vectors import check_clips, decode_vector, encode_vector
from secure_codream.threats.federation import Federation

KEYS = st.binary(min_size=32, max_size=32)
SEEDS = st.integers(0, 2**32 - 1)

# -- ring ---------------------------------------------


@given(
    values=st.lists(st.floats(-50, 50), min_size=1, max_size=30),
    clip=st.floats(0.001, 100),
    value_bits=st.integers(1, 31),
    seed=SEEDS,
)
def test_ring_encoding_is_bounded_and_within_one_grid_step(
    values: list[float], clip: float, value_bits: int, seed: int
) -> None:
    plain = np.array(values)
    words = ring.encode(plain, clip, value_bits=value_bits, modulus_bits=32, rounding=np.random.default_rng(seed))
    assert words.dtype == word_type(32) and int(words.max()) < 1 << value_bits
    decoded = ring.decode_sum(words, 1, clip, value_bits=value_bits)
    grid = 2 * clip / (2**value_bits - 1)
    assert (np.abs(decoded - np.clip(plain, -clip, clip)) <= grid * (1 + 1e-6)).all()


@pytest.mark.parametrize("value_bits", [1, 2, 8, 16])
@pytest.mark.parametrize("value", [-0.93, -0.31, 0.0, 0.07, 0.77])
def test_rounding_is_unbiased(value: float, value_bits: int) -> None:
    draws = 40_000
    words = ring.encode(
        np.full(draws, value), 1.0, value_bits=value_bits, modulus_bits=16, rounding=np.random.default_rng(7)
    )
    decoded = ring.decode_sum(words, 1, 1.0, value_bits=value_bits)
    grid = 2 / (2**value_bits - 1)
    assert abs(decoded.mean() - value) < 5 * grid / 2 / draws**0.5  # five standard errors of a two-point variable
    assert len(np.unique(words)) <= 2


@given(seed=SEEDS, clients=st.integers(2, 200), value_bits=st.integers(1, 24))
def test_a_sum_of_encodings_never_wraps(seed: int, clients: int, value_bits: int) -> None:
    modulus_bits = ring.modulus_bits_for(value_bits, clients)
    rounding = np.random.default_rng(seed)
    values = rounding.choice([-1.0, 1.0, 0.3], size=(clients, 3))
    values[:, 0] = 1.0  # the largest sum there is
    words = [
        ring.encode(row, 1.0, value_bits=value_bits, modulus_bits=modulus_bits, rounding=rounding) for row in values
    ]
    total = np.sum(words, axis=0, dtype=np.int64)
    assert int(total.max()) < 1 << modulus_bits
    assert int(total[0]) == clients * ((1 << value_bits) - 1)
    assert ring.decode_sum(total, clients, 1.0, value_bits=value_bits)[0] == pytest.approx(clients)


def test_modulus_is_the_smallest_that_does_not_wrap() -> None:
    for clients in range(1, 201):
        bits = ring.modulus_bits_for(8, clients)
        assert clients * 255 < 1 << bits
        assert bits == 8 or clients * 256 > 1 << (bits - 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(LocalProtocolError):
        ring.encode(np.array([0.0, bad]), 1.0, value_bits=8, modulus_bits=8, rounding=np.random.default_rng(0))


def test_clipped_fraction() -> None:
    assert ring.clipped_fraction(np.array([0.5, 1.0, -1.5, 2.0]), 1.0) == 0.5
    assert ring.clipped_fraction(np.array([]), 1.0) == 0.0


# -- vectors ---------------------------------------------

BLOCKS = VectorSpec("update", (Block("dream", 4, 2.0), Block("weight", 1, 1.0)))


@pytest.mark.parametrize("clips", [(2.0,), (2.0, 1.0, 1.0), (2.1, 1.0), (0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_clips_outside_the_plan_are_refused(clips: tuple[float, ...]) -> None:
    check_clips(BLOCKS, (2.0, 0.1))
    with pytest.raises(VectorRefused):
        check_clips(BLOCKS, clips)


def test_blocks_are_encoded_in_the_order_of_the_plan() -> None:
    plan = Federation(3, specs=(BLOCKS,)).plan
    rounding = np.random.default_rng(0)
    values = {"weight": np.array(1.0), "dream": np.array([[2.0, -2.0], [0.0, 9.0]])}
    words = encode_vector(plan, 0, (2.0, 1.0), values, rounding)
    decoded = decode_vector(plan, 0, (2.0, 1.0), words, 1)
    np.testing.assert_allclose(decoded["dream"], [2, -2, 0, 2], atol=1e-4)
    assert decoded["weight"] == pytest.approx([1.0])
    for wrong in (
        {"dream": values["dream"]},
        {**values, "other": np.zeros(1)},
        {**values, "weight": np.zeros(2)},
        {**values, "weight": np.array([np.nan])},
    ):
        with pytest.raises(LocalProtocolError):
            encode_vector(plan, 0, (2.0, 1.0), wrong, rounding)


# -- packing ---------------------------------------------


@pytest.mark.parametrize("bits", range(1, 33))
@given(seed=SEEDS, count=st.integers(1, 70))
@settings(max_examples=12)
def test_packing_round_trip(bits: int, seed: int, count: int) -> None:
    vector = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(word_type(bits))
    data = packing.pack(vector, bits)
    assert len(data) == packing.packed_size(count, bits) == -(-count * bits // 8)
    back = packing.unpack(data, count, bits)
    assert back.dtype == vector.dtype and (back == vector).all()
    as_number = sum(int(value) << (position * bits) for position, value in enumerate(vector))
    assert data == as_number.to_bytes(len(data), "little")  # the definition


@pytest.mark.parametrize("bits", [1, 7, 8, 13, 19, 32])
def test_unpacking_refuses_another_size_or_padding(bits: int) -> None:
    data = packing.pack(np.zeros(5, dtype=word_type(bits)), bits)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(VectorRefused):
            packing.unpack(wrong, 5, bits)
    for bit in range(5 * bits, len(data) * 8):
        padded = bytearray(data)
        padded[-1] |= 1 << (bit % 8)
        with pytest.raises(VectorRefused):
            packing.unpack(bytes(padded), 5, bits)


@given(data=st.binary(max_size=40), count=st.integers(1, 20), bits=st.integers(1, 32))
def test_what_unpacks_packs_to_the_same_bytes(data: bytes, count: int, bits: int) -> None:
    try:
        vector = packing.unpack(data, count, bits)
    except VectorRefused:
        return
    assert packing.pack(vector, bits) == data


def test_packing_refuses_elements_that_do_not_fit() -> None:
    with pytest.raises(LocalProtocolError):
        packing.pack(np.array([4], dtype="<u2"), 2)


# -- masks ---------------------------------------------


@given(key=KEYS, suite=st.sampled_from(SUITES), bits=st.integers(1, 32), count=st.integers(1, 300), seed=SEEDS)
def test_masks_cancel(key: bytes, suite: str, bits: int, count: int, seed: int) -> None:
    plain = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(word_type(bits))
    vector = plain.copy()
    add_mask(vector, key, suite=suite)
    assert count < 20 or (vector != plain).any()
    add_mask(vector, key, suite=suite, negative=True)
    assert (vector == plain).all()


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("bits", [16, 32])
def test_a_long_mask_is_one_stream(suite: str, bits: int) -> None:
    """The vector is walked in pieces; pieces continue the stream, and a shorter vector sees its beginning."""
    long = np.zeros((1 << 18) + 77, dtype=word_type(bits))
    short = np.zeros(1000, dtype=word_type(bits))
    add_mask(long, bytes(range(32)), suite=suite)
    add_mask(short, bytes(range(32)), suite=suite)
    assert (long[:1000] == short).all()
    assert len(np.unique(long[-64:])) > 32 and not (long[-64:] == long[:64]).all()


def test_masks_look_uniform_in_the_ring() -> None:
    for suite in SUITES:
        stream = np.zeros(1 << 16, dtype="<u2")
        add_mask(stream, bytes(32), suite=suite)
        counts = np.bincount(stream & 15, minlength=16)
        assert (np.abs(counts - 4096) < 6 * 64).all()


def test_masks_refuse_unknown_suites_and_widths() -> None:
    with pytest.raises(LocalProtocolError):
        add_mask(np.zeros(1, dtype="<u2"), bytes(32), suite="mt19937")
    for bits in (0, 33):
        with pytest.raises(LocalProtocolError):
            word_type(bits)


# -- Shamir ---------------------------------------------


@given(data=st.data())
@settings(max_examples=60)
def test_any_threshold_of_shares_rebuilds(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    threshold = data.draw(st.integers(1, count))
    points = data.draw(st.lists(st.integers(1, 255), min_size=count, max_size=count, unique=True))
    generator = random.Random(data.draw(SEEDS))
    secrets = np.frombuffer(generator.randbytes(3 * 32), dtype=np.uint8).reshape(3, 32)
    shares = shamir.split(secrets, threshold, points, generator.randbytes)
    for chosen in combinations(points, threshold):
        assert (shamir.combine({point: shares[point] for point in chosen}) == secrets).all()


@given(seed=SEEDS, threshold=st.integers(2, 6))
@settings(max_examples=25)
def test_one_share_too_few_is_consistent_with_every_secret(seed: int, threshold: int) -> None:
    """For each of the 256 values of a secret byte there is exactly one value of the missing share."""
    generator = random.Random(seed)
    points = generator.sample(range(1, 256), threshold)
    shares = shamir.split(
        np.array([[generator.randrange(256)]], dtype=np.uint8), threshold, points, generator.randbytes
    )
    known = {point: np.full((256, 1), shares[point][0, 0], dtype=np.uint8) for point in points[:-1]}
    rebuilt = shamir.combine({**known, points[-1]: np.arange(256, dtype=np.uint8).reshape(256, 1)})
    assert sorted(rebuilt[:, 0].tolist()) == list(range(256))


def test_shares_of_one_secret_differ_each_time_and_look_uniform() -> None:
    secret = np.zeros((4096, 1), dtype=np.uint8)
    shares = shamir.split(secret, 2, [1, 2], random.Random(3).randbytes)
    assert len(np.unique(shares[1])) == 256


@pytest.mark.parametrize(("threshold", "points"), [(0, [1, 2]), (3, [1, 2]), (1, [1, 1]), (1, [0, 1]), (2, [1, 256])])
def test_shamir_refuses_bad_thresholds_and_points(threshold: int, points: list[int]) -> None:
    with pytest.raises(LocalProtocolError):
        shamir.split(np.zeros((1, 1), dtype=np.uint8), threshold, points, random.Random(0).randbytes)


def test_shamir_refuses_to_combine_nothing_or_strange_points() -> None:
    for shares in ({}, {0: np.zeros((1, 1), dtype=np.uint8)}):
        with pytest.raises(LocalProtocolError):
            shamir.combine(shares)


# -- secrets ---------------------------------------------


def test_a_secret_hides_compares_and_is_erased() -> None:
    value = bytes(range(32))
    secret = Secret(value)
    assert secret == Secret(value) and secret != Secret(bytes(32)) and secret != value
    for text in (repr(secret), str(secret), f"{secret}"):
        assert text == "<Secret of 32 bytes, hidden>"
    twin = copy.deepcopy(secret)
    secret.erase()
    secret.erase()
    assert secret.erased and twin.reveal() == value and len(secret) == 32
    with pytest.raises(LocalProtocolError) as caught:
        secret.reveal()
    assert value.hex() not in str(caught.value)
    with pytest.raises(TypeError):
        hash(secret)


def test_secrets_are_never_pickled_or_copied_by_reduction() -> None:
    for item in (Secret(bytes(32)), SecretArray(np.zeros((1, 32), dtype=np.uint8)), Signer(bytes(32))):
        with pytest.raises(TypeError):
            pickle.dumps(item)
        with pytest.raises(TypeError):
            copy.copy(item)


def test_a_secret_array_owns_its_rows() -> None:
    rows = np.arange(6, dtype=np.uint8).reshape(2, 3)
    array = SecretArray(rows)
    twin = copy.deepcopy(array)
    rows[:] = 9
    assert array.row(1) == bytes([3, 4, 5]) and len(array) == 2
    array.erase_row(1)
    with pytest.raises(LocalProtocolError, match="erased"):
        array.row(1)
    assert not array._rows[1].any() and array.row(0) == bytes([0, 1, 2]) and twin.row(1) == bytes([3, 4, 5])
    array.erase()
    assert not array._rows.any()
    assert repr(array) == "<SecretArray of 2 rows, hidden>"


def test_the_smallest_clips_still_encode_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words = ring.encode(
            np.array([1.0, -1.0, 0.0]), 1e-12, value_bits=24, modulus_bits=27, rounding=np.random.default_rng(0)
        )
    assert words[0] == (1 << 24) - 1 and words[1] == 0


@given(data=st.data())
def test_shamir_finds_every_wrong_answer_within_its_reach(data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 24))
    threshold = data.draw(st.integers(1, count))
    wrong = data.draw(st.sets(st.integers(1, count), max_size=(count - threshold) // 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    secrets = rng.integers(0, 256, (4, 32), dtype=np.uint8)
    shares = shamir.split(secrets, threshold, list(range(1, count + 1)), rng.bytes)
    for point in wrong:
        shares[point] = shares[point] ^ rng.integers(1, 256, (4, 32), dtype=np.uint8)
    found = shamir.wrong_points(shares, threshold, lambda size: rng.integers(1, 256, size, dtype=np.uint8).tobytes())
    assert found is not None
    # A wrong point escapes with a probability of 1/256 a call; none that is right is ever accused.
    assert found <= wrong
    assert len(wrong - found) <= 1


def test_shamir_says_so_when_more_answers_are_wrong_than_can_be_found() -> None:
    rng = np.random.default_rng(5)
    shares = shamir.split(rng.integers(0, 256, (2, 32), dtype=np.uint8), 5, list(range(1, 10)), rng.bytes)
    for point in (1, 2, 3):
        shares[point] = rng.integers(0, 256, (2, 32), dtype=np.uint8)
    assert shamir.wrong_points(shares, 5, rng.bytes) is None
