"""An audit's settings: one TOML file, flags above it, all checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from secure_codream.configuration.reading import Table, check, read_toml


class SourceTable(Table):
    """`[data]`: `source` and `root` as in a client's; `per_client` images for each client, canaries apart."""

    source: str = "digits"
    root: Path | None = None
    per_client: Annotated[int, Field(ge=10, le=100_000)] = 100


class AuditTable(Table):
    """`[audit]`: the claim, the training under audit, and how hard it is tried.

    Attributes:
        model: every client's, without batch norm.
        epsilon, delta: the claim, for the audited client's whole run.
        noise_multiplier: of training, instead of epsilon; the claim then follows from it.
        without_noise: leave the noise out of all mechanisms and claim the same: the audit must find it.
        canaries: m, even.
        runs: of the mechanism alone, in each of two worlds; even.
        clients, rounds, steps, batch: of the federation.
        epochs, batch_size, lr, max_grad_norm: of private training.
        confidence: of all lower bounds together.
    """

    model: str = "mlp_gn"
    epsilon: Annotated[float, Field(gt=0, le=1000)] = 2.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    noise_multiplier: Annotated[float, Field(ge=0.05, le=1e6)] | None = None
    without_noise: bool = False
    canaries: Annotated[int, Field(ge=20, le=100_000, multiple_of=2)] = 400
    runs: Annotated[int, Field(ge=20, le=1_000_000, multiple_of=2)] = 400
    clients: Annotated[int, Field(ge=3, le=50)] = 3
    rounds: Annotated[int, Field(ge=1, le=100)] = 1
    steps: Annotated[int, Field(ge=1, le=100)] = 4
    batch: Annotated[int, Field(ge=2, le=10_000)] = 128
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 40
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = 64
    lr: Annotated[float, Field(gt=0, le=1000)] = 0.3
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 5.0
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0

    @model_validator(mode="after")
    def _one_claim(self) -> AuditTable:
        if self.noise_multiplier is not None and "epsilon" in self.model_fields_set:
            raise ValueError("epsilon and noise_multiplier; one of them is allowed, the other follows")
        return self


class AuditConfig(Table):
    """The whole file."""

    audit: AuditTable = AuditTable()
    data: SourceTable = SourceTable()


def read_audit(path: Path | None, flags: Mapping[str, Mapping[str, Any]]) -> AuditConfig:
    """The file's settings, if there is one, with the flags' (table -> key -> value) over them.

    Raises:
        ConfigError: with the key, what was found and what is allowed.
    """
    content = {} if path is None else read_toml(path)
    for table, values in flags.items():
        existing = content.get(table, {})
        if values and isinstance(existing, dict):
            content[table] = {**existing, **values}
    config: AuditConfig = check("flags" if path is None else path.name, AuditConfig, content)
    return config
