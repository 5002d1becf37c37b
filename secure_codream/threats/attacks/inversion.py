"""Inversion: pictures of a client's records out of what it sends, in the clear, masked, and as part of a sum.

Parameter gradients, as clients of FedAvg send them: read off the first layer, where weight gradient / bias gradient is
the record itself (Phong et al., IEEE TIFS 2018), or found as the images whose gradient points the same way (Zhu, Liu,
Han, "Deep leakage from gradients", NeurIPS 2019; cosine distance and total variation: Geiping et al., "Inverting
gradients", NeurIPS 2020). Dream updates, which this project's clients send: the server lets the victim's own updates
carry its dreams on, as in DeepInversion (Yin et al., CVPR 2020), and compares them with what clients of its own
dream.

Everything is measured against the best guess from public state: the mean picture of the record's class. The adversary
is helped along: it knows labels, and its pictures are matched to records and scaled in hindsight.

What a sum hides is a matter of counting. A model with P parameters gives P equations, whatever the number of clients;
pictures come out as long as they have fewer pixels than that. So a sum over ten clients protects full batches sent
through a small model, and does not protect one record each sent through a wide one: the last attack here, a limit.

`breaching` (J. Geiping, the field's reference) is not used: its last release, 0.1.2, is of February 2022 and still
imports with today's torch, but its attack of that name ("invertinggradients") fails on pictures in grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from codream_clients.data.datasets import DIGITS_MEAN, DIGITS_STD, LabelledImages, load_digits_data
from codream_clients.learning.dreaming import total_variation
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.models.zoo import build
from secure_codream.threats.laboratory.attack import Attack, Evidence, Picture
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.measures import psnr
from secure_codream.threats.laboratory.server_view import Watched
from secure_codream.threats.laboratory.switches import Switch

Pixels = NDArray[np.float64]
SIDE, CLASSES = 8, 10

SWITCHES: Mapping[str, Switch] = {
    "aggregation": Switch("The server gets a client's update as part of a sum over ten clients, never alone."),
    "client-noise": Switch(
        "Each client adds a share of integer noise before it masks (distributed discrete Gaussian)."
    ),
}


@dataclass(frozen=True, eq=False)
class _Records:
    """Pictures (N, 64) with values 0 to 1, their labels, and each class's mean picture, known to everybody (10, 64)."""

    pixels: Pixels
    labels: NDArray[np.int64]
    public: Pixels

    def guess(self, chosen: NDArray[np.int64]) -> Pixels:
        """The best guess from public state for each of these records."""
        return self.public[self.labels[chosen]]


def _pixels(data: LabelledImages) -> Pixels:
    return np.clip(data.images.reshape(len(data), -1).astype(np.float64) * DIGITS_STD + DIGITS_MEAN, 0, 1)


def _records(seed: int) -> _Records:
    train, test = load_digits_data(seed)
    public = np.stack([_pixels(test)[test.labels == label].mean(axis=0) for label in range(CLASSES)])
    return _Records(_pixels(train), train.labels, public)


def _picture(caption: str, pixels: Pixels) -> Picture:
    return Picture(caption, np.clip(pixels, 0, 1).reshape(SIDE, SIDE))


# -- parameter gradients ---------------------------------------------


def _perceptron(hidden: int, seed: int) -> nn.Module:
    """A classifier of (N, 1, 8, 8) with one smooth hidden layer."""
    return _drawn(
        nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, hidden), nn.Sigmoid(), nn.Linear(hidden, CLASSES)),
        seed,
    )


def _convolutional(seed: int) -> nn.Module:
    """A small LeNet with smooth activations, as in Zhu et al."""
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid())
    return _drawn(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * SIDE * SIDE, CLASSES)), seed)


def _drawn(model: nn.Module, seed: int) -> nn.Module:
    draws = torch.Generator().manual_seed(seed)
    for weights in model.parameters():
        nn.init.uniform_(weights, -0.5, 0.5, generator=draws)
    return model


def _gradient(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, graph: bool = False) -> torch.Tensor:
    """The gradient of the mean loss on images (N, 1, 8, 8) in all parameters, as one vector."""
    loss = functional.cross_entropy(model(images), labels)
    parts = torch.autograd.grad(loss, list(model.parameters()), create_graph=graph)
    return torch.cat([part.reshape(-1) for part in parts])


def _client_gradients(model: nn.Module, records: _Records, parts: Sequence[NDArray[np.int64]]) -> Pixels:
    """The gradients (n, P) of clients who hold these records, cut to a bound of 1 a coordinate by the encoding."""
    images = torch.from_numpy(records.pixels.reshape(-1, 1, SIDE, SIDE)).float()
    labels = torch.from_numpy(records.labels)
    return np.stack([_gradient(model, images[part], labels[part]).double().numpy() for part in parts])


def read_off(gradient: Pixels, hidden: int) -> Pixels:
    """The picture (64,) that the first layer's gradients give away (Phong et al.).

    Each hidden unit's weight gradient is the picture times its bias gradient; units are weighed by least squares.

    Args:
        gradient: of `_perceptron`, all parameters in one vector.
        hidden: its units.
    """
    weights = gradient[: hidden * SIDE * SIDE].reshape(hidden, -1)
    bias = gradient[hidden * SIDE * SIDE :][:hidden]
    picture: Pixels = np.clip(bias @ weights / (bias @ bias), 0, 1)
    return picture


def match_gradient(
    model: nn.Module, gradient: Pixels, labels: NDArray[np.int64], *, iterations: int, seed: int, smooth: float = 0.0
) -> Pixels:
    """The pictures (N, 64) whose gradient has the least cosine distance to the one given (Geiping et al.).

    Args:
        model: the parameters' owner.
        gradient: all parameters in one vector.
        labels: of the pictures, (N,).
        iterations: of Adam, the last third at a fifth of its rate.
        seed: where the search begins.
        smooth: weight of the total variation.
    """
    aim = torch.from_numpy(gradient).float()
    aim = aim / aim.norm().clamp_min(1e-12)
    wanted = torch.from_numpy(labels)
    start = torch.randn(len(labels), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    free = start.mul(0.1).requires_grad_()
    optimiser = torch.optim.Adam([free], lr=0.05)
    for iteration in range(iterations):
        if iteration == iterations * 2 // 3:
            optimiser.param_groups[0]["lr"] = 0.01
        images = torch.sigmoid(free)
        found = _gradient(model, images, wanted, graph=True)
        loss = 1 - found @ aim / found.norm().clamp_min(1e-12)
        if smooth:
            loss = loss + smooth * total_variation(images)
        (free.grad,) = torch.autograd.grad(loss, free)
        optimiser.step()
    return np.asarray(torch.sigmoid(free).detach().numpy().reshape(len(labels), -1), dtype=np.float64)


def _beyond_a_guess(
    measure: str,
    found: Pixels,
    records: _Records,
    chosen: NDArray[np.int64],
    *,
    margin: float,
    pictures: tuple[Picture, ...],
) -> Evidence:
    """How near pictures come to the chosen records, and how near the mean picture of their class does."""
    truth = records.pixels[chosen]
    value, guessed = float(psnr(found, truth).mean()), float(psnr(records.guess(chosen), truth).mean())
    return Evidence(
        measure=measure,
        value=value,
        success=guessed + margin,
        learned=f"pictures of {value:.1f} dB, where the mean picture of the class has {guessed:.1f} dB",
        pictures=pictures,
    )


class GradientInversion(Attack):
    """One record's gradient, read off the first layer."""

    name = "gradient-inversion"
    adversary = "malicious server"
    goal = "Read a client's record off its parameter gradient."
    paper = "Phong et al., IEEE TIFS 2018; Zhu, Liu, Han, NeurIPS 2019"
    promises = ("P1",)
    defences = ("masks",)
    hidden, clients, margin = 32, 10, 3.0

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each client computes the gradient of one record; every client's frame is read in turn."""
        records = _records(laboratory.seed)
        chosen = laboratory.generator(self.name).permutation(len(records.labels))[: self.clients]
        gradients = _client_gradients(
            _perceptron(self.hidden, laboratory.seed), records, [np.array([one]) for one in chosen]
        )
        server = Watched(laboratory, defences, clients=self.clients, length=gradients.shape[1], clip=1.0)
        total = server.step(gradients)
        found = np.stack([read_off(server.read(member), self.hidden) for member in range(self.clients)])
        pictures = (
            _picture("a client's record", records.pixels[chosen[0]]),
            _picture("read off its frame", found[0]),
            _picture(f"read off the sum of {self.clients}", read_off(total, self.hidden)),
            _picture("guessed from public state", records.guess(chosen)[0]),
        )
        measure = "PSNR of the picture read off a frame, dB"
        return _beyond_a_guess(measure, found, records, chosen, margin=self.margin, pictures=pictures)


class GradientMatching(Attack):
    """One record's gradient of a convolutional model, matched."""

    name = "gradient-matching"
    adversary = "malicious server"
    goal = "Find the record whose gradient is the one that a client sent."
    paper = "Geiping et al., NeurIPS 2020"
    promises = ("P1",)
    defences = ("masks",)
    quick = False
    clients, victims, margin = 4, 3, 3.0

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """The label is the class whose bias gradient is the least (Zhao et al., iDLG, 2020); then the picture."""
        records = _records(laboratory.seed)
        chosen = laboratory.generator(self.name).permutation(len(records.labels))[: self.clients]
        model = _convolutional(laboratory.seed)
        gradients = _client_gradients(model, records, [np.array([one]) for one in chosen])
        server = Watched(laboratory, defences, clients=self.clients, length=gradients.shape[1], clip=1.0)
        server.step(gradients)
        found = []
        for member in range(self.victims):
            frame = server.read(member)
            label = np.array([frame[-CLASSES:].argmin()])
            seed = laboratory.seed + member
            found += [match_gradient(model, frame, label, iterations=600, seed=seed, smooth=1e-4)[0]]
        victims = chosen[: self.victims]
        pictures = (
            _picture("a client's record", records.pixels[victims[0]]),
            _picture("matched to its frame", found[0]),
        )
        measure = "PSNR of the matched picture, dB"
        return _beyond_a_guess(measure, np.stack(found), records, victims, margin=self.margin, pictures=pictures)


@dataclass(frozen=True)
class _Matched:
    """Pictures matched to a sum: mean PSNR of the victims', of the guess, and the first of each."""

    value: float
    guessed: float
    truth: Pixels
    found: Pixels


def _match_sum(
    laboratory: Laboratory,
    defences: Defences,
    *,
    clients: int,
    batch: int,
    hidden: int,
    victims: int = 1,
    multiplier: float = 0.0,
) -> _Matched:
    """Match all records of all clients to the sum of their gradients, and look at those of the first `victims`.

    One client is no sum: its gradient is taken as it is. With a `multiplier` the sum carries distributed noise.
    """
    records = _records(laboratory.seed)
    draws = laboratory.generator(f"sum of {clients} gradients")
    # A batch of distinct classes, so that it is clear which picture is whose.
    victim = np.array([draws.choice(np.flatnonzero(records.labels == label)) for label in range(batch)])
    rest = draws.permutation(np.setdiff1d(np.arange(len(records.labels)), victim))[: (clients - 1) * batch]
    parts = [victim, *np.split(rest, clients - 1)] if clients > 1 else [victim]
    model = _perceptron(hidden, laboratory.seed)
    gradients = _client_gradients(model, records, parts)
    seen = gradients[0]
    if clients > 1:
        server = Watched(
            laboratory,
            defences,
            clients=clients,
            length=gradients.shape[1],
            clip=1.0,
            norm=float(np.linalg.norm(gradients, axis=1).max()),
            noise_multiplier=multiplier,
        )
        seen = server.step(gradients)
    everyone, looked_at = np.concatenate(parts), np.concatenate(parts[:victims])
    labels = records.labels[everyone]
    found = match_gradient(model, seen, labels, iterations=1500, seed=laboratory.seed)
    best = []
    for record in looked_at:
        candidates = found[labels == records.labels[record]]
        best.append(candidates[psnr(candidates, records.pixels[record]).argmax()])
    truth = records.pixels[looked_at]
    return _Matched(
        float(psnr(np.stack(best), truth).mean()),
        float(psnr(records.guess(looked_at), truth).mean()),
        truth[0],
        best[0],
    )


class GradientMatchingSum(Attack):
    """A batch's gradients as part of a sum."""

    name = "gradient-inversion-of-a-sum"
    adversary = "server"
    goal = "Find a client's records from the sum of ten clients' gradients."
    paper = "Zhu, Liu, Han, NeurIPS 2019; Geiping et al., NeurIPS 2020"
    promises = ("P2",)
    defences = ("aggregation",)
    batch, hidden, margin = 8, 16, 3.0

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Eight records a client; the verdict is on ten clients, the curve of 3, 5 and 20 stands beside it."""
        clients = 10 if defences.stands("aggregation") else 1
        more = (3, 5, 20) if defences.stands("aggregation") and not laboratory.quick else ()
        matched = {
            count: _match_sum(laboratory, defences, clients=count, batch=self.batch, hidden=self.hidden)
            for count in sorted({clients, *more})
        }
        judged = matched[clients]
        curve = ", ".join(f"{count}: {found.value - found.guessed:+.1f}" for count, found in matched.items())
        return Evidence(
            measure=f"PSNR of the victim's records, beyond the mean picture of their class, {clients} in the sum, dB",
            value=judged.value - judged.guessed,
            success=self.margin,
            learned=f"pictures better than a guess from public state, in dB by clients in the sum: {curve}",
            pictures=(
                _picture("a client's record", judged.truth),
                *(_picture(f"matched, {count} in the sum", found.found) for count, found in matched.items()),
            ),
        )


class OneRecordSum(Attack):
    """One record each, through a model with more parameters than all have pixels: the sum tells."""

    name = "one-record-gradients-in-a-sum"
    adversary = "server"
    goal = "Find a client's record from the sum of ten clients' gradients of one record each."
    paper = "Zhu, Liu, Han, NeurIPS 2019"
    promises = ("L3",)
    defences = ("client-noise",)
    quick = False
    clients, hidden, multiplier, margin = 10, 128, 1.0, 3.0

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A limit: the attempt is without distributed noise, the control, where that is named, with it."""
        noised = not defences.stands("client-noise")
        found = _match_sum(
            laboratory,
            defences,
            clients=self.clients,
            batch=1,
            hidden=self.hidden,
            victims=self.clients,
            multiplier=self.multiplier if noised else 0.0,
        )
        with_noise = f" with distributed noise of {self.multiplier:g} times the sensitivity" if noised else ""
        return Evidence(
            measure="PSNR of everyone's record, beyond the mean picture of its class, dB",
            value=found.value - found.guessed,
            success=self.margin,
            learned=f"pictures of {found.value:.1f} dB{with_noise}, "
            f"where a guess from public state has {found.guessed:.1f} dB",
            pictures=(_picture("a client's record", found.truth), _picture("out of the sum", found.found)),
        )


# -- dream updates ---------------------------------------------

_DREAMS, _STEPS, _SHADOWS, _CLIP = 50, 10, 8, 1.0


@dataclass(frozen=True, eq=False)
class Dreamer:
    """A client with one record of each class, (10, 64), and its teacher."""

    participant: Participant
    pixels: Pixels


def _dreamer(data: LabelledImages, draws: np.random.Generator, seed: int) -> Dreamer:
    chosen = np.array([draws.choice(np.flatnonzero(data.labels == label)) for label in range(CLASSES)])
    own = data.subset(chosen)
    model = build("mlp", channels=1, size=SIDE, classes=CLASSES, seed=seed)
    participant = Participant(LearningSettings(), model, own, None, seed, torch.device("cpu"))
    participant.warm_up()
    return Dreamer(participant, _pixels(own))


def noise_dreams(seed: int) -> NDArray[np.float32]:
    """The noise that dreams (50, 1, 8, 8) start from."""
    return np.random.default_rng([seed, _DREAMS]).standard_normal((_DREAMS, 1, SIDE, SIDE), dtype=np.float32)


def _by_class(dreams: NDArray[np.float32]) -> Pixels:
    """Mean picture (10, 64) of the dreams towards each class."""
    pixels = dreams.reshape(_DREAMS, -1).astype(np.float64) * DIGITS_STD + DIGITS_MEAN
    return np.stack([pixels[label::CLASSES].mean(axis=0) for label in range(CLASSES)])


@lru_cache(maxsize=2)
def dreamers(seed: int, count: int) -> tuple[Dreamer, ...]:
    """The clients, each with other records of the training part."""
    draws = np.random.default_rng([seed, count])
    train, _ = load_digits_data(seed)
    return tuple(_dreamer(train, draws, 1000 * seed + number) for number in range(count))


@lru_cache(maxsize=2)
def _shadow_dreams(seed: int) -> Pixels:
    """What clients of the adversary's own, with records of the public test part, dream on average: (10, 64)."""
    draws = np.random.default_rng([seed, _SHADOWS])
    _, test = load_digits_data(seed)
    found = []
    for number in range(_SHADOWS):
        shadow, dreams = _dreamer(test, draws, 1000 * seed + 500 + number), noise_dreams(seed)
        for _ in range(_STEPS):
            dreams = dreams + shadow.participant.dream_update(dreams).delta
        found.append(_by_class(dreams))
    return np.asarray(np.mean(found, axis=0))


@dataclass(frozen=True, eq=False)
class _Dreamt:
    """A client's records beside what was made of dreams: pictures (10, 64)."""

    truth: Pixels
    found: Pixels
    guess: Pixels

    @property
    def gain(self) -> float:
        """PSNR beyond the guess in dB, the mean over the records."""
        return float((psnr(self.found, self.truth) - psnr(self.guess, self.truth)).mean())


def _reconstruct(seed: int, dreams: NDArray[np.float32], truth: Pixels) -> _Dreamt:
    """The class's mean picture, moved along what sets these dreams apart from the shadows', as far as suits best."""
    public = _records(seed).public
    apart = _by_class(dreams) - _shadow_dreams(seed)
    scale = float((apart * (truth - public)).sum() / (apart * apart).sum())
    return _Dreamt(truth, np.clip(public + scale * apart, 0, 1), public)


def dream_updates(clients: Sequence[Dreamer], dreams: NDArray[np.float32]) -> Pixels:
    """Everyone's dream update (n, N) on these dreams."""
    return np.stack([client.participant.dream_update(dreams).delta.reshape(-1) for client in clients]).astype(
        np.float64
    )


def _pictures(seen: Sequence[tuple[str, _Dreamt]]) -> tuple[Picture, ...]:
    first = seen[0][1]
    return (
        _picture("a client's record", first.truth[0]),
        _picture("mean picture of its class", first.guess[0]),
        *(_picture(caption, dreamt.found[0]) for caption, dreamt in seen),
    )


class DreamInversion(Attack):
    """Dreams carried on by one client's updates alone."""

    name = "dream-inversion"
    adversary = "malicious server"
    goal = "See a client's records in dreams that its own updates make."
    paper = "Yin et al., CVPR 2020; Singh et al., arXiv 2402.15968"
    promises = ("P1",)
    defences = ("masks",)
    clients, margin = 3, 1.0

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """The public state of every step is what the victim's frame has made of the one before; each client in turn."""
        cohort = dreamers(laboratory.seed, self.clients)
        seen = []
        for victim in range(1 if laboratory.quick else self.clients):
            dreams = noise_dreams(laboratory.seed)
            server = Watched(laboratory, defences, clients=self.clients, length=dreams.size, clip=_CLIP, steps=_STEPS)
            for _ in range(_STEPS):
                server.step(dream_updates(cohort, dreams))
                dreams = dreams + server.read(victim).astype(np.float32).reshape(dreams.shape)
            seen.append(_reconstruct(laboratory.seed, dreams, cohort[victim].pixels))
        value = float(np.mean([dreamt.gain for dreamt in seen]))
        return Evidence(
            measure="PSNR of a client's records, beyond the mean picture of their class, dB",
            value=value,
            success=self.margin,
            learned=f"pictures better than a guess from public state by {value:+.1f} dB, scaled to fit in hindsight",
            pictures=_pictures([("made of its frames", seen[0])]),
        )


class DreamInversionSum(Attack):
    """Dreams that the sum of updates makes, as every server sees them."""

    name = "dream-inversion-of-a-sum"
    adversary = "server"
    goal = "See a client's records in the dreams of ten clients."
    paper = "Yin et al., CVPR 2020; Singh et al., arXiv 2402.15968"
    promises = ("P2",)
    defences = ("aggregation",)
    quick = False
    margin = 1.0

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """The verdict is on ten clients, the curve of 3, 5 and 20 stands beside it; without aggregation, on one."""
        alone = not defences.stands("aggregation")
        counts = (1,) if alone else (10,) if laboratory.quick else (3, 5, 10, 20)
        cohort = dreamers(laboratory.seed, 20)
        seen = {count: self._dream(defences, laboratory, cohort[:count]) for count in counts}
        judged = seen[1 if alone else 10]
        curve = ", ".join(f"{count}: {dreamt.gain:+.1f}" for count, dreamt in seen.items())
        return Evidence(
            measure=f"PSNR of a client's records, beyond the mean picture of their class, {1 if alone else 10} in the "
            "sum, dB",
            value=judged.gain,
            success=self.margin,
            learned=f"pictures better than a guess from public state, in dB by clients in the sum: {curve}",
            pictures=_pictures([(f"made of sums of {count}", dreamt) for count, dreamt in seen.items()]),
        )

    def _dream(self, defences: Defences, laboratory: Laboratory, cohort: Sequence[Dreamer]) -> _Dreamt:
        dreams, count = noise_dreams(laboratory.seed), len(cohort)
        server = (
            Watched(laboratory, defences, clients=count, length=dreams.size, clip=_CLIP, steps=_STEPS)
            if count > 1
            else None
        )
        for _ in range(_STEPS):
            updates = dream_updates(cohort, dreams)
            mean = updates[0] if server is None else server.step(updates) / count
            dreams = dreams + mean.astype(np.float32).reshape(dreams.shape)
        return _reconstruct(laboratory.seed, dreams, cohort[0].pixels)


ATTACKS: tuple[Attack, ...] = (
    GradientInversion(),
    GradientMatching(),
    GradientMatchingSum(),
    DreamInversion(),
    DreamInversionSum(),
    OneRecordSum(),
)
