"""What a client learns with, by its federation's course."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.devices import pick_device
from codream_clients.dream_learner import DreamLearner, HandOver, distillation_of, fetched
from codream_clients.function_learner import FunctionLearner
from codream_clients.generator_learner import GeneratorLearner
from codream_clients.learning.handed_down import HandedDown
from codream_clients.learning.judge import Judge
from codream_clients.learning.participant import Metrics, Participant, Teacher
from codream_clients.learning.student import AdaptiveTerm, adaptive_student
from codream_clients.models.refusals import GIVEN, ModelRefused
from codream_clients.own_parts import guarded, load_own_part
from codream_clients.parameter_learner import (
    AveragingLearner,
    ContrastiveLearner,
    ControlledLearner,
    ProximalLearner,
)
from codream_clients.privacy.accounting import SampledGaussian
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.plan import PrivacyPlan, warn_of_weak_delta
from codream_clients.privacy.releases import Releases
from codream_protocols.course import Arrays, Course, Learner, Publication
from codream_protocols.courses.codream import CoDream
from codream_protocols.courses.dp_sgd import DPSGD
from codream_protocols.courses.generator import CoDreamFast
from codream_protocols.courses.parameters import FedAvg, Scaffold
from codream_protocols.courses.sums import Sums
from secure_codream.configuration.assembly import (
    build_model,
    held_back,
    load_client_data,
    make_participant,
    take_model,
)
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.courses import public_images
from secure_codream.configuration.federation import AveragingTable, FastTable, FederationConfig, learning_settings
from secure_codream.configuration.limits import check_budget
from secure_codream.configuration.reading import ConfigError


@dataclass(frozen=True)
class Learning:
    """A client's learner, its model, and what it does before the first round.

    Attributes:
        learner: computes and learns.
        model: what is trained, and kept; None where nothing is.
        warm_up: trains before the first round.
        begin: takes part with the model as it is, after so many epochs, instead; with a teacher that was another one.
        recall: restores what an earlier process had learnt from an epoch, without learning it again.
        judge: of the model after each round; None where there is none.
        teacher: what makes and labels dreams, where the settings let that be another than the model as it is.
    """

    learner: Learner
    model: nn.Module | None
    warm_up: Callable[[], object]
    begin: Callable[[int, Teacher | None], object]
    recall: Callable[[int, Publication], None]
    judge: Judge | None = None
    teacher: Callable[[], nn.Module] | None = None


def make_learner(
    client: ClientConfig,
    federation: FederationConfig,
    course: Course,
    *,
    model: nn.Module | None = None,
    data: tuple[LabelledImages, LabelledImages | None] | None = None,
    releases: Callable[[PrivacyPlan, LabelledImages], Releases] | None = None,
    ring: Callable[[LabelledImages], Callable[[SampledGaussian], object]] | None = None,
    goes_on: bool = False,
    tells_accuracy: bool = True,
    on_metrics: Callable[[Metrics], object] = lambda metrics: None,
    tell: Callable[[str], object] = lambda text: None,
    hand_over: HandOver = fetched,
) -> Learning:
    """The learner of a client.

    Args:
        client: its configuration.
        federation: the federation's.
        course: the federation's course.
        model: replaces the configured model.
        data: replaces the configured data: (train, test or None).
        releases: where a private client's charges are reserved.
        ring: of the images trained on, where steps of DP-SGD through the ring are charged; nowhere unless given.
        goes_on: whether the model is that of an earlier process.
        tells_accuracy: whether its counts are in the sum of metrics.
        on_metrics: called with the figures after each training.
        tell: called with what is wrong with an answer that is sent all the same.
        hand_over: see `DreamLearner`.

    Raises:
        ConfigError: settings, a model or data that do not fit the course, or a budget where none is spent.
    """
    check_budget(client, federation)
    if isinstance(course, Sums):
        return _of_functions(client, federation, tell)
    if isinstance(course, FedAvg):
        return _of_parameters(client, federation, course, model, data, tells_accuracy, on_metrics)
    if isinstance(course, DPSGD):
        return _of_ring(client, federation, course, model, data, ring, on_metrics)
    participant = make_participant(client, federation, model=model, data=data, releases=releases, warmed_up=goes_on)
    certified = federation.earlier
    if isinstance(course, CoDream):
        learner: Any = DreamLearner(
            participant,
            weight=client.weight,
            tells_accuracy=tells_accuracy,
            on_metrics=on_metrics,
            adaptive=_adaptive(federation, course, participant),
            certified=certified,
            distillation=distillation_of(course.settings.label_by),
            hand_over=hand_over,
        )
    elif isinstance(course, CoDreamFast):
        learner = GeneratorLearner(
            course,
            participant,
            shape=federation.task.shape,
            **_adversarial(federation, participant),
            tells_accuracy=tells_accuracy,
            on_metrics=on_metrics,
            certified=certified,
        )
    elif hasattr(course, "learner"):
        with guarded(f"course {federation.federation.course!r}: learner(participant)"):
            learner = course.learner(participant)  # an own course brings what answers it
    else:
        raise ConfigError(
            f"course {federation.federation.course!r}: found no method learner(participant), which an own course needs"
        )
    return Learning(
        learner,
        participant.model,
        lambda: on_metrics(participant.warm_up()),
        lambda number, teacher: on_metrics(participant.begin(number, teacher)),
        getattr(learner, "recall", lambda number, publication: None),
        participant.judge,
        None if participant.settings.teacher == "current" else lambda: participant.teacher,
    )


def _adaptive(federation: FederationConfig, course: CoDream, participant: Participant) -> AdaptiveTerm | None:
    settings = course.settings
    if settings.adaptive_weight == 0:
        return None
    student = adaptive_student(
        settings.shape,
        settings.classes,
        seed=federation.federation.seed,
        window=settings.window,
        views_by=settings.views_by,
        device=participant.device,
    )
    return AdaptiveTerm(student, settings.adaptive_weight, settings.adaptive_from)


def _adversarial(federation: FederationConfig, participant: Participant) -> dict[str, Any]:
    begins = (federation.fast or FastTable()).adversarial_from
    if begins >= federation.federation.rounds:
        return {"student": None}
    student = adaptive_student(
        federation.task.shape,
        federation.task.classes,
        seed=federation.federation.seed,
        window=federation.dreams.window,
        views_by=federation.dreams.views_by,
        device=participant.device,
    )
    return {"student": student, "adversarial_from": begins}


def _of_parameters(
    client: ClientConfig,
    federation: FederationConfig,
    course: FedAvg,
    model: nn.Module | None,
    data: tuple[LabelledImages, LabelledImages | None] | None,
    tells_accuracy: bool,
    on_metrics: Callable[[Metrics], object],
) -> Learning:
    table = federation.averaging or AveragingTable()
    train, test = load_client_data(client, federation, data)
    train, judge = held_back(federation, train, seed=client.seed, device=client.device)
    if model is None:
        model = build_model(table.model, federation, seed=client.seed, device=client.device)
    else:
        take_model(model, federation, device=client.device)
    options: dict[str, Any] = {
        "seed": client.seed,
        "device": pick_device(client.device),
        "weight": client.weight,
        "test": test,
        "tells_accuracy": tells_accuracy,
        "on_metrics": on_metrics,
        "judge": judge,
    }
    parts = (model, train, learning_settings(federation))
    name = federation.federation.course
    learner: AveragingLearner
    if name == "fedprox":
        learner = ProximalLearner(course, *parts, mu=table.proximal, **options)
    elif name == "moon":
        learner = ContrastiveLearner(course, *parts, mu=table.contrast, temperature=table.temperature, **options)
    elif isinstance(course, Scaffold):
        learner = ControlledLearner(course, *parts, **options)
    else:
        learner = AveragingLearner(course, *parts, **options)
    return Learning(learner, model, lambda: None, lambda number, teacher: None, learner.recall, judge)


def _of_ring(
    client: ClientConfig,
    federation: FederationConfig,
    course: DPSGD,
    model: nn.Module | None,
    data: tuple[LabelledImages, LabelledImages | None] | None,
    ring: Callable[[LabelledImages], Callable[[SampledGaussian], object]] | None,
    on_metrics: Callable[[Metrics], object],
) -> Learning:
    from codream_clients.dp_sgd_learner import DPSGDLearner  # Opacus, which takes as long to load as torch

    train, test = load_client_data(client, federation, data)
    train, judge = held_back(federation, train, seed=client.seed, device=client.device)
    common, own = federation.common_model or GIVEN, None
    name = GIVEN if model is not None else common
    if model is None and client.model != common:
        own = HandedDown(
            build_model(client.model, federation, seed=client.seed, device=client.device),
            public_images(federation),
            learning_settings(federation),
            client.seed,
        )
    if client.budget is not None:
        warn_of_weak_delta(client.budget.delta, client.budget.records or len(train))
    if model is None:  # of one seed, so that what of it is fixed is everybody's too
        model = build_model(name, federation, seed=0, device=client.device)
    try:
        learner = DPSGDLearner(
            course,
            model,
            train,
            charge=_uncharged if ring is None else ring(train),
            noise=NoiseSource(),
            device=pick_device(client.device),
            test=test,
            on_metrics=on_metrics,
            own=own,
            name=name,
            records=None if client.budget is None else client.budget.records,
        )
    except ModelRefused as error:
        raise ConfigError(f"model: {error}") from error
    kept = model if own is None else own.model
    return Learning(learner, kept, lambda: None, lambda number, teacher: None, learner.learn, judge)


def _uncharged(charge: SampledGaussian) -> None:
    """Where a script has all clients, no ledger is kept."""


def _of_functions(client: ClientConfig, federation: FederationConfig, tell: Callable[[str], object]) -> Learning:
    if client.answers is None:
        raise ConfigError("answers: found none in client.toml; module:function, (task) -> {block: numbers}, is needed")
    answer = load_own_part(client.answers)
    assert federation.sums is not None  # noqa: S101 - the configuration checks it

    def answered(task: str) -> Callable[[Arrays], dict[str, Any]]:
        return lambda arrays: answer(task)

    learner = FunctionLearner({task: answered(task) for task in federation.sums.vectors}, tell=tell)
    return Learning(learner, None, lambda: None, lambda number, teacher: None, lambda number, publication: None)
