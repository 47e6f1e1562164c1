"""Job objects: what they hold, that they end it, and what a refusal leads to."""

from __future__ import annotations

import subprocess

import pytest
from fakes.kernel32 import Kernel32

from hostler.supervisor.windows_job import WindowsJob, kernel32


def test_the_processes_of_a_job_end_with_it() -> None:
    library = Kernel32()
    with subprocess.Popen(["sleep", "60"]) as process:
        job = WindowsJob(process.pid, library)
        assert library.flags == 0x2000 and not job.is_empty()
        job.kill()
        process.wait(10)
        assert job.is_empty()
        job.close()
        job.close()
    assert library.closed == [1] and job.is_empty()


@pytest.mark.parametrize("refuses", ["CreateJobObjectW", "SetInformationJobObject", "AssignProcessToJobObject"])
def test_a_refusal_names_the_function_and_leaves_no_handle(refuses: str) -> None:
    library = Kernel32(refuses)
    with pytest.raises(OSError, match=refuses.removesuffix("W")):
        WindowsJob(1, library)
    assert len(library.closed) == len(library.jobs)


def test_other_systems_have_no_job_objects() -> None:
    with pytest.raises(OSError, match="Windows alone"):
        kernel32()
