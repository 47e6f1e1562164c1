"""Run in a child: what Windows lacks is taken away, and the product is imported and used.

Libraries are imported before, since they would look for what this system does not have either.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import pkgutil
import runpy
import signal
import socket
import sys
import sysconfig
import types
from functools import partial
from importlib.abc import MetaPathFinder
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from fakes import kernel32

#: Modules of Python that Windows does not have, and uvloop, which does not run there.
BLOCKED = frozenset({"fcntl", "grp", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty", "uvloop"})
OS = (
    *("killpg", "setsid", "fork", "forkpty", "getuid", "geteuid", "getgid", "getpgid", "setpgid", "chown", "fchown"),
    *("fchmod", "posix_fadvise", "pread", "pwrite", "waitid", "pidfd_open", "mkfifo", "uname", "getloadavg", "nice"),
    *("sched_getaffinity", "O_NONBLOCK", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "P_PID", "WEXITED"),
)
SIGNALS = ("SIGKILL", "SIGHUP", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGWINCH")
SOCKET = ("AF_UNIX", "AF_NETLINK", "SO_REUSEPORT", "TCP_INFO")

#: What event loops wake themselves up with.
_pair, _UNIX = socket.socketpair, socket.AF_UNIX
_flock, _EXCLUSIVE = fcntl.flock, fcntl.LOCK_EX | fcntl.LOCK_NB


def _locking(descriptor: int, mode: int, count: int) -> None:
    """In the place of `msvcrt.locking`."""
    assert (mode, count) == (2, 1)
    assert os.lseek(descriptor, 0, os.SEEK_CUR) > 2**30, "others could not read the file"
    _flock(descriptor, _EXCLUSIVE)


class _Missing(MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def modules() -> list[str]:
    """The modules of the product."""
    import hostler

    return [each.name for each in pkgutil.walk_packages(hostler.__path__, "hostler.") if "__main__" not in each.name]


def become_windows() -> None:
    """Take away what Windows lacks."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("hostler", *BLOCKED)]:
        del sys.modules[name]
    locks = types.ModuleType("msvcrt")
    locks.LK_NBLCK = 2  # type: ignore[attr-defined]
    locks.locking = _locking  # type: ignore[attr-defined]
    sys.modules["msvcrt"] = locks
    ctypes.WinDLL = kernel32.library  # type: ignore[attr-defined]
    sys.meta_path.insert(0, _Missing())
    for module, names in ((os, OS), (signal, SIGNALS), (socket, SOCKET)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    setattr(signal, "SIGBREAK", signal.SIGINT)  # noqa: B010 - it has another number there
    socket.socketpair = partial(_pair, _UNIX)  # type: ignore[assignment]
    sys.platform = "win32"


def main() -> None:
    """`python windows_system.py` imports everything; with arguments it runs the command line with them."""
    import asyncio

    policy_loop = asyncio.SelectorEventLoop  # found before the platform changes
    sysconfig.get_config_vars()  # read once
    for name in modules():
        importlib.import_module(name)
    become_windows()
    found = modules()
    for name in found:
        importlib.import_module(name)
    assert policy_loop is not None
    if len(sys.argv) == 1:
        print(f"imported {len(found)}")
        return
    runpy.run_module("hostler.gateway", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
