"""Which llama-servers there are, and which profiles use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from fakes.llama_programs import write_program, write_script

from hostler.profiles.engines import Engine, ReadyRules
from hostler.profiles.schema import Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.engine_builds import EngineBuild
from hostler.supervisor.engine_inventory import KnownEngine, known_engines

GPU = "CUDA0: RTX 4090 (24080 MiB, 23500 MiB free)"


def listed(
    settings: SupervisorSettings, profiles: Sequence[Profile], path: str = "", engines: Mapping[str, Engine] = {},
    builds: Sequence[EngineBuild] = (),
) -> list[KnownEngine]:  # fmt: skip
    """What is known besides the embedded engine, which is there or not."""
    return [each for each in known_engines(settings, profiles, engines, builds, path) if each.name != "embedded"]


def defined(name: str, program: Path) -> Engine:
    return Engine(
        name=name, command=(str(program),), llama_server=True, protocol="llamacpp", ready=ReadyRules(path="/health")
    )


def by_name(engines: list[KnownEngine]) -> dict[str, KnownEngine]:
    found = {each.name: each for each in engines}
    assert len(found) == len(engines)
    return found


def test_every_program_is_listed_once_with_its_users(tmp_path: Path) -> None:
    first = write_program(tmp_path / "a/llama-server", devices=(GPU,))
    hidden = write_program(tmp_path / "b/llama-server", build="1 (old)")
    cuda = write_program(tmp_path / "c/llama-server")
    new = write_program(tmp_path / "new/llama-server", build="0.6.0-dev")
    engines = {"cuda": defined("cuda", cuda)}
    profiles = [
        Profile(name="chat", model="x"),
        Profile(name="big", model="x", engine="cuda", definition=engines["cuda"]),
        Profile(name="own", model="x", engine=f"{new} --flag"),
        Profile(name="vllm", model="x", engine="vllm"),
        Profile(name="code", model="x"),
    ]
    builds = [EngineBuild(name="new", program=new)]
    path = f"{first.parent}:{hidden.parent}:/nowhere"
    every = listed(SupervisorSettings(), profiles, path, engines, builds)
    assert every[0].default and [each.default for each in every].count(True) == 1
    found = by_name(every)
    assert set(found) == {"llama-server", str(hidden), "cuda", "new", f"{new} --flag"}
    assert found["llama-server"] == KnownEngine(
        name="llama-server", program=(str(first),), build="6711 (abc)", devices=(GPU,), used_by=("chat", "code"),
        default=True,
    )  # fmt: skip
    assert (found["cuda"].used_by, found["new"].used_by) == (("big",), ())
    assert found[f"{new} --flag"].used_by == ("own",)
    assert (found[str(hidden)].build, found["new"].build) == ("1 (old)", "0.6.0-dev")


def test_the_configured_program_has_the_name_of_its_build(tmp_path: Path) -> None:
    new = write_program(tmp_path / "my engines/llama-server")
    settings = SupervisorSettings(engine=f"'{new}'")
    builds = [EngineBuild(name="new", program=new)]
    (engine,) = listed(settings, [Profile(name="chat", model="x")], builds=builds)
    assert (engine.name, engine.default, engine.used_by, engine.command) == ("new", True, ("chat",), f"'{new}'")


def test_an_engine_of_the_file_can_be_the_default_one(tmp_path: Path) -> None:
    cuda = defined("cuda", write_program(tmp_path / "llama-server"))
    profiles = [Profile(name="chat", model="x", definition=cuda)]
    (engine,) = listed(SupervisorSettings(engine="cuda"), profiles, engines={"cuda": cuda})
    assert (engine.name, engine.default, engine.used_by) == ("cuda", True, ("chat",))


def test_what_is_wrong_with_an_engine_is_said(tmp_path: Path) -> None:
    broken = write_script(tmp_path / "llama-server", "#!/bin/sh\necho no driver; exit 3\n")
    found = by_name(listed(SupervisorSettings(engine="/gone/llama-server"), [], str(tmp_path)))
    assert found["llama-server"].failure == "it ended with status 3: no driver"
    assert "/gone/llama-server" in found["/gone/llama-server"].failure and found["/gone/llama-server"].default
    assert found["llama-server"].program == (str(broken),)


def test_the_embedded_engine_is_one_of_them() -> None:
    pytest.importorskip("xllamacpp")
    (engine,) = known_engines(SupervisorSettings(), [Profile(name="chat", model="x")], {}, [], "")
    assert (engine.name, engine.command, engine.default) == ("embedded", "embedded", True)
    assert engine.build.startswith("xllamacpp ") and engine.used_by == ("chat",)


def test_another_program_as_the_default_is_not_listed() -> None:
    assert listed(SupervisorSettings(engine="vllm"), [Profile(name="chat", model="x")]) == []
