"""What noised sums of clients' vectors (`[client_privacy]`) charge each record of a client: all that are planned.

With one record more or less a client sends another vector, of the same bound. So a sum that costs rho for the presence
of a client costs a record 4 rho at most, and its votes less (`replaced_rho`). Under `[privacy]`, what a client sends
follows from what is charged already, and nothing of this is.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from codream_clients.privacy.accounting import SampledGaussian, epsilon_of, of_sum
from codream_clients.privacy.ledger import Budget
from codream_protocols.charter import Charter
from codream_protocols.course import Course
from codream_protocols.courses.codream import CoDream
from codream_protocols.courses.labels import VOTES, VOTES_APART
from codream_protocols.distributed_noise import Noise, noise_rho, replaced_rho
from codream_protocols.specs import VectorSpec

SUM = "noised sum"
"""What one is called in a ledger."""


@dataclass(frozen=True)
class SumsPlan:
    """All of them, one by one; what is never begun is given back at the end.

    Attributes:
        course: the federation's, with client-level noise.
        honest: how many shares of noise count: of the smallest set that may be summed, less the colluders.
        earlier: how many rounds the charters before this one had certified.
        charter: see `Planned`.
    """

    course: CoDream
    honest: int
    earlier: int = 0
    charter: bytes = b""

    @classmethod
    def of(cls, course: Course, charter: Charter) -> "SumsPlan":
        """The plan of a federation of this course under this charter."""
        assert isinstance(course, CoDream)  # noqa: S101 - asked for with it alone
        return cls(course, charter.least_honest, charter.earlier, charter.digest)

    @property
    def charges(self) -> Sequence[SampledGaussian]:
        """See `Planned`."""
        return [*self._of(self._rounds[self.earlier :], self.honest), *self._of(self._spare_rounds, self.honest)]

    @property
    def spare(self) -> int:
        """See `Planned`."""
        return len(self._of(self._spare_rounds, self.honest))

    def charge_of(self, rho: float) -> SampledGaussian:
        """Of a sum that costs its client `rho`, as the plan has it: the dearest of those that do."""
        rhos = [self._rho(spec, self.honest) for spec in self._noised if _client_rho(spec, self.honest) == rho]
        return of_sum(max(rhos, default=4 * rho), SUM)

    def epsilon_with(self, shares: int) -> float:
        """Of all rounds, also of earlier charters, where so many shares of noise are there and unknown; 1 or more."""
        return epsilon_of(self._of([*self._rounds, *self._spare_rounds], shares), self.budget.delta, "rdp")

    @property
    def budget(self) -> Budget:
        """See `Planned`: what it comes to, at the delta of the federation."""
        assert self.course.privacy is not None  # noqa: S101 - of such a federation
        delta = self.course.privacy.delta
        return Budget(epsilon_of(self.charges, delta, "rdp"), delta, "rdp")

    @property
    def judgements(self) -> int:
        """See `Planned`."""
        return 0

    @property
    def _noised(self) -> list[VectorSpec]:
        return [spec for spec in self.course.specs(self.honest) if isinstance(spec.noise, Noise)]

    @property
    def _rounds(self) -> list[tuple[int, ...]]:
        return [self.course.schedule(number) for number in range(self.course.epochs)]

    @property
    def _spare_rounds(self) -> list[tuple[int, ...]]:
        assert self.course.privacy is not None  # noqa: S101 - of such a federation
        return self._rounds[-1:] * self.course.privacy.spare_rounds

    def _of(self, rounds: Sequence[tuple[int, ...]], shares: int) -> list[SampledGaussian]:
        """What the noised sums of these rounds charge."""
        counts, specs = Counter(kind for kinds in rounds for kind in kinds), self.course.specs(self.honest)
        return [
            of_sum(self._rho(specs[kind], shares), SUM)
            for kind in sorted(counts)
            if isinstance(specs[kind].noise, Noise)
            for _ in range(counts[kind])
        ]

    @staticmethod
    def _rho(spec: VectorSpec, shares: int) -> float:
        assert isinstance(spec.noise, Noise)  # noqa: S101 - asked for with it alone
        return replaced_rho(spec.noise, spec.length, shares, apart=VOTES_APART if spec.task == VOTES else 2.0)


def _client_rho(spec: VectorSpec, honest: int) -> float:
    assert isinstance(spec.noise, Noise)  # noqa: S101 - asked for with it alone
    return noise_rho(spec.noise, spec.length, honest)
