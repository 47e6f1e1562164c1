"""The profiles of a cluster on one machine, beside those of its own file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes.gguf_files import LLAMA, TENSORS, GgufWriter

from hostler.gateway.config import read
from hostler.gateway.config_reload import Reloader
from hostler.gateway.last_good import keep, load
from hostler.gateway.shared_files import Refused
from hostler.gateway.shared_profiles_file import SharedProfilesFile
from hostler.profiles.schema import Profile

pytestmark = pytest.mark.anyio


class Machine:
    """A machine with a profile of its own, `own`, and what is applied of others."""

    def __init__(self, folder: Path, **document: Any) -> None:
        self.folder = folder
        self.model = folder / "model.gguf"
        self.model.write_bytes(GgufWriter().bytes(LLAMA, TENSORS))
        self.environ = {"XDG_STATE_HOME": str(folder / "state")}
        self.file = folder / "hostler.yaml"
        self.save(**document)
        configuration = read(self.file, self.environ)
        self.reloader = Reloader(configuration, self._use, self.environ)
        assert configuration.shared.file is not None
        self.shared = SharedProfilesFile(configuration.shared.file, self.reloader)
        self.used: list[str] = []

    def save(self, **document: Any) -> None:
        own = {"profiles": {"own": {"model": str(self.model), "aliases": ["mine"]}}}
        cluster = {"store": "redis://store", "name": "home", "token": "secret", "member": "attic"}
        self.file.write_text(json.dumps({**own, "cluster": cluster, **document}))

    async def _use(self, profiles: Sequence[Profile]) -> None:
        self.used = [each.name for each in profiles]

    async def share(self, hosts: dict[str, list[str]] | None = None, **profiles: Any) -> str:
        entries = {name: {"model": str(self.model), **entry} for name, entry in profiles.items()}
        return await self.shared.apply(json.dumps({"profiles": entries, "hosts": hosts or {}}))


async def test_shared_profiles_are_used_beside_the_own_ones(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert await machine.share(a={}, b={"context": 8192}, hosts={"b": ["cellar"]}) == ""
    assert machine.used == ["own", "a"]
    assert await machine.share(b={}) == ""
    assert machine.used == ["own", "b"]
    again = read(machine.file, machine.environ)
    assert [each.name for each in again.profiles] == ["own", "b"]
    assert await machine.shared.apply("") == ""
    assert machine.used == ["own"]


async def test_own_profiles_and_aliases_win(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert await machine.share(own={"context": 1}, mine={}, a={}) == "its own file has own, mine"
    assert machine.used == ["own", "a"]
    assert next(each for each in machine.reloader.configuration.profiles if each.name == "own").context == 4096


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        ({"engine": "none-here"}, "none-here"),
        ({"base": "nobody"}, "nobody"),
        ({"model": "/nowhere/x.gguf"}, "profiles.b.model: /nowhere/x.gguf"),
        ({"aliases": ["own"]}, "own"),
        ({"context": -1}, "profiles.b.context"),
        ({"env": {"A": "b"}}, "profiles.b.env: is not shared"),
        ({"args": ["${env:NOT_SET_HERE}"]}, "NOT_SET_HERE"),
    ],
)
async def test_all_of_a_document_is_used_or_none(tmp_path: Path, profile: dict[str, Any], reason: str) -> None:
    machine = Machine(tmp_path)
    await machine.share(a={})
    with pytest.raises(Refused, match=reason):
        await machine.share(a={}, b=profile, c={})
    assert machine.used == ["own", "a"]
    assert [each.name for each in read(machine.file, machine.environ).profiles] == ["own", "a"]


@pytest.mark.parametrize("text", ["[" * 100_000, "&a [*a, *a]", "\x00", "profiles: {a: {", "- x"])
async def test_what_is_no_document_is_refused(tmp_path: Path, text: str) -> None:
    machine = Machine(tmp_path)
    with pytest.raises(Refused):
        await machine.shared.apply(text)


async def test_shared_profiles_change_although_the_own_file_has_a_mistake(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    keep(machine.reloader.configuration, machine.environ)
    await machine.share(a={})
    machine.file.write_text("profiles: {own: {nonsense: 1}}")
    assert await machine.share(b={}) == ""
    assert machine.used == ["own", "b"]


async def test_a_change_of_the_own_file_is_not_kept_from_taking_effect_by_shared_ones(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    await machine.share(a={"base": "own"}, b={})
    machine.save(profiles={"new": {"model": str(machine.model)}})
    assert await machine.reloader.reload()
    assert machine.used == ["new", "b"]
    assert "own" in machine.reloader.configuration.shared.left_out[0]


async def test_a_file_that_was_damaged_does_not_keep_the_machine_from_starting(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    await machine.share(a={})
    assert machine.reloader.configuration.shared.file is not None
    machine.reloader.configuration.shared.file.write_bytes(b"\xff\xfe{")
    found = load(machine.file, machine.environ)
    assert [each.name for each in found.profiles] == ["own"]
    assert found.errors is None and found.shared.left_out


async def test_a_machine_with_shared_profiles_alone_serves_no_demo(tmp_path: Path) -> None:
    machine = Machine(tmp_path, profiles={})
    assert machine.reloader.configuration.shipped
    await machine.share(a={})
    assert machine.used == ["a"]
    assert not machine.reloader.configuration.shipped
