"""A participant whose every look at its own records is paid for: `Participant`, privately.

Of the records it uses a noisy histogram, a model trained by DP-SGD and, if wanted, noisy feature statistics and noisy
counts of held-back images that are right. It leaves out what would look past them: own images in distillation, and
accuracy on the records. Its accuracy on test images is measured as ever; those are not covered by the guarantee, and a
client to whom they matter leaves them out.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.learning.dreaming import ChannelStatistics
from codream_clients.learning.judge import Judge
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.models.gate import trial_images
from codream_clients.models.refusals import GIVEN
from codream_clients.privacy.gate import examine_private, modes_of
from codream_clients.privacy.histogram import noisy_histogram
from codream_clients.privacy.judge import NoisedJudge
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.plan import PrivacyPlan, rounds_trained
from codream_clients.privacy.releases import Iterates, Release, Releases
from codream_clients.privacy.statistics import group_norms, private_statistics
from codream_clients.privacy.training import PrivateTraining
from codream_protocols.settings import SettingsError

HISTOGRAM_NOISE, STATISTICS_NOISE = 1000001, 1000002  # apart from a round's


def private_learning(settings: LearningSettings, plan: PrivacyPlan, trained: int = 0) -> LearningSettings:
    """The settings with the plan's epochs of local training in place of their own.

    `trained`: rounds that earlier processes of this client have trained in, and paid for. Those of `training_rounds`
    that are left train; a client that has none left goes on learning from dreams, instead of being refused.
    """
    privacy = plan.settings
    left = None if privacy.training_rounds is None else max(0, privacy.training_rounds - trained)
    return replace(
        settings, warm_up_epochs=privacy.warm_up_epochs, local_epochs=privacy.round_epochs, training_rounds=left
    )


def private_histogram(
    data: LabelledImages, plan: PrivacyPlan, releases: Releases, noise: NoiseSource
) -> NDArray[np.float32]:
    """The histogram of the labels, (K,), released once; see `noisy_histogram`."""

    def release(iterates: Iterates) -> Release:
        counts = noisy_histogram(data.class_counts, plan.histogram.noise_multiplier, noise.stream(HISTOGRAM_NOISE))
        return {"counts": torch.from_numpy(counts)}

    counts: NDArray[np.float32] = releases.once(plan.histogram, release)["counts"].numpy()
    return counts


def require_private_model(
    model: nn.Module, images: LabelledImages, plan: PrivacyPlan, device: torch.device, name: str
) -> None:
    """Check, on noise of the images' shape, that `plan` can train `model` on such images.

    Raises:
        ModelRefused: it cannot be trained privately.
        SettingsError: several views of images that are not varied.
    """
    if plan.settings.views > 1 and images.augment == "none":
        raise SettingsError(
            f"views is {plan.settings.views} under [privacy], and augment 'none' under this client's [data]; 1 is "
            "allowed with it, or 'shift', 'affine' or 'flip-crop', since the views would all be the same"
        )
    examine_private(
        model,
        trial_images(images.shape, classes=images.classes, device=device),
        classes=images.classes,
        name=name,
        modes=modes_of(plan.settings),
        statistics=plan.statistics is not None,
    )


def private_training(
    settings: LearningSettings,
    plan: PrivacyPlan,
    data: LabelledImages,
    releases: Releases,
    noise: NoiseSource,
    device: torch.device,
    *,
    warmed_up: bool = False,
) -> tuple[PrivateTraining, NDArray[np.float32]]:
    """Training under `plan`, and the noisy histogram (K,) that it and everything else goes by."""
    counts = private_histogram(data, plan, releases, noise)
    balanced = counts if settings.balanced else None
    return PrivateTraining(plan, balanced, releases, noise, device, warmed_up=warmed_up), counts


def private_participant(
    settings: LearningSettings,
    plan: PrivacyPlan,
    model: nn.Module,
    train: LabelledImages,
    test: LabelledImages | None,
    seed: int,
    device: torch.device,
    *,
    releases: Callable[[], Releases],
    noise: NoiseSource,
    name: str = GIVEN,
    warmed_up: bool = False,
    judge: Judge | None = None,
) -> Participant:
    """A participant under `plan`; the histogram is released here, the rest when the participant is asked to learn.

    `warmed_up`: the model is to be that of an earlier process, which goes on with `begin`: all training is a round's.
    `judge`: of held-back images. Where the plan pays for it, it is told noised counts of them, and rolls rounds back;
    else it looks at them without noise, and the weights that it finds best are kept, and never answer.

    `releases` is called once model and settings have passed: what is refused does not even begin a ledger.

    Raises what `require_private_model` does, `SettingsError` for an own_weight above 0, and whatever `releases` raises
    where the budget does not allow a mechanism.
    """
    require_private_model(model, train, plan, device, name)
    if settings.own_weight > 0:
        raise SettingsError(
            f"own_weight is {settings.own_weight} under [privacy]; 0 is allowed, since distillation would use the own "
            "images past the budget"
        )
    opened = releases()
    noised = judge is not None and plan.judgements > 0
    if judge is not None and noised:
        judge = NoisedJudge(judge, plan, opened, noise, device)
    training, counts = private_training(settings, plan, train, opened, noise, device, warmed_up=warmed_up)
    return Participant(
        private_learning(settings, plan, rounds_trained(opened.spent)),
        model,
        train,
        test,
        seed,
        device,
        local_training=training,
        class_counts=counts,
        feature_statistics=_statistics(plan, train, float(counts.sum()), opened, noise, device),
        judge=judge,
        rolls_back=noised,
    )


def _statistics(
    plan: PrivacyPlan,
    data: LabelledImages,
    count: float,
    releases: Releases,
    noise: NoiseSource,
    device: torch.device,
) -> Callable[[nn.Module], ChannelStatistics] | None:
    charge = plan.statistics
    if charge is None:
        return None

    def measure(model: nn.Module) -> ChannelStatistics:
        def release(iterates: Iterates) -> Release:
            statistics = private_statistics(
                model,
                data,
                count=count,
                noise_multiplier=charge.noise_multiplier,
                stream=noise.stream(STATISTICS_NOISE),
                device=device,
            )
            return {f"{n}.{m}": part for n, pair in enumerate(statistics) for m, part in enumerate(pair)}

        kept = releases.once(charge, release)
        return [(kept[f"{n}.0"].to(device), kept[f"{n}.1"].to(device)) for n in range(len(group_norms(model)))]

    return measure
