"""The algorithms that a comparison knows, by the names that configurations and tables use.

Each entry names a class beside this file, the options that make a variant of it, and what it asks of models: one
architecture, because parameters are averaged, or layers that never mix records. Classes are loaded on demand, so that
names can be checked without a tensor library. Wherever a name is taken, `my_module:MyAlgorithm` is too: a callable that
returns an `Algorithm`, WHICH RUNS THAT CODE; its attributes `one_architecture` and `record_private`, if any, say what
the flags here say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from codream_clients.own_parts import OwnPartError, guarded, is_reference, load_own_part
from secure_codream.configuration.reading import ConfigError
from secure_codream.experiments.problem import Algorithm

ALONE, CENTRAL = "isolated", "centralised"
"""The floor and the ceiling of every gap closure."""
USUAL_PRIVACY: Mapping[str, Any] = {"epsilon": 8.0}
"""`[privacy]` of a private algorithm that is given none."""
USUAL_RING: Mapping[str, Any] = {
    "epsilon": 8.0,
    "delta": 1e-4,
    "sample_rate": 0.2,
    "batch_size": 200.0,
    "steps": 50,
    "spare_rounds": 0,
}
"""`[dp_sgd]` of DP-SGD through the ring that is given none: for a thousand images of small data in all."""


@dataclass(frozen=True)
class Entry:
    """How an algorithm is made.

    Attributes:
        name: as it is registered, or the reference itself of one that is not: what results are kept under.
        reference: module:name of a callable that returns it.
        options: keyword arguments of that callable.
        one_architecture: whether all clients must have the same model.
        record_private: whether models are trained record by record, which batch norm does not allow.
    """

    name: str
    reference: str
    options: Mapping[str, Any] = field(default_factory=dict)
    one_architecture: bool = False
    record_private: bool = False

    @property
    def named_values(self) -> Iterator[tuple[str, str]]:
        """Whatever the options, tables within too, say in words: (key, text), the keys of tables with dots between."""
        return _texts(self.options, "")

    def make(self) -> Algorithm:
        """The algorithm itself.

        Raises:
            ConfigError: it cannot be loaded, does not take the options, or has no `run`.
        """
        try:
            make = load_own_part(self.reference)
            with guarded("making it"):
                algorithm = make(**self.options)
        except OwnPartError as error:
            options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
            raise ConfigError(f"algorithm {self.reference}({options}): {error}") from error
        if not callable(getattr(algorithm, "run", None)):
            found = type(algorithm).__name__
            raise ConfigError(f"algorithm {self.reference}: found {found}; an object with `run(problem)` is needed")
        return algorithm  # type: ignore[no-any-return]


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, below in value.items():
            yield from _texts(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, Sequence):
        for below in value:
            yield from _texts(below, key)


def _here(
    name: str,
    module: str,
    made: str,
    /,
    *,
    one_architecture: bool = False,
    record_private: bool = False,
    **options: Any,
) -> Entry:
    return Entry(
        name, f"secure_codream.experiments.algorithms.{module}:{made}", options, one_architecture, record_private
    )


_KNOWN = (
    _here(ALONE, "isolated", "Isolated"),
    _here("codream", "codream", "CoDream"),
    _here("codream-independent", "codream", "CoDream", kind="independent"),
    _here("codream-noise", "codream", "CoDream", kind="noise"),
    _here("codream-dp", "private", "PrivateCoDream", record_private=True, privacy=USUAL_PRIVACY),
    _here("isolated-dp", "private", "PrivateIsolated", record_private=True, privacy=USUAL_PRIVACY),
    _here("centralised-dp", "private", "PrivateCentralised", record_private=True, privacy=USUAL_PRIVACY),
    _here("dp-sgd", "dp_sgd", "DPSGD", record_private=True, table=USUAL_RING),
    _here("codream-fast", "codream_fast", "CoDreamFast"),
    _here("avgkd", "avgkd", "AvgKD"),
    _here("fedavg", "fedavg", "FedAvg", one_architecture=True),
    _here("fedprox", "fedprox", "FedProx", one_architecture=True),
    _here("scaffold", "scaffold", "Scaffold", one_architecture=True),
    _here("moon", "moon", "Moon", one_architecture=True),
    _here("fedgen", "fedgen", "FedGen", one_architecture=True),
    _here(CENTRAL, "centralised", "Centralised"),
)
ALGORITHMS: Mapping[str, Entry] = {entry.name: entry for entry in _KNOWN}


def find(name: str, options: Mapping[str, Any] | None = None) -> Entry:
    """The entry of a name or of module:name, with more options than its own.

    Raises:
        ConfigError: no such algorithm; the text lists those allowed.
    """
    options = options or {}
    if is_reference(name):
        asked = (bool(getattr(_loaded(name), flag, False)) for flag in ("one_architecture", "record_private"))
        return Entry(name, name, dict(options), *asked)
    if name not in ALGORITHMS:
        raise ConfigError(f"found {name!r}; allowed are {', '.join(ALGORITHMS)}, or module:name")
    known = ALGORITHMS[name]
    return replace(known, options={**known.options, **options})


def _loaded(reference: str) -> Any:
    try:
        return load_own_part(reference)
    except OwnPartError as error:
        raise ConfigError(str(error)) from error
