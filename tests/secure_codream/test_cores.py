"""Threads share the work on a vector: the same bits come out, each piece is done once, and its time is counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codream_protocols import packing, ring
from codream_protocols.cores import PIECE, Work, each, each_slice
from codream_protocols.encoding import StreamRounding
from codream_protocols.masks import SUITES, add_masks, word_type
from codream_protocols.seeded import SeededBytes
from codream_protocols.spans import part_of_sum
from codream_protocols.tag import TagKey
from secure_codream.deployment.cores import _Threads, shared_by
from secure_codream.deployment.spans import watched
from secure_codream.reports.spans import read_spans

LENGTH = 9 * PIECE + 77


def step(bits: int, suite: str) -> list[object]:
    """All that is done to a vector, at a client and at the server."""
    values = np.random.default_rng(0).normal(size=LENGTH).astype(np.float32)
    values[LENGTH // 2] = np.nan
    words = np.empty(LENGTH, dtype=word_type(bits))
    dither = StreamRounding(SeededBytes(0, "dither")).dither()
    replaced = ring.encode(values, 3.0, words, top=(1 << bits - 5) - 1, dither=dither)
    tag = TagKey(bytes(range(32)), LENGTH).of(words)
    add_masks(words, [(bytes([number] * 32), number % 2 == 0) for number in range(5)], suite=suite)
    words &= words.dtype.type((1 << bits) - 1)
    frame, total, other = packing.pack(words, bits), packing.PackedSum(LENGTH, bits), packing.PackedSum(LENGTH, bits)
    for each_sum in (total, total, other):
        each_sum.add(packing.Packed(frame, LENGTH, bits))
    total.merge(other)
    back = packing.unpack(frame, LENGTH, bits)
    assert (back == words).all()
    return [
        replaced,
        tag,
        frame,
        total.total().tobytes(),
        ring.decode_sum(back, 3, 3.0, top=(1 << bits - 5) - 1).tobytes(),
    ]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("bits", [16, 21, 27])
def test_a_vector_is_the_same_on_one_thread_and_on_several(
    bits: int, suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = step(bits, suite)
    monkeypatch.setattr(packing, "_LEAST_ADDED", 2)  # else this is too short to be added by several
    with shared_by(4):
        assert all(step(bits, suite) == alone for _ in range(3))


def one_by_one(work: Callable[[int], object]) -> Work:
    """Takes pieces, and does each."""

    def do(pieces: Iterator[int]) -> None:
        for piece in pieces:
            work(piece)

    return do


def test_each_piece_is_done_once_and_several_threads_work_at_a_time() -> None:
    done, together = Counter[int](), threading.Barrier(2, timeout=20)

    def work(piece: int) -> None:
        if piece < 2:
            together.wait()  # one thread alone would never come to the second piece
        done[piece] += 1

    with shared_by(3):
        each(100, one_by_one(work))
        each(100, one_by_one(lambda piece: each(8, list)))  # work within work does not wait for itself
    assert done == Counter(range(100))


def test_what_a_helper_raises_is_raised_and_nobody_works_on_afterwards() -> None:
    at_work, me = set[int](), threading.get_ident()
    helped = threading.Event()

    def work(piece: int) -> None:
        at_work.add(piece)
        try:
            if threading.get_ident() != me:
                helped.set()
                raise KeyError(piece)
            helped.wait(20)
        finally:
            at_work.remove(piece)

    with shared_by(2), pytest.raises(KeyError):
        each(50, one_by_one(work))
    assert not at_work


def test_a_helper_that_comes_when_all_is_done_is_not_let_in() -> None:
    """Not even to find nothing to do: sums that helpers add to are taken together by then."""
    asked, begun = list[Callable[[], object]](), list[int]()

    class Late(ThreadPoolExecutor):
        def submit(self, work: Any, /, *args: Any, **named: Any) -> Any:
            asked.append(work)

    def work(pieces: Iterator[int]) -> None:
        begun.append(len(list(pieces)))

    with Late(3) as pool:
        _Threads(4, pool)(100, work, 2)
    for helper in asked:
        helper()
    assert len(asked) == 3 and begun == [100]


def test_short_vectors_one_thread_and_a_party_that_has_ended_need_nobody_else() -> None:
    me, threads = threading.get_ident(), set[int]()

    def work(piece: int) -> None:
        threads.add(threading.get_ident())

    with shared_by(8):
        each(1, one_by_one(work))
        each(3, one_by_one(work))
        each(31, one_by_one(work), 16)
        each_slice(31, lambda part: work(part.start), 1, 16)
    with shared_by(1):
        each(100, one_by_one(work))
    each(100, one_by_one(work))
    assert threads == {me}


def test_what_helpers_do_is_of_the_part_that_they_help_with(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=20)

    def work(piece: int) -> None:
        if piece < 2:
            together.wait()
            began = time.thread_time()
            while time.thread_time() - began < 0.01:
                pass

    @part_of_sum("masking")
    def masking() -> None:
        each(4, one_by_one(work))

    @part_of_sum("unmasking")
    def unmasking() -> None:
        masking()

    with watched(tmp_path, True), shared_by(2):
        unmasking()
    found = read_spans(tmp_path)
    assert set(found.totals) == {"unmasking"} and found.totals["unmasking"].processor >= 0.02
