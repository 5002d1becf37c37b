"""What the protocol promises, numbered, and what it does not. `docs/protocol.md` argues each; attacks name them.

A test holds this list, the document and the attacks together: no promise without an attack, no attack without one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """One numbered sentence; `P..` is kept, `L..` is a limit that is stated so that nobody relies on its opposite."""

    key: str
    title: str
    text: str

    @property
    def is_limit(self) -> bool:
        """Whether this is something that is not promised."""
        return self.key.startswith("L")


PROMISES = (
    Promise("P1", "One sum", "In a step the server can rebuild at most one sum of honest clients' inputs."),
    Promise(
        "P2",
        "Enough in it",
        "That sum is over at least `least_survivors` members, colluders counted, of whom at least two are honest.",
    ),
    Promise(
        "P3",
        "No step twice",
        "A running client masks one input for a step, and never goes back to a step or to an epoch of a session.",
    ),
    Promise(
        "P4",
        "One view",
        "Inputs of clients who were shown different members, keys or public states never meet in a readable sum.",
    ),
    Promise(
        "P5",
        "Members alone",
        "Only members of the signed roster take part, each with its own keys; the server can neither add nor swap one.",
    ),
    Promise(
        "P6",
        "The client's word",
        "A client takes no plan beyond its own policy, and starts no more steps than the policy allows in all.",
    ),
    Promise(
        "P7",
        "The wire",
        "Whoever reads, alters, replays or injects on the network learns no content, is not believed and cannot join.",
    ),
    Promise(
        "P8",
        "Refused, unchanged",
        "A malformed, oversized or contradictory message meets a typed error and changes nothing; the others go on.",
    ),
    Promise(
        "P9",
        "Colluders",
        "Up to `colluders` clients who tell the server all they hold add only their own inputs to what it learns.",
    ),
    Promise(
        "P10",
        "A true sum",
        "A sum that is rebuilt is the sum of what the survivors sent, or the step fails; wrong answers are noticed.",
    ),
    Promise(
        "P11",
        "The past is gone",
        "Who takes a client over after a step finds nothing from which that step's masks, or earlier ones, follow.",
    ),
    Promise(
        "P12",
        "Fresh and uniform",
        "No mask stream, no nonce under one key and no share polynomial is used twice, and masked bytes look uniform.",
    ),
    Promise(
        "P13",
        "Secrets stay in",
        "No secret is in a log, an error, a repr or a report, and comparing secrets does not tell where they differ.",
    ),
    Promise(
        "P14",
        "Record level",
        "With record-level privacy on, all that leaves a client is (epsilon, delta)-private in each of its records, "
        "within its budget.",
    ),
    Promise(
        "P15",
        "Client level",
        "With distributed noise on, each sum is private in each client's whole input, also against `colluders` others.",
    ),
    Promise(
        "L1",
        "No availability",
        "A malicious server, or a client that deals wrong shares of its own secrets, can stop the federation.",
    ),
    Promise(
        "L2",
        "No honest values",
        "A malicious client can send any ring elements and so shift the sum, even beyond what its clip would allow.",
    ),
    Promise(
        "L3",
        "No secrecy of sums",
        "Without differential privacy the sums themselves, and their differences over epochs, may tell something.",
    ),
    Promise("L4", "No more than c", "More than `colluders` colluding clients can open other clients' inputs."),
    Promise(
        "L5",
        "No secrecy after a seizure",
        "Who holds a running client's memory has its current step, the keys of later ones, its data and its identity.",
    ),
)
BY_KEY = {promise.key: promise for promise in PROMISES}
