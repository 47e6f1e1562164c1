"""Alternating switches between two different engines, `python -m bench.engine_switches`: what Hostler adds to their own time.

One engine is spoken to as llama-server, the other one in OpenAI's protocol, and its readiness is asked of a path. Neither takes
time to load.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from bench.conversation import INSTANT, ask, bare_start, gateway, write_gguf

HELLO = [{"role": "user", "content": "Hi"}]
#: What a switch may take beyond the engine's own start, in milliseconds.
TARGET_MS = 40


def main(times: int) -> None:
    """So many switches from one engine to the other and back."""
    program = [sys.executable, "-I", "-S", "-E", str(INSTANT)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.gguf"
        write_gguf(model)
        document = {
            "supervisor": {"engine": " ".join(program), "slots_dir": str(folder / "slots")},
            "engines": {
                "other": {"command": [*program, "--host", "${host}", "--port", "${port}"], "ready": "/health", "protocol": "openai"}
            },
            "profiles": {"llama": {"model": str(model)}, "other": {"engine": "other", "model": str(model)}},
        }  # fmt: skip
        models = ("llama", "other")
        with gateway(document, folder) as connection:
            for each in models:
                ask(connection, each, HELLO)
            taken = [ask(connection, models[n % 2], HELLO).first_byte_s for n in range(times)]
            loaded = models[(times - 1) % 2]
            hot = statistics.median(ask(connection, loaded, HELLO).first_byte_s for _ in range(times))
    bare = bare_start(times)
    print(
        f"{times} alternating switches between two engines: request to first byte, of it beyond the engine's own start"
    )
    for offset, each in enumerate(models):
        median = statistics.median(taken[offset::2])
        added = 1000 * (median - bare - hot)
        print(f"  to {each:6} {1000 * median:6.1f} ms, {median / bare:4.2f} times its start; beyond it {added:6.1f} ms")
    print(
        f"  the start alone {1000 * bare:.1f} ms, a request without a switch {1000 * hot:.1f} ms, target {TARGET_MS} ms"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="number of switches, an even number")
    main(parser.parse_args().times)
