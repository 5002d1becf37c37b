"""docs/configuration.md: every key of every file that people write."""

from __future__ import annotations

from typing import Any

from codream_clients.learning.settings import DreamLoss, Learning
from codream_clients.privacy.settings import PrivacySettings
from codream_protocols.courses.codream import ClientPrivacy, Dreams
from codream_server.settings import Timing
from secure_codream.audit.settings import AuditConfig, AuditTable
from secure_codream.audit.settings import SourceTable as AuditSource
from secure_codream.configuration.client import BudgetTable, ClientConfig, DataTable, PolicyTable
from secure_codream.configuration.federation import (
    AggregationTable,
    AveragingTable,
    FastTable,
    FederationConfig,
    FederationTable,
    NumbersTable,
    PredecessorTable,
    SumsTable,
    TaskTable,
)
from secure_codream.configuration.reference import table_in_markdown
from secure_codream.experiments.grid import (
    CommunicationTable,
    CompareConfig,
    CompareTable,
    SourceTable,
    VariantTable,
)
from secure_codream.experiments.sweep import SweepTable

HEAD = """# Configuration

Every key of every file that people write, from the declarations in the code: `python -m secure_codream.documents docs`
writes this page, and a test holds it to them. A value out of its range is refused with the key, what was found and what
is allowed; so is a key that no table has. [federations.md](federations.md) has complete examples, and
[`examples/`](../examples) files to start from."""

FILES: dict[str, tuple[str, tuple[tuple[str, type[Any]], ...]]] = {
    "config.toml": (
        "What all parties of a federation agree on. All of it but `[timing]` is the charter.",
        (
            ("The whole file", FederationConfig),
            ("`[federation]`", FederationTable),
            ("`[task]`", TaskTable),
            ("`[dreams]`", Dreams),
            ("`[learning]`", Learning),
            ("`[learning.loss]`", DreamLoss),
            ("`[averaging]`", AveragingTable),
            ("`[fast]`", FastTable),
            ("`[sums]`", SumsTable),
            ("`[sums.vectors.NAME.BLOCK]`", NumbersTable),
            ("`[aggregation]`", AggregationTable),
            ("`[privacy]`", PrivacySettings),
            ("`[client_privacy]`", ClientPrivacy),
            ("`[predecessor]`", PredecessorTable),
            ("`[timing]`", Timing),
        ),
    ),
    "client.toml": (
        "A client's own. `provision` writes it; its owner completes it.",
        (
            ("The whole file", ClientConfig),
            ("`[data]`", DataTable),
            ("`[policy]`", PolicyTable),
            ("`[budget]`", BudgetTable),
        ),
    ),
    "A comparison's or a sweep's file": (
        "For `secure-codream compare` and `sweep`. `[dreams]`, `[learning]` and `[aggregation]` are config.toml's.",
        (
            ("The whole file", CompareConfig),
            ("`[compare]`", CompareTable),
            ("`[data]`", SourceTable),
            ("`[variants.NAME]`", VariantTable),
            ("`[communication]`", CommunicationTable),
            ("`[sweep]`", SweepTable),
        ),
    ),
    "An audit's file": (
        "For `secure-codream audit`.",
        (
            ("The whole file", AuditConfig),
            ("`[audit]`", AuditTable),
            ("`[data]`", AuditSource),
        ),
    ),
}
"""File -> what it is, and the title and the class of each of its tables."""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for file, (about, tables) in FILES.items():
        parts += [f"## {file}", about, *(table_in_markdown(title, table) for title, table in tables)]
    return "\n\n".join(parts) + "\n"
