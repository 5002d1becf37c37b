"""Memory that the server's machine takes for a step, over what it holds in an epoch before the first vector comes.

    python benchmarks/server_memory.py --members 200 --dimension 100000 --losses allow

All machines run in this process; what the server's calls allocate, keep and let go is counted for each call, with the
frame that came, so that nothing of the clients' is in it. Entries of the running epoch are let go, as if written to a
disk. In vectors of 4 bytes a coordinate; one step.
"""

from __future__ import annotations

import argparse
import tracemalloc
from typing import Any, Literal

from codream_protocols.client import Send
from codream_protocols.messages import MaskedInput
from codream_protocols.running import Entry
from codream_protocols.server import InMemory
from secure_codream.bench import ours
from secure_codream.bench.ours import Case


class _Written(InMemory):
    """Keeps nothing of the running epoch."""

    def running(self, entry: Entry, *, must: bool = False) -> None:
        """See `ServerJournal`."""


class _Counted(ours._Run):
    """A run whose server is watched from its first vector on."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._simulation.server._journal = _Written()
        self.held = self.peak = 0

    def _to_server(self, member: int, send: Send) -> None:
        if isinstance(send.message, MaskedInput) and not tracemalloc.is_tracing():
            tracemalloc.start()
        if not tracemalloc.is_tracing():
            super()._to_server(member, send)
            return
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        super()._to_server(member, send)
        after, peak = tracemalloc.get_traced_memory()
        self.peak = max(self.peak, self.held + peak - before + sum(map(len, send.frames)))
        self.held += after - before


def main() -> None:
    """Run one epoch of one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=200)
    parser.add_argument("--dimension", type=int, default=100_000)
    parser.add_argument("--bits", type=int, default=24)
    parser.add_argument("--losses", choices=("allow", "blocks"), default="allow")
    given: Any = parser.parse_args()
    mode: Literal["resilient"] = "resilient"
    run = _Counted(Case(mode, given.members, given.dimension, given.bits, 0, given.losses, 1))
    run.epoch()
    vectors = run.peak / (4 * given.dimension)
    shape = f"n = {given.members}, d = {given.dimension:,}, m = {given.bits}, losses = {given.losses!r}"
    print(f"{shape}: {run.peak / 1e6:.2f} MB, {vectors:.2f} vectors of 4 bytes a coordinate")


if __name__ == "__main__":
    main()
