"""The chain: one digest over everything that an epoch's sums came from, and the head: one over all certified epochs.

    chain_0     = H(transcript, start seed, members, state_0)
    chain_(t+1) = H(chain_t, survivors, sum, tag, state_(t+1))
    head'       = H(head, plan, chain_T)

Every mask and every tag key of step t is derived with chain_t: clients who were told different sums, or who stand at
different states, have masks that never cancel, and a step's vector names its chain in clear, so that a member who
stands elsewhere is named instead of spoiling a sum.
"""

from __future__ import annotations

from codream_protocols.course import State, fingerprint
from codream_protocols.keyschedule import digest, numbers


def transcript(plan: bytes, advertisements: list[bytes]) -> bytes:
    """Digest of the plan's digest and of the digests of all advertisements that were shown, ascending."""
    return digest("transcript", plan, *advertisements)


def first_link(transcript_digest: bytes, seed: bytes, members: tuple[int, ...], state: State) -> bytes:
    """chain_0."""
    return digest("chain start", transcript_digest, seed, numbers(*members), fingerprint(state))


def next_link(chain: bytes, survivors: tuple[int, ...], frame: bytes, tag: bytes, state: State) -> bytes:
    """chain_(t+1); `frame` is the packed sum."""
    return digest("chain step", chain, numbers(*survivors), frame, tag, fingerprint(state))


def next_head(head: bytes, plan: bytes, chain: bytes) -> bytes:
    """The head after a certified epoch with chain_T = `chain`."""
    return digest("head", head, plan, chain)


def vote_statement(head: bytes, plan: bytes, chain: bytes) -> tuple[bytes, ...]:
    """What a vote signs, under the label "vote"."""
    return (head, plan, chain)
