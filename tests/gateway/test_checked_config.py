"""Whatever a configuration file contains, the answer is a configuration or a list of all mistakes."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.gateway.checked_config import read_checked
from hostler.gateway.config import ConfigError, Configuration
from hostler.gateway.preflight import all_mistakes

ODD_VALUES = (
    *("null", "~", "[]", "{}", "''", "1e400", "-.inf", ".nan", "1" + "0" * 5000, "2001-01-01", "true", "0x10", "-1"),
    *("!!binary aGk=", "!!set {a: null}", "!!python/object:os.system x", "&r [*r]", "&r {a: *r}", "? a", "<<: 1"),
    *(r'"\ud800"', r'{"\ud800": 1}', r'"\0"', r'"a\0b/c"', "'${env:K}'", "'${env:E}'", "'${env:}'", "'${file:x}'"),
    *("1:30:00", "[null]", "{null: 1}", "{1: 2}", "{[1]: 2}", "[[[]]]", "- - - 1", "'http://[::1'", "'a:b:c'"),
    *("'~nosuchuser/x'", "'unix:~nosuchuser/x'", "'/proc/self/mem/x'", "/dev/zero", "'" + "a" * 300 + "'", "'\u202e'"),
    *("'" + "a/" * 3000 + "'", "10" * 15),
)
KEYS = (
    *("", "gateway", "gateway.listen", "gateway.tls", "gateway.tls.cert", "gateway.api_keys_file"),
    *("gateway.key_usage_file", "gateway.allowed_hosts", "gateway.trusted_proxies", "gateway.root_path"),
    *("gateway.max_body", "gateway.queue", "gateway.queue.max_waiting", "gateway.switching", "gateway.spending.file"),
    *("gateway.recording.file", "gateway.responses.file", "gateway.library.file", "gateway.tracing.headers"),
    *("gateway.chain", "supervisor", "supervisor.listen", "supervisor.token", "supervisor.token_file"),
    *("supervisor.engine", "supervisor.engine_ports", "supervisor.tls.key", "supervisor.slots_dir"),
    *("supervisor.devices", "supervisor.groups", "supervisor.sets", "backends", "backends.b", "backends.b.url"),
    *("backends.b.kind", "backends.b.models", "backends.b.prices", "backends.b.certificate", "backends.b.ca_file"),
    *("backends.b.api_key_file", "profiles", "profiles.m", "profiles.m.model", "profiles.m.args", "profiles.m.env"),
    *("profiles.m.engine", "profiles.m.base", "profiles.m.memory", "variants", "variants.v", "manifest", "breaker"),
)


def written(key: str, value: str) -> str:
    """A file with `value` at `key`, and what else its section needs."""
    if not key:
        return value + "\n"
    steps = key.split(".")
    lines = [f"{'  ' * depth}{step}:" for depth, step in enumerate(steps)]
    lines[-1] += f" {value}"
    if steps[0] == "backends" and len(steps) > 2:
        lines += [f"    {each}" for each in ("kind: openai", "url: http://127.0.0.1:9") if each[:3] != steps[2][:3]]
    if steps[0] == "profiles" and len(steps) > 2 and steps[2] != "model":
        lines.append("    model: m.gguf")
    return "\n".join(lines) + "\n"


def check(folder: Path, text: str) -> None:
    path = folder / "hostler.yaml"
    path.write_text(text)
    environ = {"K": "v", "E": "", "XDG_STATE_HOME": str(folder)}
    with contextlib.suppress(ConfigError):
        read_checked(path, environ, all_mistakes)


@pytest.mark.parametrize("key", KEYS)
def test_odd_values_are_mistakes_or_valid(key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for value in ODD_VALUES:
        check(tmp_path, written(key, value))
        assert not [each for each in caplog.records if each.exc_info], value


@given(st.sampled_from(KEYS), st.text(max_size=40) | st.from_regex(r"[~/.{}\[\]:\\$&*!0-9a-f\"' -]*", fullmatch=True))
def test_any_text_is_a_mistake_or_valid(tmp_path_factory: pytest.TempPathFactory, key: str, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    for value in (text, json.dumps(text)):
        with contextlib.suppress(UnicodeEncodeError):
            check(folder, written(key, value))


def mistakes(path: Path, document: Any) -> Sequence[str]:
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError) as raised:
        read_checked(path, {"XDG_STATE_HOME": str(path.parent)}, all_mistakes)
    return raised.value.mistakes


def test_mistakes_of_the_text_do_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    found = mistakes(
        tmp_path / "hostler.yaml",
        {
            "gateway": {"listen": ["0.0.0.0:8000"], "allowed_hosts": ["*"], "nonsense": 1},
            "supervisor": {"engine": "no-such-engine"},
            "profiles": {"m": {"model": "missing.gguf"}, "n": {"modell": "x"}},
        },
    )
    for part in ("allowed_hosts", "refusing to listen", "no-such-engine", "missing.gguf", "nonsense", "modell"):
        assert [each for each in found if part in each], part


FOLLOWING: dict[str, dict[str, Any]] = {
    "gateway.listen": {"gateway": {"listen": ["0.0.0.0:8000"], "api_keys_file": "~nosuchuser/keys"}},
    "supervisor.listen": {"supervisor": {"listen": "0.0.0.0:8000", "token": 1.5, "engine": sys.executable}},
    "supervisor.engine": {"supervisor": {"engine": 5}},
    "profile": {"supervisor": {"groups": {"g": ["m"]}, "engine": sys.executable}, "profiles": {"m": {"modell": "x"}}},
}


@pytest.mark.parametrize("start", FOLLOWING)
def test_what_only_follows_from_a_mistake_is_not_reported(tmp_path: Path, start: str) -> None:
    path = tmp_path / "hostler.yaml"
    found = mistakes(path, {"profiles": {"m": {"model": "/dev/null"}}, **FOLLOWING[start]})
    assert not [each for each in found if each.startswith(f"{start}: refusing") or "is not a profile" in each]
    assert [each for each in found if each.startswith(f"{path}:1: ")]


def test_a_fault_of_ours_is_a_mistake_with_a_traceback_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def find(_: Configuration) -> Sequence[str]:
        raise LookupError("unforeseen")

    path = tmp_path / "hostler.yaml"
    path.write_text("{}")
    with pytest.raises(ConfigError, match="Internal error: LookupError"):
        read_checked(path, {}, find)
    assert [each for each in caplog.records if each.exc_info]
