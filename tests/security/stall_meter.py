"""Measures how long a server is away: `GET /healthz` again and again, from a process that does nothing else.

Of each answer's time counts what the server did: not the time for which it, or the process that asks, waited for a CPU that
others used.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from security.hostile_backend import GatewayProcess

_PINGER = """
import http.client, os, sys, threading, time
host, port, pid = sys.argv[1], int(sys.argv[2]), sys.argv[3]
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
connection = http.client.HTTPConnection(host, port, timeout=60)

def delays(pid):
    # Seconds for which each thread was ready to run and had no CPU; none where the system does not count them.
    found = {}
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                found[thread] = int(file.read().split()[1]) / 1e9
    except OSError:
        pass
    return found

def waited(pid, before):
    # By the thread with the event loop, and by one other that may have kept it from running.
    grown = {thread: now - before.get(thread, now) for thread, now in delays(pid).items()}
    return grown.pop(str(pid), 0.0) + max(grown.values(), default=0.0)

longest = 0.0
while not ended.is_set():
    own, theirs = delays(os.getpid()), delays(pid)
    began = time.monotonic()
    connection.request("GET", "/healthz")
    assert connection.getresponse().read()
    took = time.monotonic() - began
    longest = max(longest, took - waited(pid, theirs) - waited(os.getpid(), own))
    time.sleep(0.005)
print(longest)
"""


class StallMeter:
    """`longest_s`, once the context has ended: the longest that the server kept an answer waiting."""

    longest_s = float("nan")


@contextmanager
def stall_meter(gateway: GatewayProcess) -> Iterator[StallMeter]:
    """Measure until the context ends."""
    url = gateway.http.base_url
    meter = StallMeter()
    pinger = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PINGER, url.host, str(url.port), str(gateway.process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path("/"),
        text=True,
    )
    try:
        yield meter
    finally:
        printed, _ = pinger.communicate("", timeout=90)
        meter.longest_s = float(printed)
