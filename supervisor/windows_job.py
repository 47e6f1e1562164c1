"""A job object of Windows: the processes of an engine, which end with it. Elsewhere there are process groups."""

from __future__ import annotations

import ctypes
from typing import Any, Final

#: <winnt.h>: kill all processes of the job when its last handle is closed, as at the end of this process.
_LIMITS: Final = 9
_ACCOUNTING: Final = 1
_KILL_ON_CLOSE: Final = 0x2000
_EXIT_CODE: Final = 1


class _Basic(ctypes.Structure):
    _fields_ = (
        ("process_time", ctypes.c_int64),
        ("job_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("least_working_set", ctypes.c_size_t),
        ("most_working_set", ctypes.c_size_t),
        ("processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority", ctypes.c_uint32),
        ("scheduling", ctypes.c_uint32),
    )


class _Limits(ctypes.Structure):
    _fields_ = (
        ("basic", _Basic),
        ("io", ctypes.c_uint64 * 6),
        ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t),
        ("peak_process_memory", ctypes.c_size_t),
        ("peak_job_memory", ctypes.c_size_t),
    )


class _Accounting(ctypes.Structure):
    _fields_ = (
        ("times", ctypes.c_int64 * 4),
        ("page_faults", ctypes.c_uint32),
        ("processes", ctypes.c_uint32),
        ("active", ctypes.c_uint32),
        ("terminated", ctypes.c_uint32),
    )


def kernel32() -> Any:
    """The system's library. Raises `OSError` elsewhere than on Windows."""
    if not hasattr(ctypes, "WinDLL"):
        raise OSError("job objects exist on Windows alone")
    library: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    for name in ("CreateJobObjectW", "OpenProcess"):
        getattr(library, name).restype = ctypes.c_void_p
    return library


class WindowsJob:
    """A job with one process, and with all that this one starts. They are killed when this process ends, however it does.

    Raises `OSError` if the system refuses.
    """

    def __init__(self, process_handle: int, library: Any | None = None) -> None:
        self._library = kernel32() if library is None else library
        handle = self._library.CreateJobObjectW(None, None)
        if not handle:
            raise OSError("CreateJobObject failed")
        self._handle: Any = ctypes.c_void_p(handle)
        limits = _Limits()
        limits.basic.flags = _KILL_ON_CLOSE
        try:
            self._checked(
                "SetInformationJobObject",
                self._library.SetInformationJobObject(
                    self._handle, _LIMITS, ctypes.byref(limits), ctypes.sizeof(limits)
                ),
            )
            self._checked(
                "AssignProcessToJobObject",
                self._library.AssignProcessToJobObject(self._handle, ctypes.c_void_p(process_handle)),
            )
        except OSError:
            self.close()
            raise

    def kill(self) -> None:
        """End all processes at once."""
        if self._handle is not None:
            self._library.TerminateJobObject(self._handle, _EXIT_CODE)

    def is_empty(self) -> bool:
        """Whether all processes have ended."""
        if self._handle is None:
            return True
        found = _Accounting()
        known = self._library.QueryInformationJobObject(
            self._handle, _ACCOUNTING, ctypes.byref(found), ctypes.sizeof(found), None
        )
        return not known or found.active == 0

    def close(self) -> None:
        """End all processes, and give the job back."""
        if self._handle is not None:
            self._library.CloseHandle(self._handle)
            self._handle = None

    def _checked(self, name: str, done: Any) -> None:
        if not done:
            raise OSError(f"{name} failed")
