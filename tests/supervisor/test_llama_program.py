"""llama-servers of any age: what one knows is read from its help, and it gets nothing else."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import msgspec
import psutil
import pytest

from hostler.profiles.schema import Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.llama_arguments import llama_arguments
from hostler.supervisor.llama_program import LlamaPrograms, parse_devices, parse_options, read_program
from hostler.supervisor.manager import EngineManager

pytestmark = pytest.mark.anyio

Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]

FAKE_ENGINE = Path(__file__).parents[1] / "fakes" / "fake_engine.py"

#: Every option that an engine can get but does not need, and the spellings of it that go together.
OPTIONAL = (
    "-np", "-b", "-t", "-ngl", "--mmproj", "-md", "--embeddings", "-ub", "--pooling", "--alias", "--cache-ram",
    "--slot-save-path", "--metrics", "--no-ui", "--offline", "--cors-origins", "--sse-ping-interval",
)  # fmt: skip

#: A llama-server that lacks some options: its help does not list them, and it ends when it gets one.
PROGRAM = """#!{python} -IS
import runpy, sys
if "--help" in sys.argv:
    print("----- common params -----")
    for option in {known!r}:
        print(option.ljust(40) + "about --lacking-options and -x")
    sys.exit()
for word in {lacking!r}:
    if word in sys.argv:
        print("error: invalid argument: " + word, file=sys.stderr)
        sys.exit(1)
sys.argv[0] = {engine!r}
runpy.run_path({engine!r}, run_name="__main__")
"""


def old_program(folder: Path, *lacking: str) -> Path:
    """A `llama-server` without these options."""
    program = folder / "llama-server"
    known = [each for each in ("-m", "--host", "--port", "-c", *OPTIONAL) if each not in lacking]
    program.write_text(PROGRAM.format(python=sys.executable, known=known, lacking=lacking, engine=str(FAKE_ENGINE)))
    program.chmod(0o755)
    return program


def demanding(profile: Profile, program: Path, folder: Path) -> Profile:
    """A profile that needs every option."""
    return msgspec.structs.replace(
        profile, engine=str(program), embeddings=True, threads=1, gpu_layers=1, mmproj=str(folder / "p.gguf"),
        draft=str(folder / "d.gguf"), cache_ram_mib=10,
    )  # fmt: skip


@pytest.mark.parametrize("lacking", [*OPTIONAL, None])
async def test_a_program_without_an_option_is_started_without_it(
    tmp_path: Path, scripted: Callable[..., Profile], running: Running, lacking: str | None
) -> None:
    program = old_program(tmp_path, *([lacking] if lacking else []))
    profile = demanding(scripted("a"), program, tmp_path)
    manager = EngineManager([profile], SupervisorSettings(slots_dir=str(tmp_path), start_timeout_s=20.0))
    async with running(manager):
        await manager.switch("a")


async def test_the_oldest_program_is_started_and_what_is_lost_is_logged_once(
    tmp_path: Path, scripted: Callable[..., Profile], running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    program = old_program(tmp_path, *OPTIONAL)
    profile = demanding(scripted("a"), program, tmp_path)
    manager = EngineManager([profile], SupervisorSettings(slots_dir=str(tmp_path), start_timeout_s=20.0))
    async with running(manager):
        with caplog.at_level(logging.WARNING):
            await manager.switch("a")
            await manager.unload("a")
            await manager.switch("a")
    lost = [record.getMessage() for record in caplog.records if "is too old for" in record.getMessage()]
    assert sum("--slot-save-path (conversations are not kept over a switch)" in line for line in lost) == 1
    assert not any("--alias" in line for line in lost), "nothing is lost without it"


@pytest.mark.parametrize(
    ("layers", "options", "words"),
    [
        ("all", {"-ngl"}, ["-ngl", "999"]),
        ("auto", {"-ngl"}, []),
        (12, {"-ngl"}, ["-ngl", "12"]),
        ("all", {"-ngl", "--fit"}, ["-ngl", "all"]),
        ("auto", {"-ngl", "--fit"}, ["-ngl", "auto"]),
    ],
)
def test_a_program_from_before_words_for_layers_gets_numbers(
    tmp_path: Path, layers: int | str, options: set[str], words: list[str]
) -> None:
    profile = Profile(name="a", model="m", gpu_layers=layers)
    settings = SupervisorSettings(slots_dir=None)
    arguments, _ = llama_arguments(
        profile, settings, file=tmp_path, host="127.0.0.1", port=1, facts=None, known=options
    )
    at = arguments.index("-ngl") if "-ngl" in arguments else len(arguments)
    assert arguments[at : at + 2] == words


async def test_an_older_spelling_is_used(tmp_path: Path) -> None:
    options = parse_options(
        "-m,    --model FNAME\n--host HOST\n--port PORT\n-c,    --ctx-size N\n--no-webui   Disable\n"
    )
    assert options is not None
    assert "--no-webui" in options
    assert "--no-ui" not in options


async def test_a_program_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    programs = LlamaPrograms()
    program = (str(old_program(tmp_path, "--metrics")),)
    assert "--metrics" not in ((await programs.read(program, {})).options or ())
    old_program(tmp_path)
    assert "--metrics" in ((await programs.read(program, {})).options or ())


@pytest.mark.parametrize("text", ["", "usage: tool [-h] [--port PORT]\n", "--host H\n--port P\n"])
def test_the_help_of_another_program_says_nothing(text: str) -> None:
    assert parse_options(text) is None


async def test_a_program_that_cannot_be_run_says_nothing() -> None:
    assert (await read_program(("/nowhere/llama-server",), {})).options is None


#: It writes its process id, and serves on whatever it is asked.
SERVING = "#!/bin/sh\necho $$ > {file}.part && mv {file}.part {file}\nexec sleep 600\n"
#: Reads the program that its argument names.
READING = """
import anyio, os, sys
from hostler.supervisor.llama_program import read_program
anyio.run(read_program, (sys.argv[1],), dict(os.environ))
"""


def serving_program(folder: Path) -> tuple[str, Path]:
    """A program that does not know `--help`, and the file that it writes its process id to."""
    program, file = folder / "server", folder / "pid"
    program.write_text(SERVING.format(file=file))
    program.chmod(0o755)
    return str(program), file


async def until_written(file: Path) -> int:
    written = anyio.Path(file)
    with anyio.fail_after(20):
        while not await written.exists():  # noqa: ASYNC110 - another process writes it
            await anyio.sleep(0.01)
    return int(await written.read_text())


async def until_gone(pid: int) -> None:
    with anyio.fail_after(20):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_a_program_that_serves_instead_is_ended_when_its_reader_is_cancelled(tmp_path: Path) -> None:
    program, file = serving_program(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_program, (program,), dict(os.environ))
        pid = await until_written(file)
        tasks.cancel_scope.cancel()
    await until_gone(pid)


async def test_a_program_that_serves_instead_is_ended_in_time_and_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program, _ = serving_program(tmp_path)
    found = await read_program((program,), dict(os.environ), limit_s=0.05)
    assert found.options is None
    assert f"{program} --help did not end within 0.05 s" in caplog.text


async def test_a_program_that_serves_instead_dies_with_the_supervisor(tmp_path: Path) -> None:
    program, file = serving_program(tmp_path)
    reader = await anyio.open_process([sys.executable, "-c", READING, program], stdout=None, stderr=None)
    async with reader:
        pid = await until_written(file)
        reader.kill()
    await until_gone(pid)


def test_devices_are_listed_with_their_memory() -> None:
    text = "ggml_cuda_init: found 1 CUDA devices\nAvailable devices:\n  CUDA0: NVIDIA RTX 4090 (24209 MiB, 23832 MiB free)\n"
    assert parse_devices(text) == ("CUDA0: NVIDIA RTX 4090 (24209 MiB, 23832 MiB free)",)
    assert parse_devices("Available devices:\n  (none)\n") == ()


async def test_programs_are_shown_with_what_they_lack(tmp_path: Path) -> None:
    programs = LlamaPrograms()
    path = str(old_program(tmp_path, "--metrics"))
    await programs.read((path,), {})
    programs.newly_lost((path,), ["--metrics (x)"])
    [known] = programs.known()
    assert (known.path, known.lacks) == (path, ("--metrics (x)",))
