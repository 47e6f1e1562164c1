"""Every route of `/openapi.json`, called by schemathesis with random input: none answers with a server error.

`nox -s fuzz` runs it. pytest alone does not collect it, since schemathesis (MIT) is installed there only.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import anyio
import pytest
from security.hostile_backend import gateway_process, hostile_backend

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]

#: Streams without an end.
EXCLUDED = "^/(events|admin/logs|models/sse|mcp)"


async def test_no_route_answers_with_a_server_error(tmp_path: Path) -> None:
    seed = random.randrange(2**31)
    print(f"schemathesis --seed={seed}")
    # 501 and 503 are answers of llama-server's routes: what is not supported here, and no model to ask.
    expected = 'expected-statuses = ["2xx", "3xx", "4xx", "501", "503"]'
    (tmp_path / "schemathesis.toml").write_text(f"[checks.not_a_server_error]\n{expected}\n")
    async with hostile_backend() as backend:
        one = {"kind": "openai", "url": backend.url, "models": {"m": "m"}}
        async with gateway_process(tmp_path, {"one": one}) as gateway:
            ended = await anyio.run_process(
                [
                    *(
                        sys.executable,
                        "-m",
                        "schemathesis.cli",
                        "run",
                        str(gateway.http.base_url.join("/openapi.json")),
                    ),
                    *("--checks", "not_a_server_error", "--phases", "fuzzing", "--max-examples", "20"),
                    *("--request-timeout", "10", "--seed", str(seed), "--exclude-path-regex", EXCLUDED),
                ],
                cwd=tmp_path,
                check=False,
            )
            assert ended.returncode == 0, ended.stdout.decode()[-5000:] + ended.stderr.decode()[-1000:]
            assert "Traceback" not in gateway.log
