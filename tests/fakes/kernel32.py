"""The functions of Windows' kernel32 that job objects need, with this system's processes behind them."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import psutil

_SIGKILL = 9


class Kernel32:
    """`jobs` are the processes of each job, by its handle; `refuses` names functions that fail."""

    def __init__(self, *refuses: str) -> None:
        self.jobs: dict[int, set[int]] = {}
        self.closed: list[int] = []
        self.flags = 0
        self._refuses = refuses

    def CreateJobObjectW(self, security: Any, name: Any) -> int | None:
        if "CreateJobObjectW" in self._refuses:
            return None
        handle = len(self.jobs) + 1
        self.jobs[handle] = set()
        return handle

    def SetInformationJobObject(self, job: Any, kind: int, value: Any, size: int) -> int:
        self.flags = value._obj.basic.flags
        return int("SetInformationJobObject" not in self._refuses)

    def AssignProcessToJobObject(self, job: Any, process: Any) -> int:
        if "AssignProcessToJobObject" in self._refuses:
            return 0
        self.jobs[job.value].add(process.value)
        return 1

    def TerminateJobObject(self, job: Any, code: int) -> int:
        for pid in self._processes(job.value):
            try:
                os.kill(pid, _SIGKILL)
            except ProcessLookupError:
                pass
        return 1

    def QueryInformationJobObject(self, job: Any, kind: int, value: Any, size: int, _: Any) -> int:
        value._obj.active = len(self._processes(job.value))
        return 1

    def CloseHandle(self, job: Any) -> int:
        self.TerminateJobObject(job, 1)
        self.closed.append(job.value)
        return 1

    def _processes(self, job: int) -> list[int]:
        """Those that run, with all that they have started: a job keeps those whose parent is gone."""
        known = self.jobs[job]
        for pid in list(known):
            try:
                known |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
            except psutil.Error:
                continue
        return [pid for pid in sorted(known) if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return str(psutil.Process(pid).status()) != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def library(name: str, **_: Any) -> Any:
    """In the place of `ctypes.WinDLL`."""
    assert name == "kernel32"
    found = Kernel32()
    for each in ("CreateJobObjectW", "OpenProcess"):
        if not hasattr(found, each):
            setattr(found, each, ctypes.CFUNCTYPE(None))
    return _Settable(found)


class _Settable:
    """Functions with settable types, as those of ctypes."""

    def __init__(self, real: Kernel32) -> None:
        self.__dict__["_real"] = real
        self.__dict__["_kept"] = {}

    def __getattr__(self, name: str) -> Any:
        kept = self.__dict__["_kept"]
        if name not in kept:
            function = getattr(self.__dict__["_real"], name)
            kept[name] = _Function(function)
        return kept[name]


class _Function:
    restype: Any = None

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)
