"""A lying member in the set-up: it seals garbage for whom it chooses, rightly signed."""

from __future__ import annotations

from typing import Any

from codream_protocols.lockstep import seal_statement
from codream_protocols.messages import MaskedInput, Seal, Seals
from secure_codream.simulation.wire import Federation
from secure_codream.threats.laboratory.adversary import transcript_of


def reseal(federation: Federation, message: Any, sender: int, receiver: int) -> Seals:
    """A lying member's seals: the ciphertext of the one for `receiver` is garbage, and rightly signed."""
    transcript, seals = transcript_of(federation), []
    for seal in message.items:
        if seal.member == receiver:
            garbage = bytes([seal.ciphertext[0] ^ 1]) + seal.ciphertext[1:]
            statement = seal_statement(transcript, sender, receiver, seal.kem, garbage)
            seal = Seal(receiver, seal.kem, garbage, federation.signers[sender].sign("seal", *statement))
        seals.append(seal)
    return Seals(message.plan, tuple(seals))


def set_up_with_liar(federation: Federation, sender: int, receivers: tuple[int, ...]) -> bool:
    """A set-up in which a member seals signed garbage for chosen others; whether it went through."""
    federation.hello()
    federation.drain()
    chosen = federation.server.cohort()
    if not chosen:
        return False
    federation.emit(federation.server.open_epoch(chosen))
    federation.drain(hold=(Seals,))
    for item in [item for item in federation.wire if item.kind is Seals]:
        message = item.message
        if item.member == sender:
            for receiver in set(receivers) & set(chosen):
                message = reseal(federation, message, sender, receiver)
        federation.wire.remove(item)
        federation.emit(federation.server.receive(item.member, message))  # type: ignore[arg-type]
    federation.drain(hold=(MaskedInput,))
    return federation.server.step is not None
