"""The course that a configuration names, made alike by server, clients, simulations and whoever verifies a record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from codream_clients.own_parts import OwnPartError, guarded
from codream_protocols.course import Course
from codream_protocols.courses.codream import CoDream, Dreams
from codream_protocols.courses.dp_sgd import DPSGD, DPSGDOptions, DPSGDSettings
from codream_protocols.courses.generator import CoDreamFast, Fast, GeneratorSettings
from codream_protocols.courses.labels import VOTES, check_learnt_from
from codream_protocols.courses.layouts import Layout
from codream_protocols.courses.numbers import bounded
from codream_protocols.courses.parameters import Averaging, AveragingSettings
from codream_protocols.courses.registry import course_class
from codream_protocols.courses.sums import Sums, SumsPrivacy
from codream_protocols.errors import LocalProtocolError
from codream_protocols.keyschedule import digest
from codream_protocols.settings import Settings, SettingsError, declared
from codream_protocols.specs import Block
from codream_protocols.starts import (
    PHOTOS,
    PICTURES,
    StartRule,
    check_start,
    photographs_digest,
    standardised,
    start_rule,
)
from secure_codream.configuration.federation import (
    DP_SGD,
    PARAMETER_COURSES,
    AveragingTable,
    FastTable,
    FederationConfig,
    learning_settings,
)
from secure_codream.configuration.own_code import load_named
from secure_codream.configuration.reading import ConfigError

FAST_DREAMS = ("batch", "logit_clip", "window")
"""What of `[dreams]` CoDream-fast goes by."""
_TRIED = 1 << 16
"""Numbers of start images that are looked at when a course is made; one image at least."""
_COURSE_METHODS = ("epochs", "specs", "schedule", "start", "task", "absorb", "publication")


def make_course(config: FederationConfig, permitted: Mapping[str, str] | None = None) -> Course:
    """The course of a federation.

    Args:
        config: the federation's configuration.
        permitted: what a client is willing to run of the charter's own code, reference -> digest of its source; None
            goes by the charter alone, as a server and a simulation of one person do.

    Raises:
        ConfigError: settings that do not fit each other, own code that is not permitted, or photographs that decode to
            other pixels here than the charter has.
    """
    course = _made(config, permitted)
    if course.epochs <= config.earlier:
        raise ConfigError(
            f"[federation] rounds: found {config.federation.rounds}, which are {course.epochs} epochs, after "
            f"{config.earlier} that the predecessor has certified; more are needed"
        )
    return course


def _made(config: FederationConfig, permitted: Mapping[str, str] | None) -> Course:
    permissions: list[Mapping[str, str]] = [config.code]
    if permitted is not None:
        permissions.append(permitted)
    name = config.federation.course
    _check_stop(config)
    try:
        if ":" in name:
            return _own_course(name, load_named(name, *permissions), config)
        if name == "codream":
            return _codream(config, permissions)
        if config.privacy is not None and name == DP_SGD:
            raise ConfigError("[privacy] with course 'dp-sgd'; [dp_sgd] is allowed, which has a budget of its own")
        if config.privacy is not None and name in PARAMETER_COURSES:
            raise ConfigError("[privacy] with a course that averages parameters; 'codream' is allowed with it")
        if config.client_privacy is not None and name != "sums":
            raise ConfigError(f"[client_privacy] with course {name!r}; 'codream' and 'sums' are allowed with it")
        if name == "sums":
            return _sums(config)
        if name == "codream-fast":
            _check_fast(config.dreams)
            return CoDreamFast(generator_settings(config))
        if name == DP_SGD:
            _check_public_images(config, permissions)
            return DPSGD(dp_sgd_settings(config))
        return course_class(name)(averaging_settings(config))  # type: ignore[no-any-return]
    except (SettingsError, LocalProtocolError) as error:
        raise ConfigError(f"course {name!r}: {error}") from None


def _check_stop(config: FederationConfig) -> None:
    """An end by held-back figures needs some: of a course that asks for them, from clients that may tell them."""
    stop, course = config.federation.stop_after, config.federation.course
    if stop == 0 or ":" in course:  # an own course goes by its settings as it likes
        return
    lacking = {
        f"course {course!r}; 'codream' is allowed with it": course != "codream",
        "[privacy]; 0 is allowed, since figures without noise would be told": config.record_private,
        "[client_privacy]; 0 is allowed, since there are no metrics": config.client_privacy is not None,
        "held_back = 0 in [learning]; a share above 0 is needed": learning_settings(config).held_back == 0,
    }
    for reason, found in lacking.items():
        if found:
            raise ConfigError(f"[federation] stop_after: found {stop} with {reason}")


def _codream(config: FederationConfig, permissions: list[Mapping[str, str]]) -> CoDream:
    settings, deviation = config.dream_settings(), learning_settings(config).label_deviation
    if settings.matched and config.privacy is not None:
        raise ConfigError(
            "[dreams] matched: found true with [privacy]; false is allowed: no client would tell anything"
        )
    if settings.label_by == VOTES and deviation > 0:
        raise ConfigError(f"[learning] label_deviation: found {deviation} with label_by {VOTES!r}; 0 is allowed")
    rule, images = _tried_start(config, permissions)
    cut = bounded(images, settings.pixel_bound)
    if cut.min() == cut.max() and images.min() < images.max():
        raise ConfigError(
            f"[dreams] pixel_bound: found {settings.pixel_bound:g}, to which all values of start {settings.start!r}, "
            f"{images.min():.4g} to {images.max():.4g}, are cut; {_keeps(images)} keeps them, another mean and std "
            "under [task] too"
        )
    return CoDream(settings, rule, config.client_privacy, stop_after=config.federation.stop_after)


def _check_public_images(config: FederationConfig, permissions: list[Mapping[str, str]]) -> None:
    """Those that DP-SGD's model is handed down on, before it is trained."""
    check_learnt_from(1, config.dreams.batch, config.task.shape)
    _tried_start(config, permissions)


def _tried_start(
    config: FederationConfig, permissions: list[Mapping[str, str]]
) -> tuple[StartRule, np.ndarray[Any, np.dtype[np.float32]]]:
    """The start rule and a few of its images, before an epoch has begun that could not start."""
    rule, (shape, batch) = _start_rule(config, permissions), (config.task.shape, config.dreams.batch)
    try:
        with guarded(f"[dreams] start {config.dreams.start!r}"):
            return rule, _starts(rule, min(batch, max(1, _TRIED // math.prod(shape))), shape)
    except OwnPartError as error:
        raise ConfigError(str(error)) from error


def cut_to_bound(config: FederationConfig) -> tuple[float, int]:
    """The share of the start images' values that `pixel_bound` cuts, 0 to 1, and the least bound that cuts none.

    Raises as `make_course`.
    """
    _, images = _tried_start(config, [config.code])
    return float((np.abs(images) > config.dreams.pixel_bound).mean()), _keeps(images)


def _keeps(images: np.ndarray[Any, np.dtype[np.float32]]) -> int:
    return math.ceil(float(np.abs(images).max()))


def _check_fast(dreams: Dreams) -> None:
    """A generator makes the dreams: what says how they start and are moved would be of no effect."""
    for setting in declared(Dreams):
        found = getattr(dreams, setting.name)
        if setting.name not in FAST_DREAMS and found != setting.default:
            raise ConfigError(
                f"[dreams] {setting.name}: found {found!r} with course 'codream-fast'; it is allowed with 'codream', "
                f"and {', '.join(FAST_DREAMS)} are here"
            )


def _own_course(name: str, make: Any, config: FederationConfig) -> Course:
    try:
        with guarded(f"course {name!r}: {name}(settings)"):
            course = make(config.settings)
            lacking = [method for method in _COURSE_METHODS if not hasattr(course, method)]
    except OwnPartError as error:
        raise ConfigError(str(error)) from error
    if lacking:
        raise ConfigError(f"course {name!r}: found no {', '.join(lacking)}; an own course needs all of `Course`")
    return course  # type: ignore[no-any-return]


def averaging_settings(config: FederationConfig) -> AveragingSettings:
    """Of a course that averages parameters; raises `ConfigError` where the layout is missing and torch is too."""
    table = config.averaging or AveragingTable()
    return AveragingSettings(
        layout=table.layout or model_layout(config), rounds=config.federation.rounds, **_shared(Averaging, table)
    )


def generator_settings(config: FederationConfig) -> GeneratorSettings:
    """Of CoDream-fast; raises as `averaging_settings`, and `SettingsError` for more images than clients can hold."""
    table = config.fast or FastTable()
    window = min(config.dreams.window, config.federation.rounds)
    check_learnt_from(window, table.batches * config.dreams.batch, config.task.shape)
    return GeneratorSettings(
        layout=table.layout or generator_layout(config),
        rounds=config.federation.rounds,
        batch=config.dreams.batch,
        classes=config.task.classes,
        logit_clip=config.dreams.logit_clip,
        **_shared(Fast, table),
    )


def dp_sgd_settings(config: FederationConfig) -> DPSGDSettings:
    """Of DP-SGD through the ring; raises as `averaging_settings`."""
    table = config.dp_sgd
    assert table is not None  # noqa: S101 - the configuration checks it
    return DPSGDSettings(
        layout=table.layout or trained_layout(config), rounds=config.federation.rounds, **_shared(DPSGDOptions, table)
    )


def _shared(kind: type[Settings], table: Settings) -> dict[str, Any]:
    """What a table has of a course's settings."""
    return {setting.name: getattr(table, setting.name) for setting in declared(kind)}


def written_out(config: FederationConfig) -> FederationConfig:
    """The same configuration with what hangs on libraries written out, so that whose are others finds out.

    That are the parameters' names and shapes where the course needs them, and the digest of the photographs where
    dreams start from these.

    Raises:
        ConfigError: without torch, scikit-learn or Pillow, where they are needed; or photographs of another digest than
            the one that is given.
    """
    return _with_layout(_with_photographs(config))


def _with_photographs(config: FederationConfig) -> FederationConfig:
    dreams = config.dreams
    if dreams.start != PHOTOS or config.federation.course == "sums":
        return config
    try:
        found = photographs_digest(_photographs(dreams)).hex()
    except LocalProtocolError as error:
        raise ConfigError(f"[dreams] start {PHOTOS!r}: {error}") from error
    return config.model_copy(update={"dreams": replace(dreams, photographs=found)})


def _with_layout(config: FederationConfig) -> FederationConfig:
    if config.federation.course in PARAMETER_COURSES:
        averaging = config.averaging or AveragingTable()
        if averaging.layout is None:
            averaging = replace(averaging, layout=model_layout(config))
        return config.model_copy(update={"averaging": averaging})
    if config.federation.course == "codream-fast":
        fast = config.fast or FastTable()
        if fast.layout is None:
            fast = replace(fast, layout=generator_layout(config))
        return config.model_copy(update={"fast": fast})
    if config.dp_sgd is not None and config.dp_sgd.layout is None:
        return config.model_copy(update={"dp_sgd": replace(config.dp_sgd, layout=trained_layout(config))})
    return config


def model_layout(config: FederationConfig) -> Layout:
    """Names and shapes of the parameters of `[averaging] model`; raises `ConfigError` without torch."""
    try:
        from codream_clients.parameter_learner import layout_of
        from secure_codream.configuration.assembly import build_model
    except ImportError:
        raise ConfigError(
            "[averaging]: found no layout, and no torch to work it out; `provision` writes it where "
            "secure-codream[client] is installed"
        ) from None
    model = (config.averaging or AveragingTable()).model
    return layout_of(build_model(model, config, seed=0))


def trained_layout(config: FederationConfig) -> Layout:
    """Names and shapes of what is trained of `[dp_sgd] model`; raises `ConfigError` without torch."""
    try:
        from codream_clients.models.layouts import trained_layout as layout_of
        from secure_codream.configuration.assembly import build_model
    except ImportError:
        raise ConfigError(
            "[dp_sgd]: found no layout, and no torch to work it out; `provision` writes it where "
            "secure-codream[client] is installed"
        ) from None
    assert config.dp_sgd is not None  # noqa: S101 - asked for with it alone
    return layout_of(build_model(config.dp_sgd.model, config, seed=0))


def generator_layout(config: FederationConfig) -> Layout:
    """Names and shapes of the generator's parameters; raises `ConfigError` without torch."""
    try:
        from codream_clients.generator_learner import generator_layout as layout_of
    except ImportError:
        raise ConfigError(
            "[fast]: found no layout, and no torch to work it out; `provision` writes it where "
            "secure-codream[client] is installed"
        ) from None
    return layout_of(config.task.shape, (config.fast or FastTable()).noise)


def public_images(config: FederationConfig) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A batch of `[dreams]` as it starts, from a seed that everybody has: what a model is handed down on.

    Raises:
        LocalProtocolError: photographs that this machine decodes to other pixels than the charter's.
    """
    return _starts(_start_rule(config, [config.code]), config.dreams.batch, config.task.shape)


def _starts(rule: StartRule, count: int, shape: tuple[int, int, int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Start images of the seed that everybody has before there is a transcript."""
    return check_start(rule(digest("handed down"), count, shape), count, shape)


def _start_rule(config: FederationConfig, permissions: list[Mapping[str, str]]) -> StartRule:
    dreams, task = config.dreams, config.task
    if ":" in dreams.start:
        return load_named(dreams.start, *permissions)  # type: ignore[no-any-return]
    rule = start_rule(dreams.start, _photographs(dreams) if dreams.start == PHOTOS else ())
    if dreams.start not in PICTURES or task.mean is None or task.std is None:
        return rule
    return standardised(rule, task.mean, task.std, PICTURES[dreams.start])


def _photographs(dreams: Dreams) -> tuple[np.ndarray[Any, Any], ...]:
    from codream_clients.data.photographs import public_photographs

    return public_photographs(None if dreams.photographs is None else bytes.fromhex(dreams.photographs))


def _sums(config: FederationConfig) -> Sums:
    assert config.sums is not None  # noqa: S101 - the configuration checks it
    vectors = {
        task: tuple(
            Block(
                name, block.length, int(block.bound) if block.count else block.bound, "count" if block.count else "real"
            )
            for name, block in sorted(blocks.items())
        )
        for task, blocks in sorted(config.sums.vectors.items())  # the charter's digest does not tell orders apart
    }
    privacy = config.client_privacy
    if config.privacy is not None:
        raise ConfigError(
            "[privacy] with course 'sums'; [client_privacy] is allowed, since sums are of clients, not records"
        )
    noised = (
        None
        if privacy is None
        else SumsPrivacy(
            epsilon=privacy.epsilon, delta=privacy.delta, norm=config.sums.norm, spare_rounds=privacy.spare_rounds
        )
    )
    return Sums(vectors, noised, earlier=config.earlier)
