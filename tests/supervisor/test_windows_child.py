"""Children in job objects: output, end, and what they leave."""

from __future__ import annotations

import os
import signal
import sys

import anyio
import pytest
from fakes.kernel32 import Kernel32

from hostler.supervisor.child import Child
from hostler.supervisor.windows_child import WindowsChild
from hostler.supervisor.windows_job import WindowsJob

pytestmark = pytest.mark.anyio


def start(script: str, lines: list[tuple[bool, str]]) -> tuple[Child, Kernel32]:
    library = Kernel32()
    child = WindowsChild.start(
        [sys.executable, "-c", script], dict(os.environ), lambda *line: lines.append(line),
        start_job=lambda handle: WindowsJob(handle, library),
    )  # fmt: skip
    return child, library


async def test_output_is_passed_on_before_the_end_is_known() -> None:
    lines: list[tuple[bool, str]] = []
    child, library = start("import sys; print('out'); print('err', file=sys.stderr); print('rest', end='')", lines)
    ended: list[int | None] = []
    child.on_exit(lambda: ended.append(child.returncode))
    with anyio.fail_after(30):
        await child.exited.wait()
    assert sorted(lines) == [(False, "err"), (True, "out"), (True, "rest")]
    assert ended == [0] and not child.running
    await child.end(0)
    assert library.closed == [1]


async def test_lines_reach_it_and_it_is_asked_to_end_first() -> None:
    lines: list[tuple[bool, str]] = []
    child, _ = start("print('ready', flush=True); print(input(), flush=True); input()", lines)
    assert child.running
    assert child.write_line(b"hello")
    with anyio.fail_after(30):
        while (True, "hello") not in lines:  # noqa: ASYNC110 - lines have no event
            await anyio.sleep(0.01)
        await child.end(20)
    assert child.returncode == -signal.SIGTERM
    assert not child.write_line(b"too late")


async def test_what_it_has_started_ends_with_it() -> None:
    lines: list[tuple[bool, str]] = []
    script = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
    )
    child, library = start(script, lines)
    with anyio.fail_after(30):
        while not lines:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        await child.end(0.05)
    assert int(lines[0][1]) in library.jobs[1] and library._processes(1) == []


async def test_a_process_that_gets_no_job_does_not_run() -> None:
    library = Kernel32("AssignProcessToJobObject")
    with pytest.raises(OSError, match="AssignProcessToJobObject"):
        WindowsChild.start(
            ["sleep", "60"], dict(os.environ), lambda *_: None, start_job=lambda h: WindowsJob(h, library)
        )
    with pytest.raises(OSError, match="cannot be passed"):
        WindowsChild.start(["sleep", "60"], {}, lambda *_: None, pass_fds=(3,))
