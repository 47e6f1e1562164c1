"""What other gateways are told of a host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hostler.gateway.cluster_view import GatewayHost, HostElsewhere, HostModel, gateway_host
from hostler.supervisor.contract import HostStatus, ModelStatus
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.views import ModelView


def host(**fields: Any) -> Host:
    view = ModelView(model="m", phase="ready", running=1, parallel=2, waiting=3, draining=False, load_s=1.0)
    known = {"name": "pc", "reachable": True, "serving": 1, "waiting": 3, "models": lambda: (view,), **fields}
    return cast(Host, SimpleNamespace(**known))


def test_a_host_is_shown_with_its_models_and_their_memory() -> None:
    models = (ModelStatus(model="m", state="ready", since=0.0, memory_bytes=5, gpu_bytes=2),)
    status = HostStatus(models=models, generation=7, draining=True)
    assert gateway_host(host(status=status)) == GatewayHost(
        7,
        HostElsewhere(
            name="pc", reachable=True, draining=True, serving=1, waiting=3, memory_bytes=7,
            models=(HostModel(model="m", phase="ready", running=1, parallel=2, waiting=3),),
        ),
    )  # fmt: skip


def test_nothing_is_known_of_a_host_that_was_never_reached() -> None:
    assert gateway_host(host(status=None)) is None
