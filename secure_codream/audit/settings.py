"""An audit's settings: one TOML file, flags above it, all checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import doc
from pydantic import Field, model_validator

from secure_codream.configuration.reading import Table, check, read_toml


class SourceTable(Table):
    """`[data]`: the images of an audit's clients.

    Relative paths start at the folder where the process does.
    """

    source: Annotated[str, doc("as in a client's `[data]`")] = "digits"
    root: Annotated[Path | None, doc("the folder where torchvision's sets lie")] = None
    per_client: Annotated[int, Field(ge=10, le=100_000), doc("images of each client, canaries apart")] = 100


class AuditTable(Table):
    """`[audit]`: the claim, the training under audit, and how hard it is tried."""

    course: Annotated[
        Literal["codream", "dp-sgd"],
        doc(
            "what is under audit: private training in a federation that dreams, or DP-SGD through the ring's sums; "
            "of the latter `runs`, `clients` and `steps` are taken, and no other key between here and `confidence`"
        ),
    ] = "codream"
    model: Annotated[str, doc("every client's, without batch norm")] = "mlp_gn"
    epsilon: Annotated[float, Field(gt=0, le=1000), doc("the claim, for the audited client's whole run")] = 2.0
    delta: Annotated[float, Field(gt=0, lt=1), doc("the claim's")] = 1e-5
    noise_multiplier: Annotated[
        Annotated[float, Field(ge=0.05, le=1e6)] | None,
        doc("of training, instead of epsilon; the claim then follows from it"),
    ] = None
    without_noise: Annotated[
        bool, doc("whether the noise is left out of all mechanisms under the same claim: the audit must find it")
    ] = False
    canaries: Annotated[
        int, Field(ge=20, le=100_000, multiple_of=2), doc("m, images of noise, each trained on by its own coin")
    ] = 400
    runs: Annotated[
        int, Field(ge=20, le=1_000_000, multiple_of=2), doc("of the mechanism alone, in each of two worlds")
    ] = 800
    clients: Annotated[int, Field(ge=3, le=50), doc("of the federation, the audited one among them")] = 3
    rounds: Annotated[int, Field(ge=1, le=100), doc("of the federation")] = 1
    steps: Annotated[int, Field(ge=1, le=100), doc("secure steps of dream updates a round, or of the ring")] = 4
    batch: Annotated[int, Field(ge=2, le=10_000), doc("images of a batch of dreams")] = 128
    epochs: Annotated[int, Field(ge=1, le=10_000), doc("of private training, in the warm-up")] = 40
    batch_size: Annotated[int, Field(ge=1, le=100_000), doc("records expected in a step of private training")] = 64
    lr: Annotated[float, Field(gt=0, le=1000), doc("rate of private training")] = 0.3
    max_grad_norm: Annotated[
        float, Field(gt=0, le=1000), doc("Euclidean norm to which each record's gradient is clipped")
    ] = 5.0
    confidence: Annotated[float, Field(ge=0.5, lt=1), doc("of all lower bounds together")] = 0.95
    seed: Annotated[int, Field(ge=0, lt=1 << 32), doc("of data, coins, models, dreams and noise: an audit repeats")] = 0

    @model_validator(mode="after")
    def _one_claim(self) -> AuditTable:
        if self.noise_multiplier is not None and "epsilon" in self.model_fields_set:
            raise ValueError("epsilon and noise_multiplier; one of them is allowed, the other follows")
        if self.noise_multiplier is not None and self.course == "dp-sgd":
            raise ValueError("noise_multiplier with course 'dp-sgd'; epsilon is allowed, from which its noise follows")
        return self


class AuditConfig(Table):
    """The whole of an audit's file."""

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
