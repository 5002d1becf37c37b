"""A Ray cluster (Moritz et al., OSDI 2018): an existing one, or one of this machine for as long as it is used.

The package, and whatever own code a run names, must be installed on every machine of a cluster, in the same version.
"""

from __future__ import annotations

import os
from typing import Any

from secure_codream.extras import require


class Cluster:
    """A connection; `close` it. A cluster made here sends no usage statistics, unless the environment asks for it.

    Attributes:
        ray: the module, connected.

    Args:
        workers: processors of a cluster of this machine.
        address: of an existing one, as `ray.init` takes it; None makes one of this machine, and `close` ends it.

    Raises:
        ExtraMissing: Ray is not installed.
        ConnectionError: no cluster at that address.
    """

    def __init__(self, workers: int, address: str | None = None) -> None:
        require("ray")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self.ray: Any = ray
        self._owns = not ray.is_initialized()  # a program that has connected itself stays so
        if self._owns:
            own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)

    def close(self) -> None:
        """Leave the cluster."""
        if self._owns:
            self.ray.shutdown()
