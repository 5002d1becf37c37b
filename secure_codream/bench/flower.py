"""Flower's secagg+ on the same vectors: its own functions as shipped, in its own order. Needs the extra `[flower]`.

Every client is a neighbour of every other one, and the threshold is ours. Of what its server repeats for each client
and pair, a few are timed and counted as many times: rebuilding secrets alone takes it a minute at 100 clients.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from secure_codream.bench.ours import CLIP, Case

_SAMPLES = 3
_MOST_VECTORS = 20


@dataclass(frozen=True)
class FlowerCosts:
    """See `ours.Costs`; a client's step has no check of the sum."""

    step: float
    adding: float
    unmasking: float
    setup: float
    up: float


def run_flower(case: Case) -> FlowerCosts:
    """What Flower needs for one sum of this case."""
    flower = _functions()
    others, threshold = case.n - 1, 2 * case.n // 3 + 1
    mod_range, target_range = 1 << case.m, (1 << case.value_bits) - 1
    seed, values = os.urandom(32), np.random.default_rng(0).normal(size=case.d).astype(np.float32)

    def step() -> list[Any]:
        vector = flower.quantize(flower.parameters_multiply([values], 1.0), CLIP, target_range)
        vector = flower.factor_combine(target_range, vector)
        shapes = [array.shape for array in vector]
        vector = flower.parameters_addition(vector, flower.pseudo_rand_gen(seed, mod_range, shapes))
        for number in range(others):
            mask = flower.pseudo_rand_gen(os.urandom(32), mod_range, shapes)
            change = flower.parameters_addition if number % 2 else flower.parameters_subtraction
            vector = change(vector, mask)
        return list(flower.parameters_mod(vector, mod_range))

    masked = step()
    up = sum(len(flower.ndarray_to_bytes(array)) for array in masked)
    setup, setup_bytes = _set_up(case.n, threshold)
    survivors = case.n - case.dropped
    shares = flower.create_shares(seed, threshold, case.n)[:survivors]
    private, public = flower.generate_key_pairs()
    private_bytes, public_bytes = flower.private_key_to_bytes(private), flower.public_key_to_bytes(public)
    shapes = flower.get_parameters_shape(masked)

    def take_off_one() -> None:
        flower.parameters_subtraction(masked, flower.pseudo_rand_gen(seed, mod_range, shapes))

    def take_off_pair() -> None:
        key = flower.generate_shared_key(
            flower.bytes_to_private_key(private_bytes), flower.bytes_to_public_key(public_bytes)
        )
        flower.parameters_addition(masked, flower.pseudo_rand_gen(key, mod_range, shapes))

    secret, one = _median(lambda: flower.combine_shares(shares)), _median(take_off_one)
    pair = _median(take_off_pair) if case.dropped else 0.0
    return FlowerCosts(
        step=_median(lambda: [flower.ndarray_to_bytes(array) for array in step()]),
        adding=_adding(masked, min(survivors, _MOST_VECTORS)),
        unmasking=case.n * secret + survivors * one + case.dropped * others * pair,
        setup=setup,
        up=up + setup_bytes,
    )


def _adding(masked: list[Any], count: int) -> float:
    """Milliseconds for one of `count` vectors, each its own as it came, added to their sum."""
    flower = _functions()
    came = [[array.copy() for array in masked] for _ in range(count)]
    total = masked
    began = time.process_time()
    for vector in came:
        total = flower.parameters_addition(total, vector)
    return 1e3 * (time.process_time() - began) / count


def _set_up(count: int, threshold: int) -> tuple[float, int]:
    """A client's keys, shares, and their encryption and decryption: milliseconds and bytes."""
    flower = _functions()
    peer = flower.public_key_to_bytes(flower.generate_key_pairs()[1])
    sent = 0

    def work() -> None:
        nonlocal sent
        pairs = [flower.generate_key_pairs() for _ in range(2)]
        kept = [(flower.private_key_to_bytes(private), flower.public_key_to_bytes(public)) for private, public in pairs]
        sent = sum(len(public) for _, public in kept)
        seeds = flower.create_shares(os.urandom(32), threshold, count)
        keys = flower.create_shares(kept[0][0], threshold, count)
        for other in range(count - 1):
            shared = flower.generate_shared_key(
                flower.bytes_to_private_key(kept[1][0]), flower.bytes_to_public_key(peer)
            )
            ciphertext = flower.encrypt(shared, flower.share_keys_plaintext_concat(0, other, seeds[other], keys[other]))
            sent += len(ciphertext)
            flower.share_keys_plaintext_separate(flower.decrypt(shared, ciphertext))
            flower.generate_shared_key(flower.bytes_to_private_key(kept[0][0]), flower.bytes_to_public_key(peer))

    return _median(work), sent


@cache
def _functions() -> SimpleNamespace:
    """Flower's, by their own names; loaded when they are asked for."""
    from flwr.common import ndarray_to_bytes
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        factor_combine,
        get_parameters_shape,
        parameters_addition,
        parameters_mod,
        parameters_multiply,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.quantization import quantize
    from flwr.common.secure_aggregation.secaggplus_utils import (
        pseudo_rand_gen,
        share_keys_plaintext_concat,
        share_keys_plaintext_separate,
    )
    from flwr.supercore.primitives.asymmetric import (
        bytes_to_private_key,
        bytes_to_public_key,
        generate_key_pairs,
        private_key_to_bytes,
        public_key_to_bytes,
    )

    return SimpleNamespace(
        bytes_to_private_key=bytes_to_private_key,
        bytes_to_public_key=bytes_to_public_key,
        combine_shares=combine_shares,
        create_shares=create_shares,
        decrypt=decrypt,
        encrypt=encrypt,
        factor_combine=factor_combine,
        generate_key_pairs=generate_key_pairs,
        generate_shared_key=generate_shared_key,
        get_parameters_shape=get_parameters_shape,
        ndarray_to_bytes=ndarray_to_bytes,
        parameters_addition=parameters_addition,
        parameters_mod=parameters_mod,
        parameters_multiply=parameters_multiply,
        parameters_subtraction=parameters_subtraction,
        private_key_to_bytes=private_key_to_bytes,
        pseudo_rand_gen=pseudo_rand_gen,
        public_key_to_bytes=public_key_to_bytes,
        quantize=quantize,
        share_keys_plaintext_concat=share_keys_plaintext_concat,
        share_keys_plaintext_separate=share_keys_plaintext_separate,
    )


def _median(work: Callable[[], object]) -> float:
    """Milliseconds of processor time."""
    taken = []
    for _ in range(_SAMPLES):
        began = time.process_time()
        work()
        taken.append(1e3 * (time.process_time() - began))
    return statistics.median(taken)
