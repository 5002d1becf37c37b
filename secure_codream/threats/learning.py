"""What models, dreams and soft labels tell about records: membership, memorised records, shares of labels.

Membership inference: was this record trained on? LiRA (Carlini et al., S&P 2022) with models of the adversary's own,
trained like the attacked one on records drawn from the same pool; it needs a sharper eye than a threshold on the loss
(Yeom et al., CSF 2018) and finds more. A part of the records are canaries with wrong labels, which a model has to
memorise; the secret sharer's exposure (Carlini et al., USENIX Security 2019) ranks them among records it never saw.

With record-level privacy everything that touches records is DP-SGD (Abadi et al., CCS 2016) through Opacus, on models
with group norm, and all else only processes what came of it. Then an advantage over guessing is at most
(e^epsilon - 1 + 2 delta) / (e^epsilon + 1) (Humphries et al., CSF 2023, from the hypothesis-testing view of Kairouz,
Oh, Viswanath, ICML 2015), and that is the bar: an attack has worked if its interval lies above. The epsilon here is far
below what a useful model can bear, so that hardly anything may be learnt and a fault would show.

What the sum over few clients still tells without it, on dreams and all the more on records sent as dreams, is limit L3.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from codream_clients.acquisition import distil, soft_label_share
from codream_clients.datasets import LabelledImages, load_digits_data
from codream_clients.models import build
from codream_clients.participant import LearningSettings, Participant
from codream_clients.partitions import dirichlet
from codream_clients.training import predict_logits, train_local
from secure_codream.threats.attack import Defences, Evidence
from secure_codream.threats.laboratory import Laboratory
from secure_codream.threats.measures import advantage, bootstrapped, exposure, likelihood_ratios, log_odds
from secure_codream.threats.server_view import Watched
from secure_codream.threats.switches import Switch

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]
Members = NDArray[np.bool_]

EPSILON, DELTA = 0.3, 1e-3
CLASSES, SIDE = 10, 8
LOGIT_CLIP = 30.0
_CPU = torch.device("cpu")
_RATE, _DP_STEPS, _DP_LR, _DP_CLIP = 0.5, 20, 0.2, 1.0
_EPOCHS = 60

SWITCHES: Mapping[str, Switch] = {
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


@lru_cache(maxsize=1)
def _noise_multiplier() -> float:
    from opacus.accountants.utils import get_noise_multiplier

    multiplier = get_noise_multiplier(
        target_epsilon=EPSILON, target_delta=DELTA, sample_rate=_RATE, steps=_DP_STEPS, accountant="rdp"
    )
    return float(multiplier)


def _train_privately(model: nn.Module, data: LabelledImages, epochs: int, seed: int) -> None:
    """DP-SGD with Poisson sampling for a fixed number of steps, whatever `epochs` says; in place."""
    from opacus import PrivacyEngine

    model.train()
    records = TensorDataset(torch.from_numpy(data.images), torch.from_numpy(data.labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus points at its `secure_mode`, which a repeatable experiment cannot have
        private, optimiser, loader = PrivacyEngine(accountant="rdp").make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=_DP_LR),
            data_loader=DataLoader(
                records, batch_size=round(_RATE * len(data)), generator=torch.Generator().manual_seed(seed)
            ),
            noise_multiplier=_noise_multiplier(),
            max_grad_norm=_DP_CLIP,
            noise_generator=torch.Generator().manual_seed(seed + 1),
        )
        for _ in range(round(_DP_STEPS * _RATE)):
            for images, labels in loader:
                optimiser.zero_grad()
                torch.autograd.backward(functional.cross_entropy(private(images), labels, reduction="mean"))
                optimiser.step()
    private.remove_hooks()
    model.eval()


def _train_plainly(model: nn.Module, data: LabelledImages, epochs: int, seed: int) -> None:
    train_local(
        model,
        data,
        epochs=epochs,
        batch_size=32,
        lr=0.02,
        momentum=0.9,
        weight_decay=0.0,
        balanced=False,
        seed=seed,
        device=_CPU,
    )


def _training(private: bool) -> Callable[[nn.Module, LabelledImages, int, int], None]:
    return _train_privately if private else _train_plainly


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


_RECORDS, _CANARIES, _MODELS = 200, 20, 16


@lru_cache(maxsize=4)
def _models(seed: int, private: bool) -> _Models:
    draws = np.random.default_rng([seed, _RECORDS])
    train, _ = load_digits_data(seed)
    records, others = _with_canaries(train, _RECORDS, _CANARIES, draws)
    members = _halves(draws, _MODELS, _RECORDS)
    logits, unseen = [], []
    for number, inside in enumerate(members):
        model = _model(1000 * seed + number)
        _training(private)(model, records.subset(np.flatnonzero(inside)), _EPOCHS, 1000 * seed + number)
        logits.append(predict_logits(model, records.images, _CPU))
        unseen.append(predict_logits(model, others.images, _CPU))
    return _Models(records, members, np.stack(logits), _CANARIES, others, np.stack(unseen))


def _halves(draws: np.random.Generator, rows: int, records: int) -> Members:
    """Random halves of the records, one a row; each record in two rows and out of two rows at least."""
    while True:
        members = np.stack([draws.permutation(records) < records // 2 for _ in range(rows)])
        if ((members.sum(axis=0) >= 2) & (members.sum(axis=0) <= rows - 2)).all():
            return members


class MembershipInModel:
    """LiRA on a client's model."""

    name = "membership-inference-on-a-model"
    adversary = "whoever gets a client's model"
    goal = "Tell whether a record was trained on."
    paper = "Carlini et al., S&P 2022; Yeom et al., CSF 2018"
    promises = ("P14",)
    defences = ("record-privacy",)
    quick = True

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each model is attacked with the others as shadows."""
        found = _models(laboratory.seed, defences.stands("record-privacy"))
        scores = np.stack([_odds(logits, found.records.labels) for logits in found.logits])
        return _inferred(
            scores,
            found.members,
            success=largest_advantage(EPSILON, DELTA),
            learned="which records a model was trained on",
            what=f"{_MODELS} models of {_RECORDS // 2} records",
        )


class MemorisedCanaries:
    """Exposure of mislabelled records in a client's model."""

    name = "memorised-canaries"
    adversary = "whoever gets a client's model"
    goal = "Find a rare record again that the model has learnt by heart."
    paper = "Carlini et al., USENIX Security 2019"
    promises = ("P14",)
    defences = ("record-privacy",)
    quick = True

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Every canary is ranked by loss among images whose labels are as wrong, but which no model has seen."""
        found = _models(laboratory.seed, defences.stands("record-privacy"))
        exposures = []
        for inside, logits, unseen in zip(found.members, found.logits, found.unseen, strict=True):
            own = -_odds(logits, found.records.labels)[: found.canaries]
            others = -_odds(unseen, found.others.labels)
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


class CraftedDreams:
    """Records sent as dreams, and one client's logits on them."""

    name = "crafted-dreams"
    adversary = "malicious server"
    goal = "Read off one client's logits on chosen records which of them it has."
    paper = "Carlini et al., S&P 2022"
    promises = ("P1",)
    defences = ("masks",)
    quick = True
    clients, success = 4, 0.15

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """The dreams are the suspected records; each client's frame of the soft labels is read, then LiRA."""
        found = _models(laboratory.seed, False)
        labels = found.records.labels
        shadows = np.stack([_odds(logits, labels) for logits in found.logits])
        right = 0
        for first in range(0, _MODELS, self.clients):
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
            measure=f"advantage over guessing who is a member, {_MODELS} clients' frames, 95 % interval",
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
    records, K) are the soft labels of the records themselves, sent as dreams.
    """

    records: LabelledImages
    members: Members
    dreams: Logits
    labels: Logits
    crafted: Logits


_FEDERATIONS, _CLIENTS, _EACH, _BATCH, _STEPS = 12, 3, 20, 200, 5
_POOL = 2 * _CLIENTS * _EACH
_SETTINGS = LearningSettings(balanced=False, class_aware=False, own_weight=0, warm_up_epochs=_EPOCHS)


@lru_cache(maxsize=4)
def _federations(seed: int, private: bool) -> _Federations:
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
            _participant(records.subset(part), 1000 * seed + _CLIENTS * number + place, private)
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


def _participant(data: LabelledImages, seed: int, private: bool) -> Participant:
    client = Participant(_SETTINGS, _model(seed), data, None, seed, _CPU, local_training=_training(private))
    client.warm_up()
    return client


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
        epochs=60,
        batch_size=64,
        lr=0.05,
        momentum=0.9,
        weight_decay=0.0,
        temperature=1.0,
        seed=seed,
        device=_CPU,
    )
    return _odds(predict_logits(student, found.records.images, _CPU), found.records.labels)


_WHAT = f"{_FEDERATIONS} federations of {_CLIENTS} clients with {_EACH} records"


class MembershipInDreams:
    """LiRA on finished dreams and their soft labels."""

    name = "membership-inference-on-dreams"
    adversary = "whoever gets the FedDream dataset"
    goal = "Tell whether a record was with any client."
    paper = "Carlini et al., S&P 2022"
    promises = ("P14",)
    defences = ("record-privacy",)
    quick = False

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """The soft labels of the dreams near a record, against those of other federations."""
        found = _federations(laboratory.seed, defences.stands("record-privacy"))
        return _inferred(
            np.stack([_nearby(found, number) for number in range(_FEDERATIONS)]),
            found.members,
            success=largest_advantage(EPSILON, DELTA),
            learned="which records dreams with soft labels stem from",
            what=_WHAT,
        )


class MembershipInStudent:
    """LiRA on the student of dreams alone."""

    name = "membership-inference-on-a-student"
    adversary = "whoever gets a model taught by dreams alone"
    goal = "Tell whether a record was with any client."
    paper = "Carlini et al., S&P 2022"
    promises = ("P14",)
    defences = ("record-privacy",)
    quick = False

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """One student a federation, all from the same initial weights."""
        found = _federations(laboratory.seed, defences.stands("record-privacy"))
        return _inferred(
            np.stack([_student(found, number, laboratory.seed) for number in range(_FEDERATIONS)]),
            found.members,
            success=largest_advantage(EPSILON, DELTA),
            learned="which records the teachers of a student's dreams had",
            what=_WHAT,
        )


class CraftedDreamsSum:
    """Records sent as dreams, and the sum of the logits on them."""

    name = "crafted-dreams-of-a-sum"
    adversary = "malicious server"
    goal = "Read off the soft labels of chosen records whether any client has them."
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


class LabelShares:
    """One client's weights of class-aware soft labels."""

    name = "label-shares-of-a-client"
    adversary = "malicious server"
    goal = "Read a client's label histogram off the weights of its soft labels."
    paper = ""
    promises = ("P1",)
    defences = ("masks",)
    quick = True
    clients = 5

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each client's frame in turn."""
        weights, counts = label_weights(laboratory, self.clients, class_aware=True)
        server = Watched(laboratory, defences, clients=self.clients, length=CLASSES, clip=1.0)
        server.step(weights)
        found = np.stack([read_counts(server.read(member)) for member in range(self.clients)])
        return counts_evidence(found, counts, "each client")


class LabelTotals:
    """The sum of the weights of class-aware soft labels."""

    name = "label-totals-of-a-sum"
    adversary = "server"
    goal = "Read off the sum how many images of each class all clients have together."
    paper = ""
    promises = ("L3",)
    defences = ("label-blind-weights",)
    quick = True
    clients = 5

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A limit: the attempt is with class-aware weights, the control, where that is named, with plain means."""
        weights, counts = label_weights(laboratory, self.clients, defences.stands("label-blind-weights"))
        server = Watched(laboratory, defences, clients=self.clients, length=CLASSES, clip=1.0)
        found = read_counts(server.step(weights), self.clients)
        return counts_evidence(found, counts.sum(axis=0), "all clients together")


ATTACKS: tuple[Any, ...] = (
    MembershipInModel(),
    MemorisedCanaries(),
    CraftedDreams(),
    LabelShares(),
    LabelTotals(),
    MembershipInDreams(),
    MembershipInStudent(),
    CraftedDreamsSum(),
)
