"""A real Ray cluster on this machine: a head without processors and nodes with a raylet each, stopped by handle."""

import os
import secrets
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

QUICK_DEATH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""A lost node is noticed after some 4 seconds in place of 13."""


class LocalCluster:
    """Workers inherit the environment that the cluster is started in, as on machines with a role of their own.

    Every node and every driver needs the cluster's token, as with the files in `study/clusters/`.
    """

    def __init__(self, patch: pytest.MonkeyPatch, environment: dict[str, str] | None = None) -> None:
        from ray._private.authentication_test_utils import reset_auth_token_state
        from ray.cluster_utils import Cluster

        support = str(Path(__file__).parent)
        path = os.pathsep.join(filter(None, [support, os.environ.get("PYTHONPATH", "")]))
        for name, value in {"PYTHONPATH": path, **(environment or {})}.items():
            patch.setenv(name, value)
        self.token = secrets.token_hex(32)
        self._folder = tempfile.TemporaryDirectory(prefix="ray-token-")
        file = Path(self._folder.name) / "auth_token"
        file.write_text(f"{self.token}\n")
        self._login = pytest.MonkeyPatch()
        self._login.setenv("RAY_AUTH_MODE", "token")
        self._login.setenv("RAY_AUTH_TOKEN_PATH", str(file))
        self._login.delenv("RAY_AUTH_TOKEN", raising=False)
        reset_auth_token_state()
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_DEATH},
        )
        self.address: str = self._cluster.address

    def add(self, cpus: int = 1, gpus: int = 0) -> Any:
        """A node more. Returns: its handle."""
        return self._cluster.add_node(num_cpus=cpus, num_gpus=gpus)

    def nodes(self) -> dict[str, Any]:
        """Handles of the nodes by the id that Ray gave them, the head's left out."""
        return {node.node_id: node for node in self._cluster.worker_nodes}

    def kill_raylet(self, node: Any) -> None:
        """SIGKILL for the raylet alone; its workers are left to find out."""
        node.kill_raylet(check_alive=False)

    def kill_head(self) -> None:
        """SIGKILL for the head's server alone."""
        self._cluster.head_node.kill_gcs_server(check_alive=False)

    def remove(self, node: Any) -> None:
        """Ends a node with all its processes, without warning."""
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        from ray._private.authentication_test_utils import reset_auth_token_state

        self._cluster.shutdown()
        self._login.undo()
        reset_auth_token_state()
        self._folder.cleanup()

    def __enter__(self) -> "LocalCluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
