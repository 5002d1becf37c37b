"""Errors of the protocol: what was found, what is allowed, what to do.

Two families, as in h11: a `LocalProtocolError` says that the caller misused an object of this package; a
`RemoteProtocolError` says that a peer, or a file from outside, broke a rule. A remote error never changes state:
every check stands before the first assignment. `code` is stable and travels in a refusal; `found` must never hold a
secret.
"""

from __future__ import annotations

from typing import ClassVar


class ProtocolError(Exception):
    """Base of all errors of the protocol.

    Args:
        found: what was seen, in words, without any secret.
        allowed: what would have been accepted.
        remedy: what a person can do about it; may be empty.
    """

    code: ClassVar[str] = "protocol-error"

    def __init__(self, found: str, allowed: str, remedy: str = "") -> None:
        self.found, self.allowed, self.remedy = found, allowed, remedy
        text = f"found {found}; allowed: {allowed}"
        super().__init__(f"{text}; {remedy}" if remedy else text)


class LocalProtocolError(ProtocolError):
    """The caller misused this package."""

    code = "local-misuse"


class AddressRefused(LocalProtocolError):
    """An address that cannot be listened on, or connected to."""

    code = "address"


class NotAccepted(LocalProtocolError):
    """A roster or a charter that this party has not accepted, or whose settings were changed since."""

    code = "not-accepted"


class RemoteProtocolError(ProtocolError):
    """A peer or an outside file broke a rule."""

    code = "remote-error"


class MalformedMessage(RemoteProtocolError):
    """Bytes that are no message: wrong size, type, field or range."""

    code = "malformed"


class UnsupportedVersion(RemoteProtocolError):
    """No protocol version in common, or one that was not negotiated."""

    code = "version"


class UnknownIdentity(RemoteProtocolError):
    """A party that is not in the roster."""

    code = "unknown-identity"


class Revoked(UnknownIdentity):
    """A party that was in the roster, and is revoked, or its old keys."""

    code = "revoked"


class BadSignature(RemoteProtocolError):
    """A signature that does not verify under the roster's key and the expected context."""

    code = "bad-signature"


class RosterRefused(RemoteProtocolError):
    """A roster that is unsigned, signed by another administrator, older than the one known, or inconsistent."""

    code = "roster"


class PolicyViolation(RemoteProtocolError):
    """A plan, or a request, that this client's own policy forbids."""

    code = "policy"


class UnsafePlan(RemoteProtocolError):
    """A plan under which a promise of the protocol fails, whatever the policy says."""

    code = "unsafe-plan"


class UnexpectedMessage(RemoteProtocolError):
    """A message that the state machine does not take in its present state."""

    code = "unexpected"


class HelloNeeded(RemoteProtocolError):
    """A message of a client that this server, perhaps a restarted one, has not heard a Hello of."""

    code = "hello-needed"


class WrongContext(RemoteProtocolError):
    """A message of another plan, epoch or step."""

    code = "wrong-context"


class CohortRefused(RemoteProtocolError):
    """A set of members that is too small, has duplicates or strangers, or leaves this client out."""

    code = "cohort"


class ShareRefused(RemoteProtocolError):
    """An encrypted share that does not open, or an answer with shares of the wrong form."""

    code = "share"


class SecondSurvivorSet(RemoteProtocolError):
    """A second survivor set for a step: answering would give both kinds of share, or two sums."""

    code = "second-survivor-set"


class InconsistentSurvivors(RemoteProtocolError):
    """Too few valid signatures over one survivor set: the server may have told others another set."""

    code = "inconsistent-survivors"


class VectorRefused(RemoteProtocolError):
    """A vector, or a broadcast array, of the wrong size, form or range."""

    code = "vector"


class AggregationFailed(RemoteProtocolError):
    """The epoch cannot go on: too few participants, a sum that cannot be rebuilt, or a device that does nothing."""

    code = "aggregation-failed"


class DeviceFailed(AggregationFailed):
    """A device failed when a vector's masks were taken, so they are used up: it costs its client the epoch."""

    code = "device-failed"


class CharterRefused(RemoteProtocolError):
    """A party whose charter differs: its roster, its settings, or how sums are made."""

    code = "charter"


class WrongHead(RemoteProtocolError):
    """An offer after another head than this client's: one of the two has missed a certificate."""

    code = "head"


class BoundByVote(RemoteProtocolError):
    """Another epoch after a head at which this client has voted: it goes on only with what it voted for."""

    code = "bound"


class AttemptsUsed(RemoteProtocolError):
    """More set-ups and epochs given up after one head than the charter permits."""

    code = "attempts"


class WrongSum(RemoteProtocolError):
    """A published sum that is not the sum of the survivors' inputs: the server, or a member, changed it."""

    code = "wrong-sum"


class CertificateRefused(RemoteProtocolError):
    """Votes that do not verify, or too few of them."""

    code = "certificate"


class CourseDiverged(RemoteProtocolError):
    """A member that stands at another state of the course than the others."""

    code = "diverged"
