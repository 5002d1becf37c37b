"""Who may connect: the transport keys of the roster, asked by ZAP before a byte of ours is read."""

from __future__ import annotations

import zmq
from zmq.utils import z85

from codream_protocols.identity import Roster
from codream_server.events import Events, worth_a_line


class RosterKeys:
    """ZAP's question, which transport keys may connect, answered from the roster."""

    def __init__(self, roster: Roster, events: Events) -> None:
        self._keys = {member.transport_key for member in roster.members}
        self._revoked = {member.transport_key: member.name for member in roster.revoked}
        self._roster, self._numbers = roster, dict[str, int]()
        self._strangers, self._events = 0, events

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether this z85-encoded key is a member's."""
        raw = z85.decode(key)
        if raw in self._keys:
            return True
        self._strangers += 1
        if worth_a_line(self._strangers):
            self._events.say(
                "refused",
                client=self._revoked.get(raw, f"key {raw.hex()[:16]}…"),
                code="revoked" if raw in self._revoked else "unknown-identity",
                by="server",
                count=self._strangers,
            )
        return False

    def member_of(self, message: zmq.Frame) -> int:
        """The number of the member on whose connection this came: by the connection's key, as ZAP let it in."""
        key = str(message.get("User-Id"))
        if key not in self._numbers:
            self._numbers[key] = self._roster.by_transport_key(z85.decode(key))
        return self._numbers[key]
