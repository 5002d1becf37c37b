"""Observation: what sums tell that differ by a client, over steps, over epochs, or because the server arranges it.

A step opens one sum, and no client takes part in a step twice. But where cohorts change between steps and the clients'
inputs hardly do, the difference of two sums is one client's input, and a linear system of many sums is everyone's:
limit L3. What bounds that is distributed noise (Kairouz, Liu, Steinke, ICML 2021): every client adds integer noise
before it masks, so that even a server who knows all other inputs cannot be sure who took part, P15.

Sums over so few that a colluder can finish the subtraction are refused by the clients themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codream_protocols.errors import LocalProtocolError
from codream_protocols.plan import Policy
from codream_protocols.tasks import UPDATE
from secure_codream.threats import adversary
from secure_codream.threats.attack import Defences, Evidence
from secure_codream.threats.evidence import recovered
from secure_codream.threats.inversion import dream_updates, dreamers, noise_dreams
from secure_codream.threats.laboratory import Laboratory
from secure_codream.threats.learning import counts_evidence, label_weights, read_counts
from secure_codream.threats.measures import advantage, correlation
from secure_codream.threats.server_view import Floats, Watched
from secure_codream.threats.switches import Switch

MULTIPLIER = 1.0
"""Deviation of the noise over the bound of a client's vector: (epsilon, delta) of about (4.9, 1e-5) for one sum."""

SWITCHES: Mapping[str, Switch] = {
    "client-noise": Switch(
        "Each client adds a share of integer noise before it masks (distributed discrete Gaussian)."
    ),
}


def _dream_updates(seed: int, clients: int) -> Floats:
    """Real dream updates (n, N) of clients with a record of each class, on the same dreams."""
    return dream_updates(dreamers(seed, clients), noise_dreams(seed))


def _epoch(laboratory: Laboratory, defences: Defences, vectors: Floats, *, noised: bool, steps: int = 1) -> Watched:
    return Watched(
        laboratory,
        defences,
        clients=len(vectors),
        length=vectors.shape[1],
        clip=1.0,
        steps=steps,
        norm=float(np.linalg.norm(vectors, axis=1).max()),
        noise_multiplier=MULTIPLIER if noised else 0.0,
    )


def _with_noise(noised: bool) -> str:
    return f", with distributed noise of {MULTIPLIER:g} times the sensitivity" if noised else ""


# -- differences ---------------------------------------------


def _difference(laboratory: Laboratory, defences: Defences, vectors: Floats, *, noised: bool) -> Floats:
    """The sum of an epoch with everyone, minus that of an epoch without the last client: (N,)."""
    with_it = _epoch(laboratory, defences, vectors, noised=noised).step(vectors)
    rest = vectors[:-1]
    return with_it - _epoch(laboratory, defences, rest, noised=noised).step(rest)


class NoisedDifference:
    """Two sums of two epochs, one client apart, with distributed noise in both."""

    name = "difference-over-noised-epochs"
    adversary = "server"
    goal = "Read a client's dream update off two sums, one with it and one without."
    paper = "Kairouz, Liu, Steinke, ICML 2021"
    promises: tuple[str, ...] = ("P15",)
    defences = ("client-noise",)
    quick = True
    clients, success = 6, 0.3

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """The state is the same in both epochs, so that the others' updates are: the best case for the server."""
        return self._run(defences, laboratory, noised=defences.stands("client-noise"))

    def _run(self, defences: Defences, laboratory: Laboratory, *, noised: bool) -> Evidence:
        vectors = _dream_updates(laboratory.seed, self.clients)
        found = _difference(laboratory, defences, vectors, noised=noised)
        value = correlation(found, vectors[-1])
        return Evidence(
            measure="correlation of the difference with the client's dream update",
            value=value,
            success=self.success,
            learned=f"the client's update with a correlation of {value:.3f}{_with_noise(noised)}",
        )


class Difference(NoisedDifference):
    """The same without noise: a limit."""

    name = "difference-over-epochs"
    promises = ("L3",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A limit: the attempt is without distributed noise, the control, where that is named, with it."""
        return self._run(defences, laboratory, noised=not defences.stands("client-noise"))


class LabelCountsOverEpochs:
    """Two sums of class-aware weights, one client apart."""

    name = "label-counts-over-noised-epochs"
    adversary = "server"
    goal = "Read a client's label histogram off two sums of weights, one with it and one without."
    paper = ""
    promises = ("P15",)
    defences = ("client-noise",)
    quick = True
    clients = 6

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Class counts are the same in every epoch: nothing else need be."""
        weights, counts = label_weights(laboratory, self.clients, class_aware=True)
        noised = defences.stands("client-noise")
        found = _difference(laboratory, defences, weights, noised=noised)
        return counts_evidence(read_counts(found), counts[-1], "the client that came and went")


class LongObservation:
    """Many sums over survivors that change, solved for each client."""

    name = "long-observation"
    adversary = "server"
    goal = "Solve the sums of many steps, with other dropouts in each, for every client's dream update."
    paper = ""
    promises = ("L3",)
    defences = ("client-noise",)
    quick = True
    clients, steps, dropouts, success = 8, 12, 2, 0.3

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A limit: the attempt is without distributed noise, the control, where that is named, with it."""
        noised = not defences.stands("client-noise")
        vectors = _dream_updates(laboratory.seed, self.clients)
        server = _epoch(laboratory, defences, vectors, noised=noised, steps=self.steps)
        present, sums = self._observe(server, vectors, laboratory.generator(self.name))
        solved = np.linalg.lstsq(present, sums, rcond=None)[0]
        value = float(np.mean([correlation(found, truth) for found, truth in zip(solved, vectors, strict=True)]))
        return Evidence(
            measure="correlation of the solution with the clients' dream updates, mean",
            value=value,
            success=self.success,
            learned=f"every client's update with a correlation of {value:.3f}, from {self.steps} sums of "
            f"{self.clients} clients{_with_noise(noised)}",
        )

    def _observe(
        self, server: Watched, vectors: Floats, draws: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Who survived (T, n), and the sums (T, N): a client drops out in the first steps, then any two."""
        rows, sums = [], []
        for step in range(self.steps):
            lost = [step] if step < self.clients else draws.choice(self.clients, self.dropouts, replace=False).tolist()
            rows.append([float(member not in lost) for member in range(self.clients)])
            sums.append(server.step(vectors, lost))
        return np.array(rows), np.stack(sums)


class PresenceInSum:
    """Whether a client took part, for a server who knows everything else."""

    name = "presence-in-a-noised-sum"
    adversary = "server that knows all inputs"
    goal = "Tell whether a sum holds a client's known input or nothing of it."
    paper = "Kairouz, Liu, Steinke, ICML 2021"
    promises = ("P15",)
    defences = ("client-noise",)
    quick = True
    clients, length, tries, confidence = 3, 16, 200, 0.99

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


class CohortOfTwo:
    """An epoch of the victim and a colluder alone."""

    name = "cohort-of-two"
    adversary = "malicious server with a client"
    goal = "Invite a client together with a colluder only, and take the colluder's input off the sum."
    paper = ""
    promises = ("P2", "P6")
    defences = ("_rule_policy", "cohort-check")
    quick = True

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """The plan itself is a sound one for two honest clients; the victim's policy asks for three."""
        federation = laboratory.federation(
            defences,
            members=4,
            cohort=(0, 1),
            threshold=2,
            colluders=0,
            least_survivors=2,
            modulus_bits=None,
            policy=Policy(least_cohort=3, least_survivors=2, colluders=0, tasks={UPDATE: 1.0}),
        )

        def attempt() -> tuple[Floats, Floats]:
            ready = federation.set_up()
            if federation.refusals:
                raise federation.refusals[0][1]
            reveal = federation.step() if ready else None
            if reveal is None:
                raise LocalProtocolError("an epoch that came to no sum", "one")
            victim, colluder = (federation.vectors[0, member] for member in (0, 1))
            return reveal.total.astype(np.int64) - colluder, victim

        return recovered(attempt)


class ColludersAndOne:
    """A sum over the victim and two colluders, all others declared lost."""

    name = "one-honest-survivor"
    adversary = "malicious server with two clients"
    goal = "Declare all lost but a client and two colluders, and take the colluders' inputs off the sum."
    paper = "Bonawitz et al., CCS 2017"
    promises = ("P2",)
    defences = ("_rule_enough_survivors",)
    quick = True
    survivors: Sequence[int] = (0, 1, 2)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Three shares would open it; the plan asks for four survivors."""
        federation = laboratory.federation(
            defences, members=5, threshold=3, colluders=0, least_survivors=4, policy=None
        ).masked()

        def attempt() -> tuple[Floats, Floats]:
            secrets = adversary.rebuild(federation, adversary.agree_and_answer(federation, self.survivors))
            lost = {member: secret for member, secret in secrets.items() if member not in self.survivors}
            total = adversary.open_sum(federation, 0, self.survivors, secrets, lost)
            others = federation.plain_sum(0, self.survivors[1:])
            return total.astype(np.int64) - others, federation.vectors[0, 0]

        return recovered(attempt)


ATTACKS: tuple[Any, ...] = (
    Difference(),
    NoisedDifference(),
    LabelCountsOverEpochs(),
    LongObservation(),
    PresenceInSum(),
    CohortOfTwo(),
    ColludersAndOne(),
)
