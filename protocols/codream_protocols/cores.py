"""Long vectors are worked on in pieces; the cores that share them are given from outside.

The machines know no threads. A process that has cores to spare gives workers as it starts; without them, and of one
piece only, whoever asks does all of it, in order. What comes out is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

PIECE_BYTES = 1 << 18
"""Of a vector: they stay in a core's cache. Mask streams are cut so, too, and that is the protocol's."""

PIECE = 1 << 16
"""Numbers of a piece, where a number takes up to 4 bytes."""

Work = Callable[[Iterator[int]], object]
"""Does the pieces whose numbers it takes, until there are none; what it needs for each it makes once."""

Workers = Callable[[int, Work, int], None]
"""With N, calls the work in one or more threads, which share 0 .. N - 1; what it raises is raised at the end.

The last argument is how many pieces are worth a thread: to wake one up takes some fifty microseconds.
"""

_given: list[Workers] = []


def share_among(workers: Workers | None) -> None:
    """From here on all machines of this process share their work among these; None ends it."""
    _given[:] = [] if workers is None else [workers]


def each(pieces: int, work: Work, least: int = 2) -> None:
    """Do the work of all pieces, 0 .. `pieces` - 1; no piece's may hang on another's.

    Args:
        pieces: how many.
        work: takes and does them.
        least: how many are worth a thread.
    """
    workers = next(iter(_given), None) if pieces > 1 else None  # another party of this process may end meanwhile
    if workers is not None:
        workers(pieces, work, least)
    else:
        work(iter(range(pieces)))


def each_slice(length: int, work: Callable[[slice], object], size: int = PIECE, least: int = 2) -> None:
    """Do the work of all slices of a vector of `length` numbers, of `size` each; the rest as for `each`."""

    def do(numbers: Iterator[int]) -> None:
        for number in numbers:
            work(slice(number * size, min((number + 1) * size, length)))

    each(-(-length // size), do, least)
