"""How a client trains under record-level differential privacy: the settings, without any tensor library."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, doc

from codream_protocols.courses.numbers import MeanOfWeights
from codream_protocols.settings import MOST, Settings, SettingsError

AccountantName = Literal["prv", "rdp"]
GradSampleMode = Literal["hooks", "ghost", "auto"]


class PrivacySettings(Settings):
    """`[privacy]`: how a client trains under record-level differential privacy."""

    epsilon: Annotated[float, Gt(0), Le(MOST), doc("what everything together may cost a record, at `delta`")]
    delta: Annotated[
        Annotated[float, Gt(0), Lt(1)] | None,
        doc("chance that the bound fails; a tenth of 1/n unless given, and from 1/n on a warning"),
    ] = None
    records: Annotated[
        Annotated[int, Ge(1)] | None,
        doc(
            "n as it may be known, so that the rate of sampling follows from no record; unless given, the number of a "
            "client's images, which then counts as public"
        ),
    ] = None
    batch_size: Annotated[int, Ge(1), doc("records expected in a step of Poisson sampling")] = 512
    warm_up_epochs: Annotated[int, Ge(1), doc("n / batch_size steps each, before the first round")] = 12
    round_epochs: Annotated[
        int, Ge(0), doc("the same in every round that trains; 0 leaves the whole budget to the warm-up")
    ] = 0
    training_rounds: Annotated[
        Annotated[int, Ge(1)] | None,
        doc("the first so many rounds train, and share the budget with the warm-up; all unless given"),
    ] = None
    max_grad_norm: Annotated[
        float, Gt(0), Le(MOST), doc("Euclidean norm to which each record's gradient is clipped")
    ] = 0.3
    lr: Annotated[float, Gt(0), Le(MOST), doc("rate of SGD, for the clipped gradients' sum over batch_size")] = 2.0
    momentum: Annotated[float, Ge(0), Lt(1), doc("Nesterov's")] = 0.0
    views: Annotated[
        int,
        Ge(1),
        Le(256),
        doc(
            "variations of a record's image of which its gradient is the mean, before it is clipped, so that they cost "
            "time alone; more than 1 needs an `augment` in every client's `[data]`, and mode hooks"
        ),
    ] = 1
    averaging: MeanOfWeights = 0.0
    histogram_share: Annotated[float, Gt(0), Lt(1), doc("of epsilon, for the histogram of labels")] = 0.1
    statistics_share: Annotated[
        float, Ge(0), Lt(1), doc("of epsilon, for the feature statistics; 0 leaves them, and R_bn, out")
    ] = 0.0
    judge_noise: Annotated[
        float,
        Ge(0),
        Le(10_000),
        doc(
            "deviation of the noise on how many of the images that `held_back` of `[learning]` keeps apart are right, "
            "told to the judge of each round; 0 tells it nothing, and no round is rolled back"
        ),
    ] = 20.0
    accountant: Annotated[AccountantName, doc("what adds up the costs")] = "prv"
    mode: Annotated[
        GradSampleMode,
        doc(
            "hooks keep every record's gradient, ghost clipping computes norms alone (Li et al., ICLR 2022), auto "
            "takes what is faster here; they round differently"
        ),
    ] = "hooks"
    physical_batch: Annotated[
        int,
        Ge(1),
        doc("images that go through the model at a time, of views or not; it changes memory and speed alone"),
    ] = 128

    def _check(self) -> None:
        share = self.histogram_share + self.statistics_share
        if share >= 1:
            raise SettingsError(
                f"histogram_share and statistics_share are {share:g} together; less than 1 is needed, the rest is for "
                "training"
            )
        if self.views > 1 and self.mode != "hooks":
            raise SettingsError(
                f"mode is {self.mode!r} with views {self.views}; 'hooks' is allowed, since ghost clipping knows the "
                "norms of single images' gradients alone"
            )
