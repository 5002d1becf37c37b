"""Long vectors are worked on in pieces; the cores that share them are given from outside.

The machines know no threads. A process that has cores to spare gives workers as it starts; without them, and of one
piece only, whoever asks does all of it, in order. What comes out is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable

PIECE_BYTES = 1 << 18
"""Of a vector: they stay in a core's cache. Mask streams are cut so, too, and that is the protocol's."""

PIECE = 1 << 16
"""Numbers of a piece, where a number takes up to 4 bytes."""

Work = Callable[[int], object]
Workers = Callable[[int, Work], None]
"""With N, calls the work with each of 0 .. N - 1 once, in any order and thread; what it raises is raised at the end."""

_given: list[Workers] = []


def share_among(workers: Workers | None) -> None:
    """From here on all machines of this process share their work among these; None ends it."""
    _given[:] = [] if workers is None else [workers]


def each(pieces: int, work: Work) -> None:
    """Do the work of each piece, 0 .. `pieces` - 1; no piece's may hang on another's."""
    workers = next(iter(_given), None) if pieces > 1 else None  # another party of this process may end meanwhile
    if workers is not None:
        workers(pieces, work)
        return
    for piece in range(pieces):
        work(piece)


def each_slice(length: int, work: Callable[[slice], object], size: int = PIECE) -> None:
    """The same with the slices of a vector of `length` numbers, of `size` each."""
    each(-(-length // size), lambda piece: work(slice(piece * size, min((piece + 1) * size, length))))
