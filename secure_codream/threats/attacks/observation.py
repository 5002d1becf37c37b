"""Observation: what sums tell that differ by a client, over steps, or because the server arranges it.

Where the survivors of steps differ and the clients' inputs hardly do, the difference of two sums is what those who
were missing sent, and a linear system of many sums is everyone's. So sums are over whole blocks, always: every
combination of them is constant on each block, which has two honest members at least (So et al., AAAI 2023). A charter
may allow other losses; what that gives away is limit L3, and what bounds it then is distributed noise (Kairouz, Liu,
Steinke, ICML 2021): every client adds integer noise before it masks, so that even a server who knows all other inputs
cannot be sure who took part, P15.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from secure_codream.threats.attacks.dropouts import resilient
from secure_codream.threats.attacks.inference import counts_evidence, label_weights, read_counts
from secure_codream.threats.attacks.inversion import dream_updates, dreamers, noise_dreams
from secure_codream.threats.laboratory import adversary
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import recovered
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.measures import advantage, correlation
from secure_codream.threats.laboratory.server_view import Floats, Watched
from secure_codream.threats.laboratory.switches import Switch

MULTIPLIER = 1.0
"""Deviation of the noise over the bound of a client's vector: (epsilon, delta) of about (4.9, 1e-5) for one sum."""

Losses = Literal["blocks", "allow"]

SWITCHES: Mapping[str, Switch] = {
    "client-noise": Switch(
        "Each client adds a share of integer noise before it masks (distributed discrete Gaussian)."
    ),
    "blocks": Switch("Sums are over whole blocks of the charter; in the control, over any three clients or more."),
}


@lru_cache(maxsize=2)
def _dream_updates(seed: int, clients: int) -> Floats:
    """Real dream updates (n, N) of clients with a record of each class, on the same dreams."""
    return dream_updates(dreamers(seed, clients), noise_dreams(seed))


def _epoch(
    laboratory: Laboratory,
    defences: Defences,
    vectors: Floats,
    *,
    noised: bool,
    steps: int = 1,
    losses: Losses | None = None,
) -> Watched:
    return Watched(
        laboratory,
        defences,
        clients=len(vectors),
        length=vectors.shape[1],
        clip=1.0,
        steps=steps,
        norm=float(np.linalg.norm(vectors, axis=1).max()),
        noise_multiplier=MULTIPLIER if noised else 0.0,
        losses=losses,
    )


def _with_noise(noised: bool) -> str:
    return f", with distributed noise of {MULTIPLIER:g} times the sensitivity" if noised else ""


# -- differences ---------------------------------------------


def _difference(
    laboratory: Laboratory,
    defences: Defences,
    vectors: Floats,
    *,
    noised: bool,
    losses: Losses = "allow",
) -> Floats:
    """The sum of a step with everyone, minus that of a step in which the last client dropped out: (N,)."""
    server = _epoch(laboratory, defences, vectors, noised=noised, steps=2, losses=losses)
    everyone = server.step(vectors)
    return everyone - server.step(vectors, lost=[len(vectors) - 1])


class Difference(Attack):
    """Two sums over one state, one of them without a client that dropped out."""

    name = "difference-of-two-sums"
    adversary = "server"
    goal = "Read a client's dream update off two sums at the same dreams, one with it and one without."
    paper = "So et al., AAAI 2023"
    promises = ("P2",)
    defences = ("blocks",)
    clients, success = 6, 0.5

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """With blocks the difference is the whole block's sum, in which the client's update is one of three."""
        vectors = _dream_updates(laboratory.seed, self.clients)
        losses: Losses = "blocks" if defences.stands("blocks") else "allow"
        return _read(_difference(laboratory, defences, vectors, noised=False, losses=losses), vectors[-1:])


NEAR = 0.02  # of the clip


def _read(found: Floats, truth: Floats) -> Evidence:
    """How much of updates (n, N) was read, all of them alike."""
    share = float((np.abs(found - truth) < NEAR).mean())
    whose = "the client's update" if len(truth) == 1 else "the clients' updates"
    return Evidence(
        measure=f"coordinates of {whose} read to within {NEAR:.0%} of the clip, share",
        value=share,
        success=0.5,
        learned=f"{share:.0%} of {whose}",
    )


class NoisedDifference(Attack):
    """The same where losses are allowed, with distributed noise."""

    name = "difference-of-noised-sums"
    adversary = "server"
    goal = "Where losses are allowed, read a client's dream update off two noised sums, one of them without it."
    paper = "Kairouz, Liu, Steinke, ICML 2021"
    promises = ("P15",)
    defences = ("client-noise",)
    clients, success = 6, 0.3

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Noise is made for the smallest set that may be summed; here it is in both sums."""
        return self._run(defences, laboratory, noised=defences.stands("client-noise"))

    def _run(self, defences: Defences, laboratory: Laboratory, *, noised: bool) -> Evidence:
        """The state is the same in both steps, so that the others' updates are: the best case for the server."""
        vectors = _dream_updates(laboratory.seed, self.clients)
        value = correlation(_difference(laboratory, defences, vectors, noised=noised), vectors[-1])
        return Evidence(
            measure="correlation of the difference with the client's dream update",
            value=value,
            success=self.success,
            learned=f"the client's update with a correlation of {value:.3f}{_with_noise(noised)}",
        )


class DifferenceAllowed(NoisedDifference):
    """The same without noise: a limit."""

    name = "difference-where-losses-are-allowed"
    goal = "Where losses are allowed, read a client's dream update off two sums, one with it and one without."
    paper = "So et al., AAAI 2023"
    promises = ("L3",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A limit: the attempt is without distributed noise, the control, where that is named, with it."""
        return self._run(defences, laboratory, noised=not defences.stands("client-noise"))


class LabelCounts(Attack):
    """Two sums of class-aware weights, one client apart."""

    name = "label-counts-of-who-dropped-out"
    adversary = "server"
    goal = "Read a client's label histogram off two sums of weights, one with it and one without."
    paper = "So et al., AAAI 2023"
    promises = ("P2",)
    defences = ("blocks",)
    clients = 6

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Class counts are the same at every state: nothing else need be."""
        losses: Losses = "blocks" if defences.stands("blocks") else "allow"
        return self._run(defences, laboratory, noised=False, losses=losses)

    def _run(self, defences: Defences, laboratory: Laboratory, *, noised: bool, losses: Losses = "allow") -> Evidence:
        weights, counts = label_weights(laboratory, self.clients, class_aware=True)
        found = _difference(laboratory, defences, weights, noised=noised, losses=losses)
        return counts_evidence(read_counts(found), counts[-1], "the client that dropped out")


class NoisedLabelCounts(LabelCounts):
    """The same where losses are allowed, with distributed noise."""

    name = "label-counts-of-noised-sums"
    paper = "Kairouz, Liu, Steinke, ICML 2021"
    promises = ("P15",)
    defences = ("client-noise",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """As the difference of updates."""
        return self._run(defences, laboratory, noised=defences.stands("client-noise"))


class LongObservation(Attack):
    """Many sums over survivors that change, solved for each client."""

    name = "long-observation"
    adversary = "server"
    goal = "Solve the sums of many steps, with another dropout in each, for every client's dream update."
    paper = "So et al., AAAI 2023"
    promises = ("P2",)
    defences = ("blocks",)
    clients, steps, success = 6, 12, 0.3

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """With blocks the solution is the mean of a block, for each of its members."""
        losses: Losses = "blocks" if defences.stands("blocks") else "allow"
        return _read(*self._solved(defences, laboratory, noised=False, losses=losses))

    def _solved(
        self, defences: Defences, laboratory: Laboratory, *, noised: bool, losses: Losses
    ) -> tuple[Floats, Floats]:
        """Everyone's update (n, N), as the sums have it and as it is; one client after the other drops out."""
        vectors = _dream_updates(laboratory.seed, self.clients)
        server = _epoch(laboratory, defences, vectors, noised=noised, steps=self.steps, losses=losses)
        rows, sums = [], []
        for step in range(self.steps):
            sums.append(server.step(vectors, lost=[step % self.clients]))
            rows.append([float(member in server.survivors) for member in range(self.clients)])
        solved = np.linalg.lstsq(np.array(rows), np.stack(sums), rcond=None)[0]
        return np.asarray(solved, dtype=np.float64), vectors


class LongObservationAllowed(LongObservation):
    """The same where losses are allowed, without noise: a limit."""

    name = "long-observation-where-losses-are-allowed"
    promises = ("L3",)
    defences = ("client-noise",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A limit: the attempt is without distributed noise, the control, where that is named, with it."""
        noised = not defences.stands("client-noise")
        solved, vectors = self._solved(defences, laboratory, noised=noised, losses="allow")
        value = float(np.mean([correlation(found, truth) for found, truth in zip(solved, vectors, strict=True)]))
        return Evidence(
            measure="correlation of the solution with the clients' dream updates, mean",
            value=value,
            success=self.success,
            learned=f"every client's update with a correlation of {value:.3f}, from {self.steps} sums of "
            f"{self.clients} clients{_with_noise(noised)}",
        )


class PresenceInSum(Attack):
    """Whether a client took part, for a server who knows everything else."""

    name = "presence-in-a-noised-sum"
    adversary = "server that knows all inputs"
    goal = "Tell whether a sum holds a client's known input or nothing of it."
    paper = "Kairouz, Liu, Steinke, ICML 2021"
    promises = ("P15",)
    defences = ("client-noise",)
    clients, length, tries, confidence = 3, 16, 120, 0.99

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A step a try: the client sends its vector, at the bound, or zeros; the server projects what is unexpected.

        The bar is what the noise promises: a total variation of at most sqrt(rho / 2) (Pinsker), rho as the plan says.
        """
        draws = laboratory.generator(self.name)
        vectors = draws.normal(size=(self.clients, self.length))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        server = _epoch(laboratory, defences, vectors, noised=defences.stands("client-noise"), steps=self.tries)
        present = draws.permutation(np.arange(self.tries) % 2 == 0)
        known = vectors[1:].sum(axis=0)
        right = 0
        for there in present:
            sent = np.concatenate([vectors[:1] * there, vectors[1:]])
            right += bool(((server.step(sent) - known) @ vectors[0] > 0.5) == there)
        value, interval = advantage(right, self.tries, self.confidence)
        rho = _epoch(laboratory, Defences(), vectors, noised=True).rho
        return Evidence(
            measure=f"advantage over guessing whether a client took part, {self.tries} sums, 99 % interval",
            value=value,
            interval=interval,
            success=math.sqrt(rho / 2),
            learned=f"{right / self.tries:.0%} of the guesses are right (a coin: 50 %)",
        )


# -- sums over too few ---------------------------------------------


class ColludersAndOne(Attack):
    """A sum over the victim and two colluders, all others declared lost."""

    name = "one-honest-survivor"
    adversary = "malicious server with two clients"
    goal = "Declare all lost but a client and two colluders, and take the colluders' inputs off the sum."
    paper = "Bonawitz et al., CCS 2017"
    promises = ("P2",)
    defences = ("_rule_enough_survivors", "_rule_whole_blocks")
    survivors: Sequence[int] = (0, 1, 2)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Where losses are allowed, and the charter, which bears two colluders, asks for four survivors."""
        federation = resilient(laboratory, defences, members=8, colluders=2, least_survivors=4, losses="allow").masked()

        def attempt() -> tuple[Floats, Floats]:
            secrets = adversary.rebuild(federation, adversary.agree_and_answer(federation, self.survivors))
            lost = {member: secret for member, secret in secrets.items() if member not in self.survivors}
            total = adversary.open_sum(federation, 0, self.survivors, secrets, lost)
            others = federation.plain_sum(0, self.survivors[1:])
            return np.asarray(total.astype(np.int64) - others, dtype=np.float64), federation.vectors[0, 0]

        return recovered(attempt)


ATTACKS: tuple[Attack, ...] = (
    Difference(),
    LabelCounts(),
    LongObservation(),
    DifferenceAllowed(),
    NoisedDifference(),
    NoisedLabelCounts(),
    LongObservationAllowed(),
    PresenceInSum(),
    ColludersAndOne(),
)
