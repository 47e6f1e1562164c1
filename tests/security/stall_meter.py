"""Measures how long a server is away: `GET /healthz` again and again, from a process that does nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PINGER = """
import http.client, sys, threading, time
host, port = sys.argv[1], int(sys.argv[2])
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
connection = http.client.HTTPConnection(host, port, timeout=60)
longest = 0.0
while not ended.is_set():
    began = time.monotonic()
    connection.request("GET", "/healthz")
    assert connection.getresponse().read()
    longest = max(longest, time.monotonic() - began)
    time.sleep(0.005)
print(longest)
"""


class StallMeter:
    """`longest_s`, once the context has ended: the longest that an answer took."""

    longest_s = float("nan")


@contextmanager
def stall_meter(host: str, port: int) -> Iterator[StallMeter]:
    """Measure until the context ends."""
    meter = StallMeter()
    pinger = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PINGER, host, str(port)],
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
