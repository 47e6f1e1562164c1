"""The delay that a dead first backend adds to requests: `python -m bench.dead [--litellm PROGRAM]`.

Both proxies have a main backend and a fallback, and their default settings. The main backend answers a few requests and
dies: its port refuses connections, or does not respond (a machine without power). The result is how much longer requests
take than before. They are sent one after the other on a keep-alive connection.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from bench.backend import MODEL
from bench.processes import backend, free_port
from bench.proxies import Hostler, LiteLLM, Proxy, Skipped

GIVEN_UP_S = 60.0
DEATHS = ("refused", "blackholed")


class HostlerChain(Hostler):
    """The gateway with two plain servers."""

    main = 0

    def command(self, backend: int, port: int, directory: Path) -> list[str]:
        command = super().command(backend, port, directory)
        config = directory / "hostler.yaml"
        entry = f'{{kind: llamacpp, url: "http://127.0.0.1:%d", models: {{"{MODEL}": "{MODEL}"}}}}'
        text = config.read_text().partition("  chain:")[0]
        chain = f"  chain: [main, stand-in]\nbackends:\n  main: {entry % self.main}\n  stand-in: {entry % backend}\n"
        config.write_text(text + chain)
        return command


class LiteLLMChain(LiteLLM):
    """The proxy with a fallback as documented, and otherwise default settings."""

    main = 0
    model = "main"
    env = {**LiteLLM.env, "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}  # noqa: RUF012

    def command(self, backend: int, port: int, directory: Path) -> list[str]:
        command = super().command(backend, port, directory)
        models = [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{at}/v1", "api_key": "none",
                },
            }
            for name, at in (("main", self.main), ("stand-in", backend))
        ]  # fmt: skip
        settings = {"telemetry": False, "fallbacks": [{"main": ["stand-in"]}]}
        (directory / "litellm.json").write_text(json.dumps({"model_list": models, "litellm_settings": settings}))
        return command


class Cost(msgspec.Struct, kw_only=True):
    """Milliseconds: a request before the failure, and the additional time of the first, second and later ones after it."""

    proxy: str
    death: str
    before_ms: float
    first_ms: float
    second_ms: float
    later_ms: float
    asked: int
    failed: int


class Client:
    """One keep-alive connection."""

    def __init__(self, url: str, proxy: Proxy) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=GIVEN_UP_S)
        self._body = json.dumps({"model": proxy.model, "messages": [{"role": "user", "content": "Hello"}]})
        told = dict(header.split(": ", 1) for header in proxy.headers)
        self._headers = {"content-type": "application/json", **told}

    def ask(self) -> tuple[float, bool]:
        """How long an answer takes, in milliseconds, and whether it succeeds. Times out after a minute."""
        began_at = time.perf_counter()
        try:
            self._connection.request("POST", "/v1/chat/completions", self._body, self._headers)
            answer = self._connection.getresponse()
            answer.read()
        except TimeoutError:
            self._connection.close()
        else:
            return (time.perf_counter() - began_at) * 1000, answer.status == 200
        return GIVEN_UP_S * 1000, False

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def deaf(port: int) -> Iterator[None]:
    """A port that neither accepts nor refuses connections, since the kernel's backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        yield


def measure(proxy: HostlerChain | LiteLLMChain, death: str, requests: int = 20) -> Cost:
    """One proxy, one kind of failure, with this many requests before and after it, three at least."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        proxy.main = free_port()
        main = stack.enter_context(contextlib.ExitStack())
        main.enter_context(backend(proxy.main))
        url, _ = stack.enter_context(proxy.start(stack.enter_context(backend()), Path(directory)))
        client = stack.enter_context(contextlib.closing(Client(url, proxy)))
        before = [client.ask() for _ in range(requests)]
        main.close()
        if death == "blackholed":
            stack.enter_context(deaf(proxy.main))
        after = [client.ask() for _ in range(3)]
        if all(well for _, well in after):
            after += [client.ask() for _ in range(requests - len(after))]
    usual = statistics.median(took for took, _ in before)
    added = [took - usual for took, _ in after]
    return Cost(
        proxy=proxy.name,
        death=death,
        before_ms=usual,
        first_ms=added[0],
        second_ms=added[1],
        later_ms=statistics.median(added[2:]),
        asked=len(after),
        failed=sum(not well for _, well in after),
    )


def middle(rows: list[Cost]) -> Cost:
    """The medians of several rounds, since one round is unreliable on a busy machine."""
    figures = ("before_ms", "first_ms", "second_ms", "later_ms")
    medians = {name: statistics.median(getattr(row, name) for row in rows) for name in figures}
    asked, failed = sum(row.asked for row in rows), sum(row.failed for row in rows)
    return msgspec.structs.replace(rows[0], asked=asked, failed=failed, **medians)


def table(rows: list[Cost]) -> str:
    """A Markdown table."""
    head = "| proxy | main backend | before | 1st after | 2nd after | later | not answered |"
    lines = [head, "| --- " * 7 + "|"]
    for row in rows:
        added = (row.first_ms, row.second_ms, row.later_ms)
        cells = [row.proxy, row.death, f"{row.before_ms:.1f} ms", *(f"{value:+.1f} ms" for value in added)]
        lines.append("| " + " | ".join([*cells, f"{row.failed} of {row.asked}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.dead", description=__doc__)
    parser.add_argument("--litellm", metavar="PROGRAM", help="litellm program to run")
    parser.add_argument("--hostler", metavar="PROGRAM", help="hostler program to run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each proxy; rows are medians")
    options = parser.parse_args()
    rows: list[Cost] = []
    for kind, program in ((HostlerChain, options.hostler), (LiteLLMChain, options.litellm)):
        for death in DEATHS:
            try:
                rows.append(middle([measure(kind(program), death) for _ in range(options.rounds)]))
            except Skipped as reason:
                print(f"skipped: {reason}", file=sys.stderr)
                break
    print(table(rows))


if __name__ == "__main__":
    main()
