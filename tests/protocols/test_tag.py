"""The group tag: exact, linear, bound to the members named, and as hard to forge as its bound says."""

from __future__ import annotations

import copy
import hashlib
import hmac
import pickle
import struct
from itertools import product
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codream_protocols import keyschedule
from codream_protocols.errors import LocalProtocolError, VectorRefused
from codream_protocols.tag import COLUMNS, MAXIMUM_LENGTH, TagKey, tag_bytes, tag_number

SECRET = bytes(range(32))
RING = 1 << 128
LARGEST = (1 << 33) - 1
SEEDS = st.integers(0, 2**32 - 1)
RANGES: dict[type[Any], tuple[int, int]] = {
    np.int64: (-LARGEST, LARGEST),
    np.int32: (-(2**31), 2**31 - 1),
    np.uint32: (0, 2**32 - 1),
    np.uint16: (0, 65535),
}


# -- the same in plain Python, from the formula -------


def plain_subkey(label: str) -> bytes:
    name = f"{keyschedule.PROTOCOL} {label}".encode()
    return hmac.digest(SECRET, struct.pack(">I", len(name)) + name + b"\x01", hashlib.sha256)


def plain_block(key: bytes, number: int) -> int:
    return int.from_bytes(Cipher(AES(key), ECB()).encryptor().update(number.to_bytes(16, "big")), "little")


def plain_tag(member: int, values: list[int]) -> int:
    rows, columns, pads = (plain_subkey(label) for label in ("tag rows", "tag columns", "tag pads"))
    b = [plain_block(columns, column) for column in range(COLUMNS)]
    total = plain_block(pads, member)
    for row in range(-(-len(values) // COLUMNS)):
        part = values[row * COLUMNS : (row + 1) * COLUMNS]
        total += plain_block(rows, row) * sum(x * b[column] for column, x in enumerate(part))
    return total % RING


def random_values(seed: int, length: int, dtype: type[Any], bits: int = 64) -> np.ndarray:
    low, high = RANGES[dtype]
    low, high = max(low, -(1 << bits)), min(high, 1 << bits)
    return np.random.default_rng(seed).integers(low, high, length, endpoint=True).astype(dtype)


# -- exactness ----------------------------------------


@given(SEEDS, st.integers(1, 5000), st.sampled_from(list(RANGES)), st.integers(0, 64), st.integers(0, 2**32 - 1))
@example(0, 1, np.int64, 33, 0)
@example(0, 2047, np.uint16, 16, 1)
@example(0, 2048, np.uint32, 26, 2)
@example(0, 2049, np.int64, 26, 3)
@example(0, 4096, np.int32, 31, 2**32 - 1)
@settings(max_examples=60)
def test_a_tag_is_what_the_formula_says(seed: int, length: int, dtype: type, bits: int, member: int) -> None:
    values = random_values(seed, length, dtype, bits)
    assert TagKey(SECRET, length).tag(member, values) == plain_tag(member, values.tolist())


@pytest.mark.parametrize("value", [LARGEST, -LARGEST, 2**26, -(2**26), 2**26 + 1, -(2**26) - 1, -1])
@pytest.mark.parametrize("length", [1, COLUMNS, COLUMNS + 1])
def test_extreme_values(value: int, length: int) -> None:
    assert TagKey(SECRET, length).tag(7, np.full(length, value, np.int64)) == plain_tag(7, [value] * length)


def test_pieces_of_small_and_large_values_mix() -> None:
    length = 70 * COLUMNS + 3
    values = random_values(1, length, np.int64, 20)
    values[40 * COLUMNS + 1] = -LARGEST
    assert TagKey(SECRET, length).tag(0, values) == plain_tag(0, values.tolist())


def test_a_view_with_strides() -> None:
    values = random_values(2, 9000, np.int64)
    assert TagKey(SECRET, 3000).tag(1, values[::-3]) == plain_tag(1, values[::-3].tolist())


@pytest.mark.parametrize("value", [LARGEST, -LARGEST, 2**26, -(2**26)])
def test_no_sum_overflows_at_the_longest_vector_and_the_largest_key(value: int) -> None:
    key = TagKey(SECRET, MAXIMUM_LENGTH)
    key._rows[:], key._columns[:] = 0xFFFF, 0xFFFF
    # Each a_r and b_c is -1: a' X b is the sum of X.
    assert key.of(np.broadcast_to(np.int64(value), MAXIMUM_LENGTH)) == value * MAXIMUM_LENGTH % RING


def test_no_sum_of_words_overflows_at_the_longest_vector_and_the_largest_key() -> None:
    key, most = TagKey(SECRET, MAXIMUM_LENGTH), np.uint16(65535)
    key._rows[:], key._columns[:] = 0xFFFF, 0xFFFF
    assert key.of(np.broadcast_to(most, MAXIMUM_LENGTH)) == int(most) * MAXIMUM_LENGTH % RING


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("length", [1, COLUMNS, 32 * COLUMNS, 33 * COLUMNS + 5])
def test_who_asks_for_doubles_gets_the_values_and_the_same_tag(length: int, dtype: type) -> None:
    values, doubles, key = random_values(3, length, dtype, 33), np.full(length, np.nan), TagKey(SECRET, length)
    assert key.of(values, doubles) == key.of(values) and (doubles == values).all()


@pytest.mark.parametrize("bits", range(20, 34))
def test_values_of_any_magnitude_are_exact_at_the_largest_key(bits: int) -> None:
    key = TagKey(SECRET, 64 * COLUMNS)
    key._rows[:], key._columns[:] = 0xFFFF, 0xFFFF
    top = min(1 << bits, LARGEST)
    values = np.random.default_rng(bits).integers(top - 1000, top, 64 * COLUMNS, endpoint=True)
    assert key.of(values) == int(values.sum())


def test_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    # Computed by `plain_tag`.
    monkeypatch.setattr(keyschedule, "PROTOCOL", "secure-codream/2")
    values = np.array([(-1) ** i * (i * i * 1999 % (LARGEST + 1)) for i in range(2050)])
    key = TagKey(SECRET, 2050)
    assert f"{key.pad(0):032x}" == "ff747ddf7778783588e9dd0f66c9f9f5"
    assert f"{key.pad(3):032x}" == "c1385c6d278267cee9265b762030754b"
    assert f"{key.of(values):032x}" == "57a772c4e2632ef6879157f84621d0ba"
    assert tag_bytes(key.tag(3, values)).hex() == "054652666eb3b770c596e50932cfdf18"


# -- what a check takes and what not ------------------


MEMBERS = (0, 3, 4, 11)


def federation(length: int = 5000) -> tuple[TagKey, dict[int, np.ndarray], np.ndarray, int]:
    key = TagKey(SECRET, length)
    inputs = {member: random_values(member, length, np.int64, 22) for member in MEMBERS}
    total = sum(inputs.values(), start=np.zeros(length, np.int64))
    return key, inputs, total, sum(key.tag(i, x) for i, x in inputs.items()) % RING


def test_a_true_sum_fits_in_any_order_and_dtype() -> None:
    key, _, total, tag = federation()
    assert key.check(total, tag, MEMBERS)
    assert key.check(total.astype(np.int32), tag, reversed(MEMBERS))


@given(SEEDS, st.integers(1, 5), st.integers(1, 3000))
@settings(max_examples=20)
def test_tags_add_up(seed: int, members: int, length: int) -> None:
    key = TagKey(SECRET, length)
    inputs = [random_values(seed + member, length, np.uint32, 30) for member in range(members)]
    tag = sum(key.tag(member, values) for member, values in enumerate(inputs)) % RING
    assert key.check(sum(values.astype(np.int64) for values in inputs), tag, range(members))


@pytest.mark.parametrize("position", [0, 2047, 2048, 4999])
@pytest.mark.parametrize("change", [1, -1, 2**24, -(2**32)])
def test_a_changed_coordinate_is_refused(position: int, change: int) -> None:
    key, _, total, tag = federation()
    total[position] += change
    assert not key.check(total, tag, MEMBERS)


def test_a_scaled_sum_is_refused() -> None:
    key, _, total, tag = federation()
    assert not key.check(2 * total, 2 * tag % RING, MEMBERS)
    assert not key.check(-total, -tag % RING, MEMBERS)
    assert not key.check(0 * total, 0, MEMBERS)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2048), (100, 4999)])
def test_swapped_coordinates_are_refused(one: int, other: int) -> None:
    key, _, total, tag = federation()
    assert total[one] != total[other]
    total[[one, other]] = total[[other, one]]
    assert not key.check(total, tag, MEMBERS)


@pytest.mark.parametrize("named", [(0, 3, 4), (0, 3, 4, 12), (0, 3, 4, 11, 12), (1,)])
def test_other_survivors_are_refused(named: tuple[int, ...]) -> None:
    key, _, total, tag = federation()
    assert not key.check(total, tag, named)


def test_a_sum_without_a_member_fits_only_under_the_names_of_the_others() -> None:
    key, inputs, total, tag = federation()
    rest, rest_tag = total - inputs[4], (tag - key.tag(4, inputs[4])) % RING
    assert key.check(rest, rest_tag, (0, 3, 11))
    assert not key.check(rest, rest_tag, MEMBERS)
    assert not key.check(rest, tag, MEMBERS)


def test_a_key_of_another_step_is_refused() -> None:
    _, _, total, tag = federation()
    assert not TagKey(bytes(32), len(total)).check(total, tag, MEMBERS)


def test_a_wrapped_sum_is_refused() -> None:
    key, _, total, tag = federation()
    total[9] += 1 << 25
    assert not key.check(total, tag, MEMBERS)


# -- the bound, counted in a small ring ---------------


def most_likely(difference: np.ndarray, ring_bits: int) -> float:
    """The greatest part of all keys (a, b) modulo 2^ring_bits under which a' D b is one number."""
    rows, columns = difference.shape
    numbers = np.arange(1 << ring_bits)
    a = np.stack(np.meshgrid(*[numbers] * rows, indexing="ij")).reshape(rows, -1)
    b = np.stack(np.meshgrid(*[numbers] * columns, indexing="ij")).reshape(columns, -1)
    products: np.ndarray[Any, Any] = a.T @ (difference @ b)
    results = products & ((1 << ring_bits) - 1)
    return float(np.bincount(results.ravel()).max() / results.size)


def bound(magnitude: int, ring_bits: int) -> float:
    q = ring_bits + 1 - magnitude.bit_length()
    return (q / 2 + 1) * 2.0**-q


def test_no_difference_is_forged_more_often_than_the_bound_and_some_as_often() -> None:
    for difference in range(1, 64):
        found = most_likely(np.array([[difference]]), 6)
        assert found <= bound(difference, 6)
        if difference & (difference - 1) == 0:
            assert found == bound(difference, 6)  # zero divisors: more than 2^-q, so the factor is needed


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2, 2)])
def test_the_bound_for_matrices(shape: tuple[int, int]) -> None:
    entries = (-6, -4, -1, 0, 2, 3, 4)
    differences = list(product(entries, repeat=shape[0] * shape[1]))
    for difference in differences[:: 17 if shape == (2, 2) else 1]:
        if any(difference):
            magnitude = max(abs(entry) for entry in difference)
            assert most_likely(np.array(difference).reshape(shape), 4) <= bound(magnitude, 4)


# -- misuse -------------------------------------------


@pytest.mark.parametrize("length", [0, -1, MAXIMUM_LENGTH + 1])
def test_lengths_outside_the_range_are_refused(length: int) -> None:
    with pytest.raises(LocalProtocolError):
        TagKey(SECRET, length)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_secrets_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(LocalProtocolError):
        TagKey(bytes(size), 10)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(9, np.int64),
        np.zeros(11, np.int64),
        np.zeros((1, 10), np.int64),
        np.zeros(10, np.float64),
        np.zeros(10, np.uint64),
        np.zeros(10, ">i8"),
        np.full(10, LARGEST + 1),
        np.full(10, -LARGEST - 1),
        np.full(10, -(2**63)),
        np.full(10, 2**63 - 1),
    ],
)
def test_values_of_another_form_are_refused(values: np.ndarray) -> None:
    key = TagKey(SECRET, 10)
    for use in (lambda: key.of(values), lambda: key.tag(0, values), lambda: key.check(values, 0, [0])):
        with pytest.raises(LocalProtocolError):
            use()


def test_survivors_named_twice_none_and_impossible_numbers_are_refused() -> None:
    key = TagKey(SECRET, 10)
    for survivors in ([], [1, 2, 1], [-1], [2**32]):
        with pytest.raises(LocalProtocolError):
            key.check(np.zeros(10, np.int64), 0, survivors)
    for member in (-1, 2**32):
        with pytest.raises(LocalProtocolError):
            key.pad(member)


def test_tags_on_the_wire() -> None:
    assert tag_bytes(1) == b"\x01" + bytes(15)
    assert tag_number(tag_bytes(RING - 2)) == RING - 2
    for size in (0, 15, 17):
        with pytest.raises(VectorRefused):
            tag_number(bytes(size))
    for tag in (-1, RING):
        with pytest.raises(LocalProtocolError):
            tag_bytes(tag)
        with pytest.raises(LocalProtocolError):
            TagKey(SECRET, 1).check(np.zeros(1, np.int64), tag, [0])


def test_a_key_hides_itself_and_is_never_pickled() -> None:
    key = TagKey(SECRET, 10)
    assert repr(key) == str(key) == "<TagKey for 10 coordinates, hidden>"
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_an_erased_key_refuses_to_work() -> None:
    key, values = TagKey(SECRET, 10), np.ones(10, np.int64)
    twin, before = copy.deepcopy(key), key.tag(1, values)
    key.erase()
    key.erase()
    assert repr(key) == "<TagKey for 10 coordinates, erased>"
    assert not key._rows.any() and not key._columns.any()
    uses = (lambda: key.of(values), lambda: key.pad(1), lambda: key.tag(1, values), lambda: key.check(values, 0, [1]))
    for use in uses:
        with pytest.raises(LocalProtocolError, match="erased"):
            use()
    assert twin.tag(1, values) == before
