"""Ring, vectors' encoding, packing, masks, Shamir, secrets: the layers on which the machines stand."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable
from itertools import combinations, islice
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given, settings
from hypothesis import strategies as st

from codream_protocols import packing, ring, shamir
from codream_protocols.charter import Aggregation, Charter, Offer, Plan, derive_plan, even_blocks
from codream_protocols.client import Send
from codream_protocols.course import Publication, State, Sums, Task
from codream_protocols.encoding import check_range, decode, encode, integers
from codream_protocols.errors import LocalProtocolError, UnsafePlan, VectorRefused, WrongSum
from codream_protocols.identity import Signer
from codream_protocols.masks import SUITES, add_mask, stream_words, word_type
from codream_protocols.record import Unpacked
from codream_protocols.secret import Secret, SecretArray
from codream_protocols.shamir import Bytes
from codream_protocols.specs import Block, VectorSpec, check_spec
from secure_codream.simulation.wire import Federation
from tests.protocols import second_primitives as second

KEYS = st.binary(min_size=32, max_size=32)
SEEDS = st.integers(0, 2**32 - 1)

# -- ring ---------------------------------------------


def encoded(values: Any, clip: float, value_bits: int, rng: np.random.Generator) -> Any:
    """Words of a vector."""
    words = np.empty(len(values), dtype="<u4")
    replaced = ring.encode(
        values,
        clip,
        words,
        top=(1 << value_bits) - 1,
        dither=lambda _, size: rng.integers(0, 1 << 16, size, dtype="<u2"),
    )
    assert replaced == 0
    return words


@given(
    values=st.lists(st.floats(-50, 50), min_size=1, max_size=30),
    clip=st.floats(0.001, 100),
    value_bits=st.integers(1, 24),
    single=st.booleans(),
    seed=SEEDS,
)
def test_ring_encoding_is_bounded_and_within_one_grid_step(
    values: list[float], clip: float, value_bits: int, single: bool, seed: int
) -> None:
    plain = np.array(values, dtype=np.float32 if single else np.float64)
    words = encoded(plain, clip, value_bits, np.random.default_rng(seed))
    assert int(words.max()) < 1 << value_bits
    decoded = ring.decode_sum(words, 1, clip, top=(1 << value_bits) - 1)
    grid = 2 * clip / (2**value_bits - 1)
    assert (np.abs(decoded - np.clip(plain.astype(np.float64), -clip, clip)) <= grid * (1 + 2**-7)).all()


@pytest.mark.parametrize("value_bits", [1, 2, 8, 16, 20])
@pytest.mark.parametrize("value", [-0.93, -0.31, 0.0, 0.07, 0.77])
def test_rounding_is_unbiased(value: float, value_bits: int) -> None:
    """Over all numbers that a dither can be: to the part of a step that the words promise."""
    fine = min(16, 31 - value_bits)
    words = np.empty(1 << 16, dtype="<u4")
    all_dithers = iter(range(1 << 16))

    def dither(_: int, size: int) -> np.ndarray:
        return np.fromiter(islice(all_dithers, size), "<u2", size)

    ring.encode(np.full(1 << 16, value), 1.0, words, top=(1 << value_bits) - 1, dither=dither)
    steps = (value + 1) / 2 * (2**value_bits - 1)
    assert abs(words.mean() - steps) <= 2.0 ** -(fine + 1) + 1e-9
    assert len(np.unique(words)) <= 2


def plainly_encoded(values: np.ndarray, clip: float, value_bits: int, dithers: np.ndarray, single: bool) -> list[int]:
    """The same, number by number, from the words of `ring` alone."""
    fine, real = min(16, 31 - value_bits), np.float32 if single else np.float64
    middle = (2**value_bits - 1) * 2**fine // 2
    words = []
    for value, dither in zip(values, dithers, strict=True):
        if not np.isfinite(np.float64(value) / clip):
            value = real(0.0)
        scaled = float(real(value) * real(middle / clip))
        parts = middle + round(min(max(scaled, -middle), middle))
        words.append(parts + (int(dither) >> 16 - fine) >> fine)
    return words


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=40),
    clip=st.floats(1e-12, 1e30),
    value_bits=st.integers(1, 24),
    single=st.booleans(),
    seed=SEEDS,
    piece=st.integers(1, 50),
)
@settings(max_examples=150)
def test_encoding_is_bit_by_bit_what_a_plain_one_says(
    values: list[float], clip: float, value_bits: int, single: bool, seed: int, piece: int
) -> None:
    """Whatever the pieces, and with numbers that are not finite or beyond anything."""
    plain = np.array(values, dtype=np.float32 if single else np.float64)
    dithers = np.random.default_rng(seed).integers(0, 1 << 16, len(values), dtype="<u2")
    words, given_out = np.empty(len(values), dtype="<u4"), iter(dithers.tolist())
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(ring, "_PIECE", piece)
        replaced = ring.encode(
            plain,
            clip,
            words,
            top=(1 << value_bits) - 1,
            dither=lambda _, size: np.fromiter(islice(given_out, size), "<u2", size),
        )
        exact = single and value_bits <= 16 and clip <= 2.0**60
        assert words.tolist() == plainly_encoded(plain, clip, value_bits, dithers, exact)
        assert replaced == np.count_nonzero(~np.isfinite(plain.astype(np.float64) / clip))


def test_a_vector_of_many_pieces_is_encoded_like_its_parts() -> None:
    values, halves = np.linspace(-1.2, 1.2, (1 << 17) + 3), lambda _, size: np.full(size, 1 << 15, dtype="<u2")
    whole, alone = np.empty(len(values), dtype="<u4"), np.empty(5, dtype="<u4")
    ring.encode(values, 1.0, whole, top=(1 << 16) - 1, dither=halves)
    ring.encode(values[-5:], 1.0, alone, top=(1 << 16) - 1, dither=halves)
    assert (whole[-5:] == alone).all() and (np.diff(whole.astype(np.int64)) >= 0).all()


@given(seed=SEEDS, clients=st.integers(2, 200), value_bits=st.integers(1, 24))
def test_a_sum_of_encodings_never_wraps(seed: int, clients: int, value_bits: int) -> None:
    modulus_bits = ring.modulus_bits_for(value_bits, clients)
    rng = np.random.default_rng(seed)
    values = rng.choice([-1.0, 1.0, 0.3], size=(clients, 3))
    values[:, 0] = 1.0  # the largest sum there is
    words = [encoded(row, 1.0, value_bits, rng) for row in values]
    total = np.stack(words).sum(axis=0, dtype=np.int64)
    assert int(total.max()) < 1 << modulus_bits
    assert int(total[0]) == clients * ((1 << value_bits) - 1)
    assert ring.decode_sum(total, clients, 1.0, top=(1 << value_bits) - 1)[0] == pytest.approx(clients)


def test_modulus_is_the_smallest_that_does_not_wrap() -> None:
    for clients in range(1, 201):
        bits = ring.modulus_bits_for(8, clients)
        assert clients * 255 < 1 << bits
        assert bits == 8 or clients * 256 > 1 << (bits - 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e308])
def test_values_that_are_not_finite_over_their_clip_count_nothing_and_are_told(bad: float) -> None:
    words = np.empty(2, dtype="<u2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replaced = ring.encode(
            np.array([0.0, bad]), 1e-6, words, top=255, dither=lambda _, size: np.zeros(size, dtype="<u2")
        )
    assert replaced == 1 and words[0] == words[1] == 127


# -- vectors ---------------------------------------------

BLOCKS = VectorSpec("update", (Block("dream", 4, 2.0), Block("images", 2, 70_000, "count"), Block("weight", 1, 1.0)))
NOISED = VectorSpec("noised", (Block("dream", 300, 2.0),)).with_noise(1.0, 1.0, 2)


class OneStep:
    """A course of one step, of one kind."""

    epochs = 1

    def __init__(self, spec: VectorSpec) -> None:
        self._spec = spec

    def specs(self, honest: int) -> tuple[VectorSpec, ...]:
        return (self._spec,)

    def schedule(self, certified: int) -> tuple[int, ...]:
        return (0,)

    def start(self, seed: bytes, certified: int, last: Publication | None) -> State:
        return {}

    def task(self, state: State, step: int) -> Task:
        return Task(self._spec.task, {})

    def absorb(self, state: State, step: int, sums: Sums, count: int) -> State:
        return {}

    def publication(self, state: State) -> Publication:
        return {}


def plan_of(spec: VectorSpec, members: int = 3) -> Plan:
    charter = Charter(
        roster=bytes(32),
        members=members,
        settings=bytes(32),
        aggregation=Aggregation(),
        blocks=even_blocks(members, 1),
    )
    return derive_plan(charter, OneStep(spec), Offer(0, charter.everybody, charter.first_head), 0)


def randomly(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def test_blocks_are_encoded_in_the_order_of_the_plan() -> None:
    plan = plan_of(BLOCKS)
    values = {"weight": np.array(1.0), "images": np.array([66_051, 9]), "dream": np.array([[2.0, -2.0], [0.0, 9.0]])}
    words, replaced = encode(plan, 0, values, randomly(0))
    assert replaced == 0 and len(words) == BLOCKS.words == 4 + 2 * 3 + 1
    assert words[4:10].tolist() == [3, 9, 2, 0, 1, 0]  # digits of a byte, the lowest of all numbers first
    sums = decode(plan, 0, words, 1)
    np.testing.assert_allclose(sums["dream"], [2, -2, 0, 2], atol=1e-4)
    assert sums["weight"] == pytest.approx([1.0]) and sums["images"].tolist() == [66_051, 9]
    for wrong in (
        {"dream": values["dream"], "weight": values["weight"]},
        {**values, "other": np.zeros(1)},
        {**values, "weight": np.zeros(2)},
    ):
        with pytest.raises(LocalProtocolError):
            encode(plan, 0, wrong, randomly(0))


@given(seed=SEEDS, members=st.integers(3, 30))
@settings(max_examples=25)
def test_sums_of_counts_are_exact_and_those_of_reals_within_the_grid(seed: int, members: int) -> None:
    plan, rng = plan_of(BLOCKS, members), np.random.default_rng(seed)
    values = [
        {"dream": rng.uniform(-3, 3, 4), "images": rng.integers(0, 70_001, 2), "weight": rng.uniform(0, 1, 1)}
        for _ in range(members)
    ]
    total = np.zeros(BLOCKS.words, dtype=word_type(plan.modulus_bits(0)))
    for number, own in enumerate(values):
        total += encode(plan, 0, own, randomly(seed + number))[0]
    check_range(plan, 0, total, members)
    sums = decode(plan, 0, total, members)
    assert sums["images"].tolist() == sum(own["images"] for own in values).tolist()
    grid = members * 4.0 / (2**16 - 1)
    expected = sum(np.clip(own["dream"], -2, 2) for own in values)
    assert (np.abs(sums["dream"] - expected) <= grid).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", [BLOCKS, NOISED], ids=["plain", "noised"])
def test_numbers_that_are_not_finite_count_nothing_and_no_client_refuses(bad: float, spec: VectorSpec) -> None:
    """A refusal, or another sum over the rest, would tell of the model that overflowed."""
    plan = plan_of(spec)
    values = {block.name: np.full(block.length, 0.5 if block.kind == "real" else 3.0) for block in spec.blocks}
    values["dream"][1] = bad
    words, replaced = encode(plan, 0, values, randomly(3))
    values["dream"][1] = 0.0
    as_zero, _ = encode(plan, 0, values, randomly(3))
    assert replaced == 1 and (words == as_zero).all()


def test_nothing_to_send_is_zeros_with_the_noise_that_others_count_on() -> None:
    plan = plan_of(BLOCKS)
    sums = decode(plan, 0, encode(plan, 0, None, randomly(1))[0], 1)
    assert np.abs(sums["dream"]).max() < 1e-4 and not sums["images"].any()
    noised = plan_of(NOISED)
    words, replaced = encode(noised, 0, None, randomly(1))
    assert replaced == 0
    spread = integers(noised, 0, words).astype(np.float64).std()
    assert NOISED.noise is not None and spread == pytest.approx(NOISED.noise.variance**0.5, rel=0.2)


@pytest.mark.parametrize("place", [0, 4, 10])
def test_sums_that_no_inputs_have_are_refused(place: int) -> None:
    plan = plan_of(BLOCKS)
    top = 255 if place == 4 else (1 << 16) - 1
    total = np.zeros(BLOCKS.words, dtype=word_type(plan.modulus_bits(0)))
    total[place] = 2 * top
    check_range(plan, 0, total, 2)
    total[place] += 1
    with pytest.raises(WrongSum):
        check_range(plan, 0, total, 2)


def test_noised_sums_are_read_as_the_nearest_integers() -> None:
    plan = plan_of(NOISED)
    half = 1 << (plan.modulus_bits(0) - 1)
    words = np.array([0, 1, half - 1, half, 2 * half - 1], dtype=word_type(plan.modulus_bits(0)))
    assert integers(plan, 0, words).tolist() == [0, 1, half - 1, -half, -1]


@pytest.mark.parametrize(
    "blocks",
    [
        (Block("a", 1, 1.0), Block("a", 1, 1.0)),
        (Block("a", 1, 0.0),),
        (Block("a", 1, -1.0),),
        (Block("a", 1, float("nan")),),
        (Block("a", 1, float("inf")),),
        (Block("a", 1, 2.5, "count"),),
        (Block("a", 1, 2.0**32, "count"),),
        (Block("a", 1 << 26, 1.0), Block("b", 1, 1.0)),
    ],
)
def test_vectors_that_cannot_be_encoded_are_refused(blocks: tuple[Block, ...]) -> None:
    check_spec(BLOCKS)
    with pytest.raises(UnsafePlan):
        check_spec(VectorSpec("update", blocks))


# -- packing ---------------------------------------------


@pytest.mark.parametrize("bits", range(1, 33))
@given(seed=SEEDS, count=st.integers(1, 70), members=st.integers(1, 300))
@settings(max_examples=12)
def test_packed_vectors_unpack_and_add_up_as_they_are(bits: int, seed: int, count: int, members: int) -> None:
    vectors = np.random.default_rng(seed).integers(0, 1 << bits, (members, count)).astype(word_type(bits))
    halves = packing.PackedSum(count, bits), packing.PackedSum(count, bits)
    for number, vector in enumerate(vectors):
        data = packing.pack(vector, bits)
        assert len(data) == packing.packed_size(count, bits) and data == second.pack(vector.tolist(), bits)
        back = packing.unpack(data, count, bits)
        assert back.dtype == vector.dtype and (back == vector).all()
        halves[number % 2].add(packing.Packed(data, count, bits))
    halves[0].merge(halves[1])
    total = halves[0].total()
    assert total.dtype == vectors.dtype
    assert total.tolist() == [sum(column) % (1 << bits) for column in vectors.T.tolist()]


@given(
    seed=SEEDS, bits=st.integers(1, 32), count=st.integers(1, 70), members=st.integers(1, 40), piece=st.integers(1, 9)
)
@settings(max_examples=80)
def test_vectors_add_up_piece_by_piece(seed: int, bits: int, count: int, members: int, piece: int) -> None:
    """Elements near the ends, so that every part is carried over."""
    ends = np.random.default_rng(seed).integers(-3, 3, (members, count))
    vectors = (ends % (1 << bits)).astype(word_type(bits))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_PIECE", piece)
        halves = packing.PackedSum(count, bits), packing.PackedSum(count, bits)
        for number, vector in enumerate(vectors):
            data = packing.pack(vector, bits)
            assert data == second.pack(vector.tolist(), bits)
            halves[number % 2].add(packing.Packed(data, count, bits))
        halves[0].merge(halves[1])
        assert halves[0].total().tolist() == [sum(column) % (1 << bits) for column in vectors.T.tolist()]


@pytest.mark.parametrize(("bits", "expected"), [(8, 1), (13, 5 / 3), (16, 2), (19, 2.4), (21, 8 / 3), (24, 3), (32, 4)])
def test_packed_size_is_little_more_than_the_bits(bits: int, expected: float) -> None:
    assert packing.packed_size(240, bits) == 240 * expected


@pytest.mark.parametrize("bits", [1, 7, 8, 13, 19, 21, 25, 32])
def test_unpacking_refuses_another_size_or_padding(bits: int) -> None:
    data, taken = packing.pack(np.zeros(5, dtype=word_type(bits)), bits), 0
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(VectorRefused):
            packing.unpack(wrong, 5, bits)
    for bit in range(len(data) * 8):
        padded = bytearray(data)
        padded[bit // 8] |= 1 << (bit % 8)
        try:
            taken += bool(packing.unpack(bytes(padded), 5, bits).any())
        except VectorRefused:
            continue
    assert taken == 5 * bits  # each bit of an element, and no other


def test_a_sum_lies_in_its_frame_or_in_its_room_and_decodes_from_either_alike() -> None:
    words, room = np.arange(9, dtype="<u2"), np.empty(9)
    assert packing.Packed(words.tobytes(), 9, 16).elements is not None
    assert packing.Packed(packing.pack(words, 15), 9, 15).elements is None
    assert Unpacked(words, room).apart and not Unpacked(room.view("<u4")[-9:], room).apart
    room[:] = words
    apart = ring.decode_sum(words, 3, 2.0, top=100)
    assert (ring.decode_sum(room, 3, 2.0, top=100, out=room) == apart).all()


@given(data=st.binary(max_size=40), count=st.integers(1, 20), bits=st.integers(1, 32))
def test_what_unpacks_packs_to_the_same_bytes(data: bytes, count: int, bits: int) -> None:
    try:
        vector = packing.unpack(data, count, bits)
    except VectorRefused:
        return
    assert packing.pack(vector, bits) == data


@pytest.mark.parametrize("bits", [2, 8, 13, 16, 21, 25, 32])
def test_what_is_beyond_the_ring_falls_away_as_it_is_packed(bits: int) -> None:
    words = np.random.default_rng(bits).integers(0, 1 << 32, 100, dtype=np.uint32).astype(word_type(bits))
    within = words & words.dtype.type((1 << bits) - 1)
    assert packing.pack(words, bits) == packing.pack(within, bits)
    assert (packing.unpack(packing.pack(words, bits), 100, bits) == within).all()


# -- masks ---------------------------------------------


@given(key=KEYS, suite=st.sampled_from(sorted(SUITES)), bits=st.integers(1, 32), count=st.integers(1, 300), seed=SEEDS)
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
    """The vector is walked in pieces that differ, and a shorter vector sees the beginning."""
    long = np.zeros((1 << 18) + 77, dtype=word_type(bits))
    short = np.zeros(1000, dtype=word_type(bits))
    add_mask(long, bytes(range(32)), suite=suite)
    add_mask(short, bytes(range(32)), suite=suite)
    assert (long[:1000] == short).all()
    assert len(np.unique(long[-64:])) > 32 and not (long[-64:] == long[:64]).all()


def test_masks_are_the_streams_that_the_protocol_fixes() -> None:
    """Over 10 MB: CTR mode makes what GCM made, from block p || 2 on; ChaCha20 has the piece as its nonce."""
    key, size = bytes(range(32)), 1 << 18
    vector = np.zeros(10_000_019, dtype="<u2")
    pieces = [(start, min(size, vector.nbytes - start)) for start in range(0, vector.nbytes, size)]
    counters = (piece.to_bytes(12, "big") + b"\0\0\0\2" for piece in range(len(pieces)))
    nonces = (bytes(4) + piece.to_bytes(12, "little") for piece in range(len(pieces)))
    made = {
        "aes-256-ctr": (Cipher(AES(key), CTR(counter)).encryptor() for counter in counters),
        "chacha20": (Cipher(ChaCha20(key, nonce), mode=None).encryptor() for nonce in nonces),
    }
    assert made.keys() == SUITES.keys()
    for suite, ciphers in made.items():
        vector[:] = 0
        add_mask(vector, key, suite=suite)
        expected = b"".join(cipher.update(bytes(length)) for cipher, (_, length) in zip(ciphers, pieces, strict=True))
        assert vector.tobytes() == expected


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("count", [1, 1000, (1 << 17) + 5, 1 << 18])
def test_the_words_of_a_stream_are_what_it_adds(suite: str, count: int) -> None:
    added = np.zeros(count, dtype="<u2")
    add_mask(added, bytes(range(32)), suite=suite)
    assert (stream_words(count, "<u2", bytes(range(32)), suite=suite) == added).all()


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
        words = encoded(np.array([1.0, -1.0, 0.0]), 1e-12, 24, np.random.default_rng(0))
    assert words[0] == (1 << 24) - 1 and words[1] == 0


def dealt(rng: np.random.Generator, rows: int, threshold: int, points: list[int]) -> tuple[Bytes, dict[int, Bytes]]:
    """Secrets and their shares."""
    secrets = rng.integers(0, 256, (rows, 32), dtype=np.uint8)
    return secrets, shamir.split(secrets, threshold, points, rng.bytes)


@given(data=st.data())
def test_all_answers_are_decoded_whatever_is_wrong_in_them_up_to_half_of_the_spare_ones(data: st.DataObject) -> None:
    """Whole answers, single bytes, multiples of one error: with any random bytes, whoever chose them."""
    count = data.draw(st.integers(1, 24))
    threshold = data.draw(st.integers(1, count))
    points = data.draw(st.lists(st.integers(1, 255), min_size=count, max_size=count, unique=True))
    wrong = data.draw(st.sets(st.sampled_from(points), max_size=(count - threshold) // 2))
    rng = np.random.default_rng(data.draw(SEEDS))
    secrets, shares = dealt(rng, 2, threshold, points)
    error = rng.integers(1, 256, secrets.shape, dtype=np.uint8)
    for point in wrong:
        if data.draw(st.booleans()):
            error = rng.integers(1, 256, secrets.shape, dtype=np.uint8)
        mask = rng.random((2, 32)) < data.draw(st.sampled_from([0.02, 0.5, 1.0]))
        mask.flat[rng.integers(mask.size)] = True
        shares[point] = shares[point] ^ error * mask
    random_bytes = data.draw(st.sampled_from([rng.bytes, bytes, lambda size: b"\x01" * size]))
    decoded = shamir.decode(shares, threshold, random_bytes)
    assert decoded is not None
    assert (decoded[0] == secrets).all() and decoded[1] == wrong


def test_three_wrong_answers_of_twenty_never_stop_the_decoding() -> None:
    rng = np.random.default_rng(14)
    for _ in range(600):
        secrets, shares = dealt(rng, 20, 14, list(range(1, 21)))
        wrong = {int(point) for point in rng.choice(20, 3, replace=False) + 1}
        for point in wrong:
            shares[point] = rng.integers(0, 256, (20, 32), dtype=np.uint8)
        decoded = shamir.decode(shares, 14, rng.bytes)
        assert decoded is not None and (decoded[0] == secrets).all() and decoded[1] == wrong


def test_what_every_projection_misses_is_decoded_byte_by_byte() -> None:
    """Each liar is wrong in a byte of its own, and the projections add up nothing."""
    rng = np.random.default_rng(15)
    secrets, shares = dealt(rng, 20, 14, list(range(1, 21)))
    for place, point in enumerate((3, 9, 20)):
        shares[point] = shares[point].copy()
        shares[point][5 * place, place] ^= 1
    decoded = shamir.decode(shares, 14, bytes)
    assert decoded is not None and (decoded[0] == secrets).all() and decoded[1] == {3, 9, 20}


@pytest.mark.parametrize("random_bytes", [np.random.default_rng(5).bytes, bytes])
@pytest.mark.parametrize("apart", [False, True])
def test_more_wrong_answers_than_can_be_told_are_not_decoded(random_bytes: Callable[[int], bytes], apart: bool) -> None:
    rng = np.random.default_rng(5)
    _, shares = dealt(rng, 4, 5, list(range(1, 10)))
    for place, point in enumerate((1, 2, 3)):
        error = rng.integers(1, 256, (4, 32), dtype=np.uint8)
        shares[point] = shares[point] ^ (error * (np.arange(4) == place)[:, None] if apart else error)
    assert shamir.decode(shares, 5, random_bytes) is None


def test_as_many_answers_as_the_threshold_are_decoded_as_they_are() -> None:
    rng = np.random.default_rng(6)
    secrets, shares = dealt(rng, 2, 5, [4, 200, 7, 255, 1])
    decoded = shamir.decode(shares, 5, rng.bytes)
    assert decoded is not None and (decoded[0] == secrets).all() and not decoded[1]
    shares[7] = shares[7] ^ np.uint8(1)
    decoded = shamir.decode(shares, 5, rng.bytes)
    assert decoded is not None and (decoded[0] != secrets).all() and not decoded[1]


@pytest.mark.parametrize(("points", "threshold"), [([], 1), ([0, 1], 1), ([1, 256], 1), ([1, 2], 0), ([1, 2], 3)])
def test_shamir_refuses_to_decode_with_bad_thresholds_and_points(points: list[int], threshold: int) -> None:
    with pytest.raises(LocalProtocolError):
        shamir.decode({point: np.zeros((1, 1), dtype=np.uint8) for point in points}, threshold, bytes)


class Unreadable:
    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise KeyError("no numbers")


@pytest.mark.parametrize("values", [[10**400], Unreadable(), [Unreadable()], ["x"], [None, {}]])
def test_what_is_no_array_of_numbers_is_refused_with_a_typed_error_so_that_zeros_go_out(values: Any) -> None:
    """A learner of one's own that gives such a thing would else end the client, and so tell something by it."""
    federation = Federation(4)
    assert federation.set_up()
    compute = federation.computing[0]
    block = compute.spec.blocks[0]
    with pytest.raises(LocalProtocolError):
        federation.clients[0].provide(compute.plan, compute.step, {block.name: values})
    sent = federation.clients[0].provide(compute.plan, compute.step, None)
    assert any(isinstance(effect, Send) for effect in sent)
