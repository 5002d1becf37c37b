"""CoDream-fast: dreams from a generator that all clients bring on together, through secure aggregation.

Singh et al., arXiv 2402.15968; the generator after Fang et al., AAAI 2022 (`codream_clients.generators`). For each
batch of a round:
1. The server draws noise z and sends it with G, a copy of its meta-generator. Every client takes a few steps of Adam
   on both against its own teacher and sends the differences; the server adds their secure means (one secure step, or
   `global_steps` of them).
2. The meta-generator takes a step towards where the clients have brought G: Reptile (Nichol et al., 2018), with Adam on
   meta - G, rate `lr` times `local_steps`.
3. The dreams G(z) go out, and the clients' logits on them, under secure aggregation, become their soft labels.
When all batches of a round are there, they go out with their labels and join the clients' windows as one; clients learn
as in CoDream, and their metrics come back as a secure sum. So a round takes batches * (global_steps + 1) + 1 secure
steps, and what a client sends depends on the sizes of z and of G, not on anybody's model.

The adversarial term needs a student that all clients know. It is a function of the FedDream dataset, which all have, so
every client trains its own copy and nothing is sent; here they share one. Left out, as not needed for the method: the
authors' fresh first layer of G every 50 batches, and their augmentation of G(z).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from codream_clients.dreaming import Dreams, StatisticsMemory
from codream_clients.generators import BETAS, GeneratorLoss, Noise, adapt, fresh_image_generator, generate
from codream_clients.participant import Participant, distil_by_settings
from codream_clients.training import evaluate
from codream_server.optimisers import Adam
from secure_codream.experiments.local_work import Stopwatch
from secure_codream.experiments.parameters import Change, FloatArray, Layout, SecureMean
from secure_codream.experiments.problem import Problem, Row

NOISE, GENERATOR, NUMERATORS, DENOMINATORS, METRICS = "noise", "generator", "numerators", "denominators", "metrics"
ROOM = 2.0  # first scales of the changes: Adam moves a coordinate by about its rate in a step


@dataclass(frozen=True, kw_only=True)
class CoDreamFast:
    """See the module; the size of a batch, learning and soft labels are the problem's.

    Attributes:
        name: its name in tables.
        batches: batches of dreams in a round.
        global_steps: secure steps on z and G for each.
        local_steps: a client's steps of Adam in each of these.
        noise: Z.
        width: channels of G's last block; the others have twice as many.
        lr: rate of the steps on G.
        noise_lr: rate of the steps on z.
        alpha_preds: weight of the entropy; this and the other weights as in `GeneratorLoss`.
        alpha_target: weight of the target classes; the paper's way is 0.
        alpha_bn: weight of R_bn; the paper's way is 10.
        alpha_adv: weight of the adversarial term.
        bn_momentum: share of earlier batches in R_bn's statistics.
        adversarial_from: the round, from 0, from which on the adversarial term counts.
        student: architecture of the student on dreams alone; the first client's unless given.
    """

    name: str = "codream-fast"
    batches: int = 5
    global_steps: int = 1
    local_steps: int = 5
    noise: int = 256
    width: int = 64
    lr: float = 5e-3
    noise_lr: float = 1.5e-3
    alpha_preds: float = GeneratorLoss.alpha_preds
    alpha_target: float = GeneratorLoss.alpha_target
    alpha_bn: float = GeneratorLoss.alpha_bn
    alpha_adv: float = GeneratorLoss.alpha_adv
    bn_momentum: float = 0.9
    adversarial_from: int = 15
    student: str | None = None

    def __post_init__(self) -> None:
        for key in ("batches", "global_steps", "local_steps", "noise", "width"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; 1 or more is allowed")
        for key in ("lr", "noise_lr"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                raise ValueError(f"{key} is {getattr(self, key)}; a finite number above 0 is allowed")
        _ = self.loss, StatisticsMemory(self.bn_momentum)  # they check their own numbers

    @property
    def loss(self) -> GeneratorLoss:
        """The weights of the clients' loss."""
        return GeneratorLoss(
            alpha_preds=self.alpha_preds,
            alpha_target=self.alpha_target,
            alpha_bn=self.alpha_bn,
            alpha_adv=self.alpha_adv,
        )

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`."""
        student = problem.fresh_model(0, self.student or problem.models[0])
        clients = [FastClient(self, problem, number, student) for number in range(len(problem.shards))]
        server = FastServer(self, problem, clients)
        watch, learning = Stopwatch(len(clients)), problem.learning
        window: deque[tuple[Dreams, FloatArray]] = deque(maxlen=learning.window)
        yield watch.row(0, [client.warm_up() for client in clients])
        for number in range(1, problem.rounds + 1):
            window.append(server.round())
            distil_by_settings(
                student,
                list(window),
                learning,
                seed=problem.seed * 1000 + number,
                device=problem.device,
            )
            yield watch.row(
                number,
                [client.accuracy for client in clients],
                server=evaluate(student, problem.test, problem.device),
                up=server.bytes_up,
                down=server.bytes_down,
                secure_steps=server.secure_steps,
            )


class FastClient:
    """A participant, its copy of the generator, and its memory of the feature statistics.

    Args:
        settings: the algorithm's.
        problem: shards and learning settings.
        client: its number.
        student: the student on dreams alone, for the adversarial term; not changed here.
    """

    def __init__(self, settings: CoDreamFast, problem: Problem, client: int, student: nn.Module) -> None:
        shard = problem.shards[client]
        self._settings, self._problem, self._student, self._rounds = settings, problem, student, 0
        self._participant = Participant(
            replace(problem.learning, views=0),  # its vector has the labels of the generated images alone
            problem.fresh_model(client),
            shard,
            problem.test,
            problem.client_seed(client),
            problem.device,
        )
        self._seen = shard.class_counts > 0
        self._memory = StatisticsMemory(settings.bn_momentum)
        self._generator = fresh_image_generator(settings.noise, problem.test.shape, settings.width, problem.seed)
        self._generator.to(problem.device)
        self._layout = Layout.of_parameters(self._generator)

    @property
    def accuracy(self) -> float:
        """Its newest test accuracy."""
        metrics = self._participant.metrics
        return float(metrics.accuracy or 0.0) if metrics is not None else 0.0

    def warm_up(self) -> float:
        """Train before the first round; returns the test accuracy."""
        self._participant.warm_up()
        return self.accuracy

    def shape(self, public: Sequence[FloatArray]) -> Change:
        """The changes of z and of G, from (z, G)."""
        noise, weights = public
        settings = self._settings
        self._layout.write(self._generator, weights)
        moved = adapt(
            self._generator,
            noise,
            self._participant.teacher,
            settings.loss,
            steps=settings.local_steps,
            lr=settings.lr,
            noise_lr=settings.noise_lr,
            seen=self._seen,
            memory=self._memory,
            student=self._student if self._rounds >= settings.adversarial_from else None,
        )
        return {NOISE: (moved - noise).reshape(-1), GENERATOR: self._layout.read(self._generator) - weights}

    def label(self, public: Sequence[FloatArray]) -> Change:
        """Its share of the soft labels, from (dreams,)."""
        share = self._participant.soft_labels(public[0])
        return {NUMERATORS: share.numerators.reshape(-1), DENOMINATORS: share.denominators}

    def learn(self, public: Sequence[FloatArray]) -> Change:
        """Learn from (dreams, soft labels); what comes back is how it fares."""
        metrics = self._participant.acquire(public[0], public[1])
        self._rounds += 1
        return {METRICS: np.array([metrics.accuracy or 0.0, metrics.train_accuracy], dtype=np.float32)}


class FastServer:
    """The meta-generator, and a round of dreams from the clients' secure means.

    Args:
        settings: the algorithm's.
        problem: dream settings, secure aggregation and seed.
        clients: who answers.
    """

    def __init__(self, settings: CoDreamFast, problem: Problem, clients: Sequence[FastClient]) -> None:
        self._settings, self._problem, self._rounds = settings, problem, 0
        self._batch, self._classes = problem.dreams.batch, problem.test.classes
        self._generator = fresh_image_generator(settings.noise, problem.test.shape, settings.width, problem.seed)
        self._generator.to(problem.device)
        self._layout = Layout.of_parameters(self._generator)
        self._meta = self._layout.read(self._generator)
        self._reptile = Adam(settings.lr * settings.local_steps, direction=1.0, betas=BETAS)
        reach = ROOM * settings.local_steps
        weights = Layout(self._layout.names, self._layout.shapes, (reach * settings.lr,) * len(self._layout.names))
        noise = Layout.of_vector(NOISE, self._batch * settings.noise, reach * settings.noise_lr)
        numerators = Layout.of_vector(NUMERATORS, self._batch * self._classes, problem.learning.logit_clip)
        denominators = Layout.of_vector(DENOMINATORS, self._classes, 1.0)

        self._changes = SecureMean(
            problem, {NOISE: noise, GENERATOR: weights}, [client.shape for client in clients], even=True
        )
        self._labels = SecureMean(
            problem,
            {NUMERATORS: numerators, DENOMINATORS: denominators},
            [client.label for client in clients],
            even=True,
        )
        self._metrics = SecureMean(
            problem, {METRICS: Layout.of_vector(METRICS, 2, 1.0)}, [client.learn for client in clients], even=True
        )

    @property
    def secure_steps(self) -> int:
        """Secure sums so far."""
        return sum(mean.secure_steps for mean in self._means)

    @property
    def bytes_up(self) -> int:
        """What all clients together have sent so far."""
        return sum(mean.traffic.up for mean in self._means)

    @property
    def bytes_down(self) -> int:
        """The same, received."""
        return sum(mean.traffic.down for mean in self._means)

    @property
    def _means(self) -> tuple[SecureMean, SecureMean, SecureMean]:
        return self._changes, self._labels, self._metrics

    def round(self) -> tuple[Dreams, FloatArray]:
        """Dream, label and let the clients learn: all batches' dreams (N, C, H, W) and soft labels (N, K).

        Raises:
            AggregationFailed: too few survivors.
        """
        made = [self._dream(number) for number in range(self._settings.batches)]
        dreams, soft_labels = (np.concatenate(parts) for parts in zip(*made, strict=True))
        self._metrics.exchange([dreams, soft_labels])
        self._rounds += 1
        return dreams, soft_labels

    def _dream(self, number: int) -> tuple[Dreams, FloatArray]:
        random = np.random.default_rng([self._problem.seed, self._rounds, number])
        noise: Noise = random.standard_normal((self._batch, self._settings.noise), dtype=np.float32)
        weights = self._meta
        for _ in range(self._settings.global_steps):
            change = self._changes.exchange([noise, weights])
            noise = (noise + change[NOISE].reshape(noise.shape)).astype(np.float32)
            weights = (weights + change[GENERATOR]).astype(np.float32)
        self._meta = self._reptile.step(self._meta, weights - self._meta)
        self._layout.write(self._generator, weights)
        dreams = generate(self._generator, noise)
        share = self._labels.exchange([dreams])
        numerators = share[NUMERATORS].reshape(self._batch, self._classes)
        return dreams, (numerators / np.maximum(share[DENOMINATORS], 1e-6)).astype(np.float32)
