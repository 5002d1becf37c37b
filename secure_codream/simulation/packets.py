"""Messages in flight: each is encoded to bytes, carried as a `Packet` from or to one member, and decoded again.

Whoever holds a packet may deliver it late or twice, or leave it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from codream_protocols.messages import ToClient, ToServer, decode_to_client, decode_to_server, encode_message


@dataclass(frozen=True)
class Packet:
    """A message in flight: bytes and frames, from or to one member."""

    member: int
    to_server: bool
    kind: type
    data: bytes
    frames: tuple[bytes, ...] = ()

    @property
    def message(self) -> ToClient | ToServer:
        """The message, decoded."""
        return decode_to_server(self.data) if self.to_server else decode_to_client(self.data)


def packet(member: int, message: ToClient | ToServer, frames: tuple[bytes, ...] = (), *, to_server: bool) -> Packet:
    """Encode a message for the wire."""
    return Packet(member, to_server, type(message), encode_message(message), frames)


def of_kind(packets: Iterable[Packet], kind: type) -> Iterator[Packet]:
    """The packets of one kind, in order."""
    return (item for item in packets if item.kind is kind)
