"""A virtual network: every client has a link of its own, and clocks that no machine's real time moves.

A message of b bytes takes b / bandwidth on a client's link, one after the other in each direction, and then the latency
of one way. A client begins with a message when it has come and all earlier ones are done, and computes for as long as
its thread was measured to. The server's own link is no limit; it works on messages one at a time. Who falls silent is
noticed at once, as a broken connection is: a server that has to wait adds its patience.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MEGABIT = 1e6 / 8


@dataclass(frozen=True)
class Network:
    """Each client's link.

    Attributes:
        latency: seconds of one way.
        bandwidth: bytes a second, up and down alike; 0 for no limit.
    """

    latency: float = 0.0
    bandwidth: float = 0.0

    def seconds(self, size: int) -> float:
        """How long a message keeps a link busy."""
        return size / self.bandwidth if self.bandwidth else 0.0


@dataclass
class Clocks:
    """Where everybody's time stands, in seconds from the beginning.

    Attributes:
        network: the links.
        members: how many clients.
        now: the server's.
    """

    network: Network
    members: int
    now: float = 0.0
    _down: list[float] = field(init=False)
    _busy: list[float] = field(init=False)
    _up: list[float] = field(init=False)
    _latest: float = field(default=0.0, init=False)
    _earliest: float | None = field(default=None, init=False)
    _work: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._down, self._busy, self._up = ([0.0] * self.members for _ in range(3))

    def told(self, member: int, size: int) -> None:
        """The server sends a client so many bytes."""
        self._down[member] = max(self._down[member], self.now) + self.network.seconds(size)

    def computed(self, member: int, seconds: float) -> None:
        """The client takes what was sent last, and computes for so long."""
        arrived = self._down[member] + self.network.latency
        self._busy[member] = max(self._busy[member], arrived) + seconds

    def answered(self, member: int, size: int) -> None:
        """The client answers with so many bytes."""
        self._up[member] = max(self._up[member], self._busy[member]) + self.network.seconds(size)
        arrived = self._up[member] + self.network.latency
        self._latest = max(self._latest, arrived)
        self._earliest = arrived if self._earliest is None else min(self._earliest, arrived)

    def worked(self, seconds: float) -> None:
        """The server computes for so long on what has come."""
        self._work += seconds

    def goes_on(self) -> None:
        """The server says something new: it has all that came so far, and was not quicker than its own work."""
        since = self.now if self._earliest is None else max(self.now, self._earliest)
        self.now = max(self.now, self._latest, since + self._work)
        self._latest, self._earliest, self._work = 0.0, None, 0.0
