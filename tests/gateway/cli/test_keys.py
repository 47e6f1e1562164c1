"""Commands for keys: what they store, and what they show."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hostler.gateway.auth import keys
from hostler.gateway.cli.keys import keys_app, parse_expiry
from hostler.gateway.config import read
from hostler.gateway.context import KeyRules
from hostler.gateway.key_usage import KeyUsage
from hostler.gateway.last_good import keep

NOON = datetime.datetime(2027, 1, 15, 12).timestamp()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "hostler.yaml"
    file.write_text("gateway: {api_keys_file: keys, key_usage_file: usage.json}\n")
    return file


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(keys_app, [*arguments, "--config", str(config)])


ALL = (
    "--scope", "infer", "--priority", "5", "--local-only", "--model", "qwen*", "--model", "phi", "--backend", "pc",
    "--requests-per-minute", "60", "--tokens-per-minute", "50000", "--tokens-per-day", "1000000",
    "--dollars-per-day", "2.5", "--expires", "2099-12-31", "--note", "for the kitchen",
)  # fmt: skip
RULES = KeyRules(
    models=("qwen*", "phi"), backends=("pc",), requests_per_minute=60, tokens_per_minute=50_000,
    tokens_per_day=1_000_000, dollars_per_day=2.5,
)  # fmt: skip


def test_a_key_is_stored_with_its_rules(config: Path) -> None:
    key = run(config, "add", "bob", *ALL).stdout.strip()
    (record,) = keys.read(config.with_name("keys"))
    assert (record.rules, record.priority, record.local_only, record.scopes) == (RULES, 5, True, ("infer",))
    assert (record.note, record.expires) == ("for the kitchen", parse_expiry("2099-12-31", 0))
    client = keys.KeyRing(config.with_name("keys")).client(key)
    assert client is not None
    assert client.rules == RULES


def test_a_plain_key_has_no_rules(config: Path) -> None:
    key = run(config, "add", "bob").stdout.strip()
    assert config.with_name("keys").read_text().count('"rules"') == 0
    client = keys.KeyRing(config.with_name("keys")).client(key)
    assert client is not None
    assert (client.rules, client.expires, sorted(client.scopes)) == (None, False, ["infer", "read"])


def test_a_key_is_changed_and_what_is_not_given_stays(config: Path) -> None:
    run(config, "add", "bob", *ALL)
    before = keys.read(config.with_name("keys"))[0]
    changes = (
        "--tokens-per-day",
        "0",
        "--dollars-per-day",
        "-1",
        "--model",
        "*",
        "--expires",
        "never",
        "--no-local-only",
    )
    assert run(config, "set", "bob", *changes).output == "changed bob\n"
    (after,) = keys.read(config.with_name("keys"))
    assert (after.hash, after.priority, after.note) == (before.hash, 5, "for the kitchen")
    assert (after.expires, after.local_only) == (None, False)
    assert after.rules == KeyRules(backends=("pc",), requests_per_minute=60, tokens_per_minute=50_000)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("set", "bob"), 2, "nothing to change"),
        (("set", "eve", "--note", "x"), 1, "no key named 'eve'"),
        (("add", " "), 2, "a key needs a name"),
        (("add", "a\nb"), 2, "a key needs a name: one line of text"),
        (("add", "eve", "--expires", "soon"), 2, "write 2027-01-31, 12h, 30d, 4w or never"),
        (("add", "eve", "--requests-per-minute", "-1"), 2, "--requests-per-minute"),
        (("add", "eve", "--requests-per-minute", str(2**53 + 1)), 2, "--requests-per-minute"),
        (("add", "eve", "--tokens-per-minute", str(2**64)), 2, "--tokens-per-minute"),
        (("set", "bob", "--tokens-per-day", str(2**70)), 2, "--tokens-per-day"),
    ],
)
def test_a_mistake_is_named(config: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    run(config, "add", "bob")
    found = run(config, *arguments)
    assert (found.exit_code, words in found.output) == (code, True)


def test_the_list_shows_limits_and_what_was_used_today(config: Path) -> None:
    run(config, "add", "bob", *ALL)
    run(config, "add", "eve", "--expires", "1h")
    usage = KeyUsage(config.with_name("usage.json"), lambda: datetime.datetime.now().timestamp())
    reserved = usage.reserve("bob", RULES, prompt_tokens=0, dollars=0)
    usage.settle(reserved, prompt_tokens=1000, answer_tokens=234, dollars=0.125)
    usage.write()
    text = run(config, "list").output
    for words in ("60 requests/min", "$2.5/day", "models qwen* phi", "1 requests, 1,234 tokens, $0.12", "2099-12-31"):
        assert words in text
    bob, eve = json.loads(run(config, "list", "--json").stdout)
    assert bob["used"] == {"requests": 1, "tokens": 1234, "dollars": 0.125}
    assert bob["rules"]["tokens_per_minute"] == 50_000
    assert (eve["used"], eve["rules"]) == (None, {})
    assert "hash" not in bob


def test_keys_that_members_of_a_cluster_share_are_listed_and_marked(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    with config.open("a") as file:
        file.write("cluster: {name: home, store: 'redis://127.0.0.1:1', token: secret-token-of-16}\n")
    run(config, "add", "bob")
    assert "OF" not in run(config, "list").output
    shared = tmp_path / "shared"
    for name in ("bob", "eve"):
        keys.add(shared, name, ("infer",))
    (tmp_path / "state").mkdir()
    shared.rename(tmp_path / "state" / "cluster-home-keys")
    shown = json.loads(run(config, "list", "--json").stdout)
    assert [(each["name"], each["shared"]) for each in shown] == [("bob", False), ("eve", True)]
    rows = [line.split()[:2] for line in run(config, "list").output.splitlines()]
    assert rows == [["NAME", "OF"], ["bob", "file"], ["eve", "cluster"]]
    refused = run(config, "revoke", "eve")
    assert (refused.exit_code, "hostler config push keys FILE" in refused.output) == (1, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12h", NOON + 12 * 3600),
        ("30d", NOON + 30 * 86400),
        ("4w", NOON + 28 * 86400),
        ("never", None),
        ("2027-01-31", datetime.datetime(2027, 2, 1).timestamp()),
    ],
)
def test_a_key_expires_after_a_time_or_at_the_end_of_a_day(text: str, expected: float | None) -> None:
    assert parse_expiry(text, NOON) == expected


@pytest.mark.parametrize("text", ["", "soon", "0d", "-1d", "30", "2027-13-01", "1y"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_expiry(text, NOON)


def test_mistakes_in_the_configuration_are_shown_once(config: Path) -> None:
    run(config, "add", "bob")
    keep(read(config))
    config.write_text("gateway: {unknown: 1}\n")
    found = run(config, "list")
    assert (found.exit_code, "bob" in found.stdout) == (0, True)
    assert found.stderr.count("using its last good state") == 1
