"""What a group tag costs: milliseconds of one thread's processor time for a step's key and for one tag.

    python benchmarks/tag_cost.py

A member pays, each step: one key, one tag, one check (a tag and a pad for each survivor).
"""

from __future__ import annotations

import os

# Read when numpy is imported: one thread, so that its time is the whole cost.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from codream_protocols.tag import TagKey

SECRET = bytes(range(32))
REPEATS = 40


def median_ms(work: Callable[[], object]) -> float:
    """Median processor time of `REPEATS` calls after one that warms up, in milliseconds."""
    work()
    taken = []
    for _ in range(REPEATS):
        start = time.thread_time()
        work()
        taken.append(time.thread_time() - start)
    return 1e3 * sorted(taken)[REPEATS // 2]


def main() -> None:
    generator = np.random.default_rng(0)
    print(f"{'d':>9} {'m':>3} {'dtype':>7} {'key ms':>7} {'tag ms':>7}")
    for length in (10**4, 10**5, 10**6):
        for bits, dtype in ((16, np.uint16), (16, np.int64), (25, np.uint32), (25, np.int64), (33, np.int64)):
            values = generator.integers(0, 1 << bits, length).astype(dtype)
            key = TagKey(SECRET, length)
            making = median_ms(partial(TagKey, SECRET, length))
            tagging = median_ms(partial(key.tag, 1, values))
            print(f"{length:>9} {bits:>3} {np.dtype(dtype).name:>7} {making:>7.3f} {tagging:>7.3f}")
    key, zeros = TagKey(SECRET, 1), np.zeros(1, dtype=np.int64)
    print(f"check of 1 coordinate, 200 members: {median_ms(lambda: key.check(zeros, 0, range(200))):.3f} ms")


if __name__ == "__main__":
    main()
