"""What models, dreams and soft labels tell about records: membership, memorised records, shares of labels.

Membership inference: was this record trained on? LiRA (Carlini et al., S&P 2022) with models of the adversary's own,
trained like the attacked one on records drawn from the same pool; it needs a sharper eye than a threshold on the loss
(Yeom et al., CSF 2018) and finds more. A part of the records are canaries with wrong labels, which a model has to
memorise; the secret sharer's exposure (Carlini et al., USENIX Security 2019) ranks them among records it never saw.

With record-level privacy everything that touches records is DP-SGD (Abadi et al., CCS 2016) on models with group norm,
and all else only processes what came of it. Then an advantage over guessing is at most (e^epsilon - 1 + 2 delta) /
(e^epsilon + 1) (Humphries et al., CSF 2023, from the hypothesis-testing view of Kairouz, Oh, Viswanath, ICML 2015), and
that is the bar: an attack has worked if its interval lies above. What is attacked is a deployment's own: its plan of
the budget, its histogram, its training, as `private_participant` puts them together. The control is the same without
the noise, which one line of that training adds. The epsilon here is far below what a useful model can bear, so that
hardly anything may be learnt and a fault would show.

What the sum over few clients still tells without it is limit L3. A server cannot have clients label its own records any
more: dreams start where nobody chose, and move as the course moves them (P4, P16).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.data.datasets import LabelledImages, load_digits_data
from codream_clients.data.partitions import dirichlet
from codream_clients.learning.distillation import distil, soft_label_share
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.learning.training import predict_logits
from codream_clients.models.zoo import build
from codream_clients.privacy import training as private_training
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.participant import private_participant
from codream_clients.privacy.plan import PlannedCharges, PrivacyPlan, plan_privacy
from codream_clients.privacy.releases import Releases
from codream_clients.privacy.settings import PrivacySettings
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.measures import advantage, bootstrapped, exposure, likelihood_ratios, log_odds
from secure_codream.threats.laboratory.server_view import Watched
from secure_codream.threats.laboratory.switches import Switch

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]
Members = NDArray[np.bool_]

EPSILON, DELTA = 0.3, 1e-3
CLASSES, SIDE = 10, 8
LOGIT_CLIP = 30.0
_CPU = torch.device("cpu")
_EPOCHS = 60

_DP_EPOCHS, _DP_LR, _DP_CLIP = 30, 2.0, 1.0


@contextmanager
def _no_training_noise() -> Iterator[None]:
    """The deployed DP-SGD, all else as it is, with a noise multiplier of 0."""
    train = private_training.private_sgd

    def without(model: nn.Module, data: LabelledImages, *, plan: PrivacyPlan, **options: Any) -> None:
        train(model, data, plan=replace(plan, noise_multiplier=0.0), **options)

    with patch.object(private_training, "private_sgd", without):
        yield


SWITCHES: Mapping[str, Switch] = {
    "training-noise": Switch(
        f"A client's DP-SGD adds the noise that its plan asks for, here for epsilon {EPSILON:g} and delta {DELTA:g}.",
        _no_training_noise,
    ),
    "record-privacy": Switch(f"A client trains by DP-SGD, here with epsilon {EPSILON:g} and delta {DELTA:g}."),
    "label-blind-weights": Switch("Soft labels are plain means of logits; no class counts are sent."),
}


def largest_advantage(epsilon: float, delta: float) -> float:
    """The most that anybody's membership advantage can be under (epsilon, delta)-privacy."""
    return (math.expm1(epsilon) + 2 * delta) / (math.exp(epsilon) + 1)


def largest_exposure(epsilon: float, delta: float, candidates: int) -> float:
    """The most that the mean exposure among `candidates` can be under (epsilon, delta)-privacy, in bits.

    Not trained on, a canary is among the first 2^-t of the candidates with a probability of 2^-t at most; trained on,
    of e^epsilon 2^-t + delta. That, cut at 1, is integrated over t from 0 to log2(candidates).
    """
    return (1 + epsilon) / math.log(2) + delta * math.log2(candidates)


# -- training ---------------------------------------------

_SETTINGS = LearningSettings(
    balanced=False,
    class_aware=False,
    own_weight=0,
    warm_up_epochs=_EPOCHS,
    local_epochs=0,
    weight_decay=0.0,
)
_TEACHING = LearningSettings(distil_epochs=_EPOCHS, distil_lr=0.05, distil_clip=0.0, weight_decay=0.0, temperature=1.0)


def trained(data: LabelledImages, seed: int, *, private: bool) -> Participant:
    """A client after its warm-up, put together and trained as a deployment does it."""
    model = _model(seed)
    if not private:
        client = Participant(_SETTINGS, model, data, None, seed, _CPU)
    else:
        privacy = PrivacySettings(
            epsilon=EPSILON,
            delta=DELTA,
            records=len(data),
            batch_size=len(data) // 2,
            warm_up_epochs=_DP_EPOCHS,
            lr=_DP_LR,
            max_grad_norm=_DP_CLIP,
            accountant="rdp",
        )
        plan = plan_privacy(privacy, records=len(data), rounds=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = private_participant(
                _SETTINGS,
                plan,
                model,
                data,
                None,
                seed,
                _CPU,
                releases=lambda: Releases(PlannedCharges(plan).reserve),
                noise=NoiseSource(seed),  # a laboratory's randomness can be repeated
            )
    client.warm_up()
    return client


def _model(seed: int) -> nn.Module:
    return build("mlp_gn", channels=1, size=SIDE, classes=CLASSES, seed=seed)


def _with_canaries(
    data: LabelledImages, count: int, canaries: int, draws: np.random.Generator
) -> tuple[LabelledImages, LabelledImages]:
    """`count` random images of `data`, the first `canaries` with a wrong label, and the other images, all wrong."""
    order = draws.permutation(len(data))

    def mislabelled(chosen: NDArray[np.int64], wrong: int) -> LabelledImages:
        part = data.subset(chosen)
        labels = part.labels.copy()
        labels[:wrong] = (labels[:wrong] + draws.integers(1, CLASSES, wrong)) % CLASSES
        return LabelledImages(part.images, labels, CLASSES)

    return mislabelled(order[:count], canaries), mislabelled(order[count:], len(data) - count)


def _odds(logits: Logits, labels: NDArray[np.int64]) -> Floats:
    """Log odds of the labels (N,) under the softmax of logits (N, K)."""
    probabilities = torch.softmax(torch.from_numpy(np.asarray(logits, dtype=np.float64)), dim=1).numpy()
    return log_odds(probabilities[np.arange(len(labels)), labels])


def _unbounded_odds(logits: Logits, labels: NDArray[np.int64]) -> Floats:
    """The same without any bound: what has learnt nothing may be very sure, and ranks must not tie."""
    values = np.asarray(logits, dtype=np.float64)
    own = np.arange(len(labels)), labels
    rest = values.copy()
    rest[own] = -np.inf
    return np.asarray(values[own] - np.logaddexp.reduce(rest, axis=1))


def _inferred(scores: Floats, members: Members, *, success: float, learned: str, what: str) -> Evidence:
    """Evidence of a membership inference by LiRA: each row of scores and members (models, records) in turn."""
    ratios = np.stack([likelihood_ratios(scores, members, model) for model in range(len(scores))])
    right = (ratios > 0) == members
    value, interval = advantage(int(right.sum()), right.size)
    return Evidence(
        measure=f"advantage over guessing who is a member, {what}, 95 % interval",
        value=value,
        interval=interval,
        success=success,
        learned=f"{learned}: {right.mean():.1%} of {right.size:,} guesses are right (a coin: 50 %)",
    )


# -- one client's model ---------------------------------------------


@dataclass(frozen=True, eq=False)
class _Models:
    """Models, each trained on a random half of the same records.

    `logits` (models, records, K) are theirs on the records, of which the first `canaries` have wrong labels; `unseen`
    those on images with wrong labels that none has seen, (models, N, K).
    """

    records: LabelledImages
    members: Members
    logits: Logits
    canaries: int
    others: LabelledImages
    unseen: Logits


_RECORDS, _CANARIES, _MODELS, _QUICK_MODELS = 200, 20, 16, 8


def _count(laboratory: Laboratory) -> int:
    return _QUICK_MODELS if laboratory.quick else _MODELS


@lru_cache(maxsize=4)
def _models(seed: int, count: int, private: bool, noised: bool = True) -> _Models:
    """`noised` only keeps results with and without the switch apart: it is the switch that takes noise away."""
    draws = np.random.default_rng([seed, _RECORDS])
    train, _ = load_digits_data(seed)
    records, others = _with_canaries(train, _RECORDS, _CANARIES, draws)
    members = _halves(draws, count, _RECORDS)
    logits, unseen = [], []
    for number, inside in enumerate(members):
        client = trained(records.subset(np.flatnonzero(inside)), 1000 * seed + number, private=private)
        logits.append(predict_logits(client.model, records.images, _CPU))
        unseen.append(predict_logits(client.model, others.images, _CPU))
    return _Models(records, members, np.stack(logits), _CANARIES, others, np.stack(unseen))


def _halves(draws: np.random.Generator, rows: int, records: int) -> Members:
    """Random halves of the records, two by two complementary, so that each record is in half of the rows."""
    halves = [draws.permutation(records) < records // 2 for _ in range(rows // 2)]
    return np.stack([part for half in halves for part in (half, ~half)])


class MembershipInModel(Attack):
    """LiRA on a client's model."""

    name = "membership-inference-on-a-model"
    adversary = "whoever gets a client's model"
    goal = "Tell whether a record was trained on."
    paper = "Carlini et al., S&P 2022; Yeom et al., CSF 2018"
    promises = ("P14",)
    defences = ("training-noise",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each model is attacked with the others as shadows."""
        found = _models(laboratory.seed, _count(laboratory), True, defences.stands("training-noise"))
        scores = np.stack([_odds(logits, found.records.labels) for logits in found.logits])
        return _inferred(
            scores,
            found.members,
            success=largest_advantage(EPSILON, DELTA),
            learned="which records a model was trained on",
            what=f"{len(found.members)} models of {_RECORDS // 2} records",
        )


class MemorisedCanaries(Attack):
    """Exposure of mislabelled records in a client's model."""

    name = "memorised-canaries"
    adversary = "whoever gets a client's model"
    goal = "Find a rare record again that the model has learnt by heart."
    paper = "Carlini et al., USENIX Security 2019"
    promises = ("P14",)
    defences = ("training-noise",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Every canary is ranked by loss among images whose labels are as wrong, but which no model has seen."""
        found = _models(laboratory.seed, _count(laboratory), True, defences.stands("training-noise"))
        exposures = []
        for inside, logits, unseen in zip(found.members, found.logits, found.unseen, strict=True):
            own = -_unbounded_odds(logits, found.records.labels)[: found.canaries]
            others = -_unbounded_odds(unseen, found.others.labels)
            exposures.append(np.mean([exposure(loss, others) for loss in own[inside[: found.canaries]]]))
        value, candidates = float(np.mean(exposures)), len(found.others) + 1
        return Evidence(
            measure=f"mean exposure of a mislabelled record among {candidates}, bits, 95 % interval",
            value=value,
            interval=bootstrapped(np.array(exposures), laboratory.seed),
            success=largest_exposure(EPSILON, DELTA, candidates),
            learned=f"a canary ranks among the first {candidates * 2**-value:.0f} of {candidates} suspects, which are "
            f"{value:.2f} bits (guessing: {1 / math.log(2):.2f}, certainty: {math.log2(candidates):.1f})",
        )


class CraftedDreams(Attack):
    """Dreams that are records, as a rule of the charter's own could start them, and one client's logits on them."""

    name = "records-for-dreams"
    adversary = "malicious server with a malicious administrator"
    goal = "With a start rule of suspected records, read off one client's soft labels which of them it has."
    paper = "Carlini et al., S&P 2022"
    promises = ("P1",)
    defences = ("masks",)
    clients, success = 4, 0.15

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """The dreams are the suspected records; each client's frame of the soft labels is read, then LiRA."""
        found = _models(laboratory.seed, _count(laboratory), False)
        labels = found.records.labels
        shadows = np.stack([_odds(logits, labels) for logits in found.logits])
        right = 0
        for first in range(0, len(found.members), self.clients):
            shares = [
                soft_label_share(logits, np.ones(CLASSES, dtype=np.int64), CLASSES, False, 1)[0]
                for logits in found.logits[first : first + self.clients]
            ]
            vectors = np.stack([share.reshape(-1) for share in shares])
            server = Watched(laboratory, defences, clients=self.clients, length=vectors.shape[1], clip=LOGIT_CLIP)
            server.step(vectors)
            for member in range(self.clients):
                scores = shadows.copy()
                scores[first + member] = _odds(server.read(member).reshape(-1, CLASSES).astype(np.float32), labels)
                ratios = likelihood_ratios(scores, found.members, first + member)
                right += int(((ratios > 0) == found.members[first + member]).sum())
        value, interval = advantage(right, found.members.size)
        return Evidence(
            measure=f"advantage over guessing who is a member, {len(found.members)} clients' frames, 95 % interval",
            value=value,
            interval=interval,
            success=self.success,
            learned=f"{right / found.members.size:.1%} of {found.members.size:,} guesses about one client's "
            "records are right (a coin: 50 %)",
        )


# -- federations ---------------------------------------------


@dataclass(frozen=True, eq=False)
class _Federations:
    """Federations of few clients, each on a random half of the same records.

    `dreams` (federations, B, 1, 8, 8) with `labels` (federations, B, K), their soft labels; `crafted` (federations,
    records, K) are the soft labels of the records themselves, as if dreams had started there.
    """

    records: LabelledImages
    members: Members
    dreams: Logits
    labels: Logits
    crafted: Logits


_FEDERATIONS, _CLIENTS, _EACH, _BATCH, _STEPS = 12, 3, 20, 200, 5
_POOL = 2 * _CLIENTS * _EACH


@lru_cache(maxsize=4)
def _federations(seed: int, private: bool, noised: bool = True) -> _Federations:
    """Train, dream and label through real machines, as a server sees it."""
    draws = np.random.default_rng([seed, _POOL])
    train, _ = load_digits_data(seed)
    records, _ = _with_canaries(train, _POOL, _POOL // 4, draws)
    members = _halves(draws, _FEDERATIONS, _POOL)
    laboratory = Laboratory(seed)
    found = []
    for number, inside in enumerate(members):
        parts = np.split(draws.permutation(np.flatnonzero(inside)), _CLIENTS)
        clients = [
            trained(records.subset(part), 1000 * seed + _CLIENTS * number + place, private=private)
            for place, part in enumerate(parts)
        ]
        dreams = np.random.default_rng([seed, _BATCH]).standard_normal((_BATCH, 1, SIDE, SIDE), dtype=np.float32)
        server = Watched(laboratory, Defences(), clients=_CLIENTS, length=dreams.size, clip=1.0, steps=_STEPS)
        for _ in range(_STEPS):
            updates = np.stack([client.dream_update(dreams).delta.reshape(-1) for client in clients])
            dreams = dreams + (server.step(updates) / _CLIENTS).astype(np.float32).reshape(dreams.shape)
        found.append((dreams, _labelled(laboratory, clients, dreams), _labelled(laboratory, clients, records.images)))
    dreams, labels, crafted = (np.stack(part) for part in zip(*found, strict=True))
    return _Federations(records, members, dreams, labels, crafted)


def _labelled(laboratory: Laboratory, clients: Sequence[Participant], dreams: Logits) -> Logits:
    """The soft labels (B, K) that the server gets for dreams, real ones or its own."""
    numerators = np.stack([client.soft_labels(dreams).numerators.reshape(-1) for client in clients])
    server = Watched(laboratory, Defences(), clients=len(clients), length=numerators.shape[1], clip=LOGIT_CLIP)
    return (server.step(numerators) / len(clients)).astype(np.float32).reshape(len(dreams), CLASSES)


def _nearby(found: _Federations, federation: int) -> Floats:
    """How likely the dreams around each record make its label: log odds, from dreams and soft labels alone.

    A mean of soft labels, weighed by a Gaussian of the distance (Nadaraya and Watson, 1964).
    """
    images = found.records.images.reshape(_POOL, 1, -1)
    distances = ((images - found.dreams[federation].reshape(1, _BATCH, -1)) ** 2).sum(axis=2)
    weights = torch.softmax(torch.from_numpy(-8 * distances / np.median(distances)), dim=1).numpy()
    soft = torch.softmax(torch.from_numpy(found.labels[federation]), dim=1).numpy()
    return log_odds((weights @ soft)[np.arange(_POOL), found.records.labels])


def _student(found: _Federations, federation: int, seed: int) -> Floats:
    """Log odds of the records' labels under a student that was taught by dreams alone."""
    student = _model(seed)
    distil(
        student,
        [(found.dreams[federation], found.labels[federation])],
        _TEACHING,
        seed=seed,
        device=_CPU,
    )
    return _odds(predict_logits(student, found.records.images, _CPU), found.records.labels)


_WHAT = f"{_FEDERATIONS} federations of {_CLIENTS} clients with {_EACH} records"


def _inferred_under_privacy(
    laboratory: Laboratory, defences: Defences, score: Callable[[_Federations, int], Floats], learned: str
) -> Evidence:
    """Evidence of LiRA on federations with record-level privacy; `score` gives the log odds of one's records."""
    found = _federations(laboratory.seed, True, defences.stands("training-noise"))
    return _inferred(
        np.stack([score(found, number) for number in range(_FEDERATIONS)]),
        found.members,
        success=largest_advantage(EPSILON, DELTA),
        learned=learned,
        what=_WHAT,
    )


class _MembershipInFederation(Attack):
    """LiRA on what a federation gives away."""

    goal = "Tell whether a record was with any client."
    paper = "Carlini et al., S&P 2022"
    promises = ("P14",)
    defences = ("training-noise",)
    quick = False


class MembershipInDreams(_MembershipInFederation):
    """LiRA on finished dreams and their soft labels."""

    name = "membership-inference-on-dreams"
    adversary = "whoever gets the FedDream dataset"

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """The soft labels of the dreams near a record, against those of other federations."""
        learned = "which records dreams with soft labels stem from"
        return _inferred_under_privacy(laboratory, defences, _nearby, learned)


class MembershipInStudent(_MembershipInFederation):
    """LiRA on the student of dreams alone."""

    name = "membership-inference-on-a-student"
    adversary = "whoever gets a model taught by dreams alone"

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """One student a federation, all from the same initial weights."""
        score, learned = partial(_student, seed=laboratory.seed), "which records the teachers of a student's dreams had"
        return _inferred_under_privacy(laboratory, defences, score, learned)


class CraftedDreamsSum(Attack):
    """Dreams that are records, and the sum of the logits on them."""

    name = "records-for-dreams-of-a-sum"
    adversary = "malicious administrator"
    goal = "With a start rule of suspected records, read off everybody's soft labels whether any client has them."
    paper = "Carlini et al., S&P 2022"
    promises = ("L3",)
    defences = ("record-privacy",)
    quick = False
    success = 0.15

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A limit: the attempt is without record-level privacy, the control, where that is named, with it."""
        found = _federations(laboratory.seed, not defences.stands("record-privacy"))
        return _inferred(
            np.stack([_odds(labels, found.records.labels) for labels in found.crafted]),
            found.members,
            success=self.success,
            learned="from sums alone, which records the clients have",
            what=_WHAT,
        )


# -- shares of labels ---------------------------------------------

_MAX_COUNT, _PRIOR = 32, 0.05


def label_weights(laboratory: Laboratory, clients: int, class_aware: bool) -> tuple[Floats, NDArray[np.int64]]:
    """The denominators (n, K) that clients with skewed labels send, and their class counts (n, K), cut alike."""
    train, _ = load_digits_data(laboratory.seed)
    parts = dirichlet(train.labels, clients, 50, 0.5, laboratory.seed)
    counts = np.stack([train.subset(part).class_counts for part in parts])
    logits = np.zeros((1, CLASSES), dtype=np.float32)  # what the dreams are does not matter here
    shares = [soft_label_share(logits, count, CLASSES, class_aware, _MAX_COUNT, _PRIOR) for count in counts]
    return np.stack([denominators for _, denominators in shares]).astype(np.float64), np.minimum(counts, _MAX_COUNT)


def read_counts(weights: Floats, clients: int = 1) -> NDArray[np.int64]:
    """Class counts (K,) from the (sum of) class-aware weights (K,) of as many clients, none above the largest count."""
    return np.rint(weights * (_MAX_COUNT + _PRIOR) - clients * _PRIOR).astype(np.int64)


def counts_evidence(found: NDArray[np.int64], truth: NDArray[np.int64], whose: str) -> Evidence:
    """How many class counts were read exactly, of one client (K,) or several (n, K)."""
    share = float((found == truth).mean())
    return Evidence(
        measure=f"class counts of {whose} read exactly, share",
        value=share,
        success=0.5,
        learned=f"{share:.0%} of the class counts of {whose} exactly",
    )


class LabelShares(Attack):
    """One client's weights of class-aware soft labels."""

    name = "label-shares-of-a-client"
    adversary = "malicious server"
    goal = "Read a client's label histogram off the weights of its soft labels."
    promises = ("P1",)
    defences = ("masks",)
    clients = 5

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each client's frame in turn."""
        weights, counts = label_weights(laboratory, self.clients, class_aware=True)
        server = Watched(laboratory, defences, clients=self.clients, length=CLASSES, clip=1.0)
        server.step(weights)
        found = np.stack([read_counts(server.read(member)) for member in range(self.clients)])
        return counts_evidence(found, counts, "each client")


class LabelTotals(Attack):
    """The sum of the weights of class-aware soft labels."""

    name = "label-totals-of-a-sum"
    adversary = "server"
    goal = "Read off the sum how many images of each class all clients have together."
    promises = ("L3",)
    defences = ("label-blind-weights",)
    clients = 5

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A limit: the attempt is with class-aware weights, the control, where that is named, with plain means."""
        weights, counts = label_weights(laboratory, self.clients, defences.stands("label-blind-weights"))
        server = Watched(laboratory, defences, clients=self.clients, length=CLASSES, clip=1.0)
        found = read_counts(server.step(weights), self.clients)
        return counts_evidence(found, counts.sum(axis=0), "all clients together")


ATTACKS: tuple[Attack, ...] = (
    MembershipInModel(),
    MemorisedCanaries(),
    CraftedDreams(),
    LabelShares(),
    LabelTotals(),
    MembershipInDreams(),
    MembershipInStudent(),
    CraftedDreamsSum(),
)
