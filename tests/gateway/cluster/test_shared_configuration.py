"""Which kinds of shared configuration a member follows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import pytest
from fakes.store_client import make_store

from hostler.gateway.cluster.shared_configuration import SharedConfiguration
from hostler.gateway.cluster_settings import ClusterSettings


async def apply(text: str) -> str:
    return ""


@pytest.mark.parametrize(
    ("token", "accept", "followed"),
    [
        ("secret", ("profiles", "keys"), ["keys", "profiles"]),
        ("secret", ("keys",), ["keys"]),
        ("secret", (), []),
        (None, ("profiles", "keys"), []),
    ],
)
def test_a_member_follows_what_it_accepts_if_it_has_a_token(
    tmp_path: Path, token: str | None, accept: tuple[Literal["profiles", "keys"], ...], followed: list[str]
) -> None:
    settings = ClusterSettings(store="redis://127.0.0.1:1", name="home", accept=accept)
    reports: list[int] = []
    shared = SharedConfiguration(
        make_store(settings.store), settings, token, state=tmp_path.joinpath, clock=time.monotonic,
        on_state=lambda: reports.append(1),
    )  # fmt: skip
    shared.follow("keys", apply)
    shared.follow("profiles", apply)
    assert [each.kind for each in shared.states] == followed
    assert len(reports) == len(followed)
