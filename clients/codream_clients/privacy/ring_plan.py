"""What DP-SGD through the ring charges a client's records: every step that is planned, spare ones too, one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

from codream_clients.privacy.accounting import SampledGaussian, of_records
from codream_clients.privacy.ledger import Budget
from codream_protocols.charter import Charter
from codream_protocols.course import Course
from codream_protocols.courses.dp_sgd import DPSGD
from codream_protocols.errors import VectorRefused
from codream_protocols.record_noise import RecordNoise, record_rho
from codream_protocols.renyi import divergences, epsilon_of
from codream_protocols.specs import VectorSpec

STEP = "step in the ring"
"""What a step is called in a ledger."""


def charge_of_step(course: DPSGD, spec: VectorSpec) -> SampledGaussian:
    """What a client's records pay for one step, as the vector's own noise has it.

    Raises:
        VectorRefused: a vector without the noise of a sum over records.
    """
    if not isinstance(spec.noise, RecordNoise):
        raise VectorRefused(f"a vector {spec.task!r} without noise for records", "one with it")
    return of_records(spec.noise, spec.length, course.settings.sample_rate, STEP)


@dataclass(frozen=True)
class RingPlan:
    """All of it; a step that is never begun is given back at the end.

    Attributes:
        course: the federation's.
        honest: how many shares of noise count: of the smallest set that may be summed, less the colluders.
        earlier: how many rounds the charters before this one had certified.
        charter: see `Planned`.
    """

    course: DPSGD
    honest: int
    earlier: int = 0
    charter: bytes = b""

    @classmethod
    def of(cls, course: Course, charter: Charter) -> "RingPlan":
        """The plan of a federation of this course under this charter."""
        assert isinstance(course, DPSGD)  # noqa: S101 - asked for with it alone
        return cls(course, charter.least_honest, charter.earlier, charter.digest)

    @property
    def step(self) -> SampledGaussian:
        """The charge of one step."""
        (spec,) = self.course.specs(self.honest)
        return charge_of_step(self.course, spec)

    @property
    def charges(self) -> Sequence[SampledGaussian]:
        """See `Planned`."""
        return (self.step,) * (self.course.planned_steps - self.earlier * self.course.settings.steps)

    @property
    def spare(self) -> int:
        """See `Planned`."""
        return self.course.settings.spare_rounds * self.course.settings.steps

    def epsilon_with(self, shares: int) -> float:
        """Of all rounds, also of earlier charters, where so many shares of noise are there and unknown; 1 or more."""
        (spec,) = self.course.specs(self.honest)
        assert isinstance(spec.noise, RecordNoise)  # noqa: S101 - of this course
        step = divergences(record_rho(spec.noise, spec.length, shares), self.course.settings.sample_rate)
        return epsilon_of(self.course.planned_steps * step, self.course.settings.delta)

    @property
    def budget(self) -> Budget:
        """See `Planned`."""
        return Budget(self.course.settings.epsilon, self.course.settings.delta, "rdp")

    @property
    def judgements(self) -> int:
        """See `Planned`: none is charged."""
        return 0
