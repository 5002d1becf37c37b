"""A client's machine that shares public checks, and agreements, with the other virtual clients of its process.

Each client of a deployment checks every member's signature and keys itself, and both members of a pair compute what
they agree on. Where one process plays many members, the second time is the same computation with the same outcome: it
is made once, and counted, so that a report can say how much less was computed than so many machines would compute.
Nothing else is left out. The deployed client never imports this.
"""

from __future__ import annotations

from codream_protocols import keyschedule
from codream_protocols.charter import Plan
from codream_protocols.client import ClientProtocol
from codream_protocols.identity import verify
from codream_protocols.lockstep import LockstepKeys
from codream_protocols.messages import Advertisement
from codream_protocols.resilient import make_keys


class Remembered:
    """What one process has checked and agreed for its virtual clients.

    Attributes:
        checks: signatures and advertised keys that were not checked once more.
        agreements: X25519 agreements that were not computed once more.
    """

    def __init__(self) -> None:
        self.checks = self.agreements = 0
        self._verified: set[bytes] = set()
        self._sound: set[bytes] = set()
        self._distinct: bytes | None = None
        self._agreed: dict[frozenset[bytes], bytes] = {}

    def verify(self, public: bytes, signature: bytes, label: str, *parts: bytes) -> None:
        """As `identity.verify`, once for each signature; a repeated one is counted.

        Raises:
            BadSignature: it does not verify.
        """
        checked = keyschedule.digest("simulated", public, signature, label.encode(), *parts)
        if not self._known(self._verified, checked):
            verify(public, signature, label, *parts)
            self._verified.add(checked)

    def sound(self, item: Advertisement) -> bool:
        """Whether its keys were found to be of full order and of the right form; counted if so."""
        return self._known(self._sound, item.digest)

    def keep_sound(self, item: Advertisement) -> None:
        """Its keys are sound."""
        self._sound.add(item.digest)

    def distinct(self, items: tuple[Advertisement, ...]) -> bool:
        """Whether no key of these occurs twice was found out already; else they are remembered as found so."""
        digest = keyschedule.digest("simulated", *(item.digest for item in items))
        known, self._distinct = digest == self._distinct, digest
        return known

    def agree(self, private: keyschedule.Private, peer_public: bytes) -> bytes:
        """X25519 as `keyschedule.agree`; what one member of a pair has computed, the other takes, once."""
        key = keyschedule.prepared(private) if isinstance(private, bytes) else private
        pair = frozenset((key.public_key().public_bytes_raw(), peer_public))
        agreed = self._agreed.pop(pair, None)
        if agreed is not None:
            self.agreements += 1
            return agreed
        agreed = keyschedule.agree(key, peer_public)
        if len(self._agreed) >= _MOST_KEPT:
            self._agreed.clear()  # most of them are of pairs of which another process plays one
        self._agreed[pair] = agreed
        return agreed

    def _known(self, kept: set[bytes], digest: bytes) -> bool:
        known = digest in kept
        self.checks += known
        return known


_MOST_KEPT = 1 << 20


class VirtualClient(ClientProtocol):
    """The client's machine, but for what its process remembers.

    Args:
        remembered: what the virtual clients of this process share.
        options: as for `ClientProtocol`.
    """

    def __init__(self, remembered: Remembered, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._remembered = remembered

    def _make_keys(self, plan: Plan) -> LockstepKeys:
        return make_keys(plan, self._member, self._random, self._remembered.agree)

    def _verify(self, public: bytes, signature: bytes, label: str, *parts: bytes) -> None:
        self._remembered.verify(public, signature, label, *parts)

    def _check_public_keys(self, plan: Plan, item: Advertisement) -> None:
        if not self._remembered.sound(item):
            super()._check_public_keys(plan, item)
            self._remembered.keep_sound(item)

    def _rule_distinct_keys(self, items: tuple[Advertisement, ...]) -> None:
        if not self._remembered.distinct(items):
            super()._rule_distinct_keys(items)
