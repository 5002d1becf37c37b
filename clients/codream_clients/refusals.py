"""What a client tells the server of a message that it refuses: what depends on the refusal's code alone."""

from __future__ import annotations

from collections.abc import Mapping

from codream_protocols.messages import EpochRecord, Refusal, ToClient

ALLOWED: Mapping[str, str] = {
    "malformed": "a message of this protocol",
    "policy": "what this client's own policy permits",
    "unsafe-plan": "a plan that keeps the protocol's promises",
    "unexpected": "a message that the present state takes",
    "wrong-context": "a message of the epoch and step in force",
    "cohort": "whole blocks of the charter, this client among them",
    "share": "seals and shares as they were sent",
    "second-survivor-set": "one set of survivors a step",
    "inconsistent-survivors": "enough signatures over one set of survivors",
    "vector": "a sum of this step's form",
    "head": "an epoch after this client's head",
    "bound": "the epoch that this client has voted for",
    "attempts": "a charter that follows this one",
    "wrong-sum": "the sum of the survivors' inputs",
    "certificate": "votes of enough members for the same sums",
    "bad-signature": "the signature of the roster's member",
}


def plan_of(message: ToClient) -> bytes:
    """The digest of the plan that a message is about; empty if it is about none."""
    if isinstance(message, EpochRecord):
        return message.advertisements[0].plan
    return bytes(getattr(message, "plan", b""))


def refusal(code: str, message: str, plan: bytes = b"") -> Refusal:
    """What the server is told of a refused message: constant for its code, and the message's kind and plan."""
    return Refusal(code, message, ALLOWED.get(code, "a message that this client takes"), plan)
