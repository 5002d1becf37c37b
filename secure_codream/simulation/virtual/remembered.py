"""A client's machine that shares public work, and agreements, with the other virtual clients of its process.

Each client of a deployment checks for itself what everybody is shown, and computes what follows from it: the plan, all
advertisements, who survives and who has signed it, sums, votes. Both members of a pair compute what they agree on.
Where one process plays many members, the second time is the same computation with the same outcome: it is made once,
and counted, and each client that was spared it is charged the seconds that it took. Nothing else is left out. The
deployed client never imports this.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from codream_protocols import keyschedule
from codream_protocols.charter import Plan
from codream_protocols.client import ClientProtocol
from codream_protocols.lockstep import LockstepKeys
from codream_protocols.messages import Advertisement
from codream_protocols.resilient import make_keys
from codream_protocols.tag import TagKey

_T = TypeVar("_T")
_MOST_KEPT = 64  # outcomes; of one message all clients of a process take what it comes to, before the next one comes


class Remembered:
    """What one process has computed for its virtual clients.

    Attributes:
        alike: computations, the same for every member, that were not made once more.
        agreements: X25519 agreements that were not computed once more.
        seconds: of this thread's processor that all of these would have taken.
    """

    def __init__(self) -> None:
        self.alike = self.agreements = 0
        self.seconds = 0.0
        self._outcomes: dict[tuple[object, ...], tuple[tuple[object, ...], Any, float]] = {}
        self._agreed: dict[frozenset[bytes], tuple[bytes, float]] = {}
        self._here: set[bytes] = set()

    def once(self, what: str, on: tuple[object, ...], compute: Callable[[], _T]) -> _T:
        """What was computed before for this, or what is computed now; what raises is not remembered.

        Args:
            what: names it.
            on: what it hangs on: bytes and numbers by their value, all else only if it is the very same object.
            compute: computes it.
        """
        key = (what, *(one if isinstance(one, bytes | int) else id(one) for one in on))
        known = self._outcomes.get(key)
        if known is not None:
            self.alike += 1
            self.seconds += known[2]
            return known[1]  # type: ignore[no-any-return]
        began, spared = time.thread_time(), self.seconds
        found = compute()
        if len(self._outcomes) >= _MOST_KEPT:
            del self._outcomes[next(iter(self._outcomes))]
        self._outcomes[key] = on, found, time.thread_time() - began + self.seconds - spared  # `on` keeps its ids taken
        return found

    def played(self, advertisement: Advertisement) -> None:
        """A client of this process has these keys: the other members' agreements with them may be asked for again."""
        self._here.update(advertisement.agreement_keys)

    def agree(self, private: keyschedule.Private, peer_public: bytes) -> bytes:
        """X25519 as `keyschedule.agree`; what one member of a pair has computed, the other takes, once."""
        if peer_public not in self._here:  # another process plays it, and computes the same
            return keyschedule.agree(private, peer_public)
        key = keyschedule.prepared(private) if isinstance(private, bytes) else private
        pair = frozenset((key.public_key().public_bytes_raw(), peer_public))
        known = self._agreed.pop(pair, None)
        if known is not None:
            self.agreements += 1
            self.seconds += known[1]
            return known[0]
        began = time.thread_time()
        agreed = keyschedule.agree(key, peer_public)
        self._agreed[pair] = agreed, time.thread_time() - began
        return agreed


class VirtualClient(ClientProtocol):
    """The client's machine, but for what its process remembers.

    Args:
        remembered: what the virtual clients of this process share.
        options: as for `ClientProtocol`.
    """

    def __init__(self, remembered: Remembered, **options: object) -> None:
        self._remembered = remembered
        super().__init__(**options)  # type: ignore[arg-type]

    def _make_keys(self, plan: Plan) -> LockstepKeys:
        return make_keys(plan, self._member, self._random, self._remembered.agree)

    def _make_tag_key(self, secret: bytes, length: int) -> TagKey:
        return self._remembered.once("tag key", (secret, length), lambda: _SharedTagKey(secret, length))

    def _alike(self, what: str, on: tuple[object, ...], compute: Callable[[], _T]) -> _T:
        return self._remembered.once(what, on, compute)


class _SharedTagKey(TagKey):
    """A step's tag key, which all members have alike."""

    __slots__ = ()

    def erase(self) -> None:
        """Nothing: another client of this process may still need it."""
