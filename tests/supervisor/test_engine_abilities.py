"""What engines say of themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hostler.profiles.engine_presets import PRESETS
from hostler.supervisor.contract import SupervisorError
from hostler.supervisor.engine_abilities import (
    FOLDER_ENGINES,
    EngineDevice,
    folder_engine,
    gguf_engine,
    read_abilities,
)

LISTING = """Available devices:
  CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23500 MiB free)
  Vulkan0: AMD Radeon (RADV) (8192 MiB, 8000 MiB free)
"""
HELP = """-m,    --model FNAME       model
--host HOST                address
--port PORT                port
-c,    --ctx-size N        context
--list-devices             print devices
-fit,  --fit [on|off]      fit to memory
--spec-type none,draft-simple,draft-mtp  kind of draft
"""


def program(folder: Path, body: str) -> str:
    """An engine that is this shell script."""
    script = folder / "llama-server"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return str(script)


def test_a_program_lists_its_devices_and_options(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(LISTING)
    (tmp_path / "help").write_text(HELP)
    body = f'case "$1" in --list-devices) cat {tmp_path}/list;; --help) cat {tmp_path}/help;; esac'
    found = read_abilities(program(tmp_path, body))
    mib = 1024**2
    assert found.devices == (
        EngineDevice(name="CUDA0", model="NVIDIA GeForce RTX 4090", total=24080 * mib, free=23500 * mib),
        EngineDevice(name="Vulkan0", model="AMD Radeon (RADV)", total=8192 * mib, free=8000 * mib),
    )
    assert (found.knows_devices, found.fits, found.draft_heads) == (True, True, {"draft-mtp"})
    assert found.name == str(tmp_path / "llama-server")


@pytest.mark.parametrize("body", ["exit 1", "echo error: unknown argument", r"printf '\377'"])
def test_a_program_that_does_not_know_the_options_has_no_abilities(tmp_path: Path, body: str) -> None:
    found = read_abilities(program(tmp_path, body))
    assert (found.devices, found.knows_devices, found.fits, found.draft_heads) == ((), False, False, frozenset())


def test_the_embedded_engine_uses_no_gpu() -> None:
    found = read_abilities("embedded")
    assert found.program[0] == sys.executable
    assert (found.name, found.devices, found.knows_devices, found.fits) == ("embedded", (), True, False)


def test_a_missing_program_is_an_error() -> None:
    with pytest.raises(SupervisorError, match="does not exist"):
        read_abilities("/nowhere/llama-server")


def test_folders_run_with_the_given_engine_or_one_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert folder_engine(None) is None
    assert folder_engine("sglang") == "sglang"
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)
    assert folder_engine(None) == folder_engine("llama-server") == "vllm"


def test_gguf_files_run_with_the_given_engine_if_it_takes_them() -> None:
    assert [gguf_engine(name) for name in (None, "koboldcpp", "vllm")] == [None, "koboldcpp", None]


def test_folder_engines_are_presets() -> None:
    assert set(FOLDER_ENGINES) <= set(PRESETS)
