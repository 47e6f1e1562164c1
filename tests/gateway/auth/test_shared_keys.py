"""Keys that all gateways of a cluster share, beside a gateway's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.gateway.auth import keys
from hostler.gateway.auth.bind_policy import key_mistakes, keys_in_force
from hostler.gateway.auth.keys import KeyRing
from hostler.gateway.auth.shared_keys import SharedKeysFile
from hostler.gateway.cluster_settings import ClusterSettings
from hostler.gateway.gateway_settings import GatewaySettings
from hostler.gateway.settings import Settings
from hostler.gateway.shared_files import Refused, shared_file

pytestmark = pytest.mark.anyio


class Gateway:
    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.own = folder / "keys"
        self.anna = keys.add(self.own, "anna", ["infer"])
        self.file = folder / "state" / "shared"
        self.ring = KeyRing(self.own, shared=self.file, clock=lambda: self.now)
        self._shared = SharedKeysFile(self.file, self.ring)

    async def apply(self, text: str) -> str:
        self.now += 2
        return await self._shared.apply(text)

    def admits(self, key: str) -> bool:
        self.now += 2
        return self.ring.client(key) is not None


async def test_shared_keys_are_valid_beside_the_own_ones_until_they_are_not_shared(tmp_path: Path) -> None:
    gateway, file = Gateway(tmp_path), tmp_path / "published"
    bob = keys.add(file, "bob", ["infer"])
    assert await gateway.apply(file.read_text()) == ""
    assert gateway.admits(gateway.anna) and gateway.admits(bob)
    assert gateway.file.stat().st_mode & 0o777 == 0o600
    keys.revoke(file, "bob")
    assert await gateway.apply(file.read_text()) == ""
    assert gateway.admits(gateway.anna) and not gateway.admits(bob)
    assert await gateway.apply("") == ""
    assert gateway.admits(gateway.anna)


async def test_a_key_of_the_gateway_wins_over_a_shared_one_of_its_name(tmp_path: Path) -> None:
    gateway, file = Gateway(tmp_path), tmp_path / "published"
    other = keys.add(file, "anna", ["operate"])
    assert await gateway.apply(file.read_text()) == "its own file has anna"
    assert not gateway.admits(other)
    assert [each.name for each in gateway.ring.records()] == ["anna"]
    keys.revoke(gateway.own, "anna")
    assert gateway.admits(other) and not gateway.admits(gateway.anna)


async def test_what_is_no_key_file_is_refused(tmp_path: Path) -> None:
    gateway, file = Gateway(tmp_path), tmp_path / "published"
    bob = keys.add(file, "bob", ["infer"])
    await gateway.apply(file.read_text())
    for text in ('{"name": "eve"}', "garbage", "[" * 100_000):
        with pytest.raises(Refused, match="keys:1: is not a key record"):
            await gateway.apply(text)
    assert gateway.admits(bob)


async def test_a_damaged_file_leaves_the_shared_keys_in_force(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gateway, file = Gateway(tmp_path), tmp_path / "published"
    bob = keys.add(file, "bob", ["infer"])
    await gateway.apply(file.read_text())
    assert gateway.admits(bob)
    gateway.file.write_text("garbage")
    assert gateway.admits(bob) and gateway.admits(gateway.anna)
    assert "keeping the previous shared keys" in caplog.text


async def test_a_file_that_cannot_be_written_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(Refused, match="cannot be written"):
        await Gateway(tmp_path).apply("")


async def test_a_gateway_that_needs_no_keys_refuses_them(tmp_path: Path) -> None:
    keys.add(tmp_path / "published", "bob", ["infer"])
    alone = SharedKeysFile(tmp_path / "shared", None)
    with pytest.raises(Refused, match="create one there with `hostler keys add NAME`"):
        await alone.apply((tmp_path / "published").read_text())
    assert await alone.apply("") == ""
    assert not (tmp_path / "shared").exists()


async def test_shared_keys_alone_are_in_force_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    cluster = ClusterSettings(store="redis://store", token="secret")
    file = shared_file(cluster, "keys")
    assert file is not None
    bob = keys.add(file, "bob", ["infer"])
    gateway = GatewaySettings(api_keys_file=str(tmp_path / "none"), listen=("0.0.0.0:0",))
    assert list(key_mistakes(Settings(gateway=gateway, cluster=cluster))) == []
    ring = keys_in_force(Settings(gateway=gateway, cluster=cluster))
    assert ring is not None and ring.client(bob) is not None
    assert list(key_mistakes(Settings(gateway=gateway)))
