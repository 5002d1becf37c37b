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
    Promise(
        "P1",
        "Inputs",
        "In a step, the server and its colluders learn nothing of honest clients' inputs but at most one sum of them.",
    ),
    Promise(
        "P2",
        "Who",
        "Every sum that can be opened is over whole blocks, each with two honest members or more; no combination "
        "separates them.",
    ),
    Promise(
        "P3",
        "No step twice",
        "A client masks one input for a step, restarts included, and never goes back to a step or to an epoch.",
    ),
    Promise(
        "P4",
        "One view",
        "Inputs of clients who were shown other members, keys, sums or states never meet in a readable sum.",
    ),
    Promise(
        "P5",
        "Members alone",
        "Only members of the signed roster take part, each with its own keys; the server can neither add nor swap one.",
    ),
    Promise(
        "P6",
        "The client's word",
        "A client derives each plan from its own charter, takes none beyond its policy, and begins no more steps "
        "than that allows.",
    ),
    Promise(
        "P7",
        "The wire",
        "Whoever reads, alters, replays or injects on the network learns no content, is not believed and cannot join.",
    ),
    Promise(
        "P8",
        "Refused, unchanged",
        "A malformed, oversized or contradictory message meets a typed error and changes nothing; no refusal "
        "depends on data.",
    ),
    Promise(
        "P9",
        "Colluders",
        "Up to `colluders` clients who tell the server all they hold add only their own inputs to what it learns.",
    ),
    Promise(
        "P10",
        "True",
        "Against the server alone, a sum that a client takes is the sum of what the named members sent, but with "
        "chance 2^-90.",
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
        "With record-level privacy on, all that leaves a client is (epsilon, delta)-private in each of its "
        "records, within its budget.",
    ),
    Promise(
        "P15",
        "Client level",
        "With distributed noise on, each sum is private in each client's whole input, also against `colluders` others.",
    ),
    Promise(
        "P16",
        "What",
        "Nobody chooses where an epoch starts; by stopping epochs nobody shows a client more starts than the charter "
        "has `attempts`.",
    ),
    Promise(
        "P17",
        "Alike",
        "Nothing is learnt, kept or shown as a result without a certificate, and all who learn from an epoch "
        "learn the same.",
    ),
    Promise(
        "P18",
        "Anybody can check",
        "From charter, roster and records anybody recomputes all starts, states and results, and checks who voted"
        " for them.",
    ),
    Promise(
        "P19",
        "Recorded traffic",
        "In lockstep, who records everything and later breaks X25519 or ML-KEM-768, but not both, still learns "
        "sums alone.",
    ),
    Promise(
        "L1",
        "No availability",
        "A malicious server can stop the federation, in lockstep any member too, in some cases until a new "
        "charter is signed.",
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
    Promise(
        "L6",
        "Steered states",
        "A colluder who answers last can choose the sum, and so the next state, within the public bounds.",
    ),
    Promise(
        "L7",
        "Resilient masks rest on X25519",
        "In resilient mode, who records everything and later breaks X25519 alone can open inputs.",
    ),
    Promise("L8", "A record's end", "A record does not show that epochs at its end were cut off."),
)
BY_KEY = {promise.key: promise for promise in PROMISES}
