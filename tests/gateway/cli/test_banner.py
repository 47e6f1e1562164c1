"""The banner: its lines can be pasted into a shell as they are."""

from __future__ import annotations

import json
import shlex

import pytest

from hostler.gateway.cli.banner import banner, example_model, local_url
from hostler.profiles.engines import Engine
from hostler.profiles.schema import Profile


def text_for(*addresses: tuple[str, int], keys_required: bool = False) -> str:
    return banner(["a", "b"], "a", addresses, keys_required=keys_required, hostname="den")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("192.168.1.7", "http://192.168.1.7:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("fd00::7", "http://[fd00::7]:80"),
    ],
)
def test_an_address_can_be_called(host: str, url: str) -> None:
    assert local_url(host, 80) == url
    text = text_for((host, 80))
    assert f"listens on {url}\n" in text
    assert f"curl {url}/v1/chat/completions" in text
    assert "//0.0.0.0" not in text
    assert "[::]" not in text


def test_other_machines_get_its_name_where_it_listens_everywhere() -> None:
    assert "http://den:80" in text_for(("0.0.0.0", 80))
    assert text_for(("0.0.0.0", 80), ("::", 80)).count("http://den:80") == 1
    assert "den" not in text_for(("127.0.0.1", 80))


def test_every_address_is_named() -> None:
    assert "listens on http://127.0.0.1:80 and http://[fd00::7]:81\n" in text_for(("127.0.0.1", 80), ("fd00::7", 81))


def test_a_unix_socket_is_named_and_used_where_there_is_nothing_else() -> None:
    alone, beside = text_for(("/run/h.sock", 0)), text_for(("/run/h.sock", 0), ("127.0.0.1", 80))
    assert "listens on unix:/run/h.sock\n" in alone
    assert "curl --unix-socket /run/h.sock http://localhost/v1/chat/completions" in alone
    assert "curl http://127.0.0.1:80/v1/chat/completions" in beside


def test_pasted_lines_hold_a_key_where_one_is_required() -> None:
    with_keys = text_for(("127.0.0.1", 80), keys_required=True)
    assert "-H 'Authorization: Bearer KEY' \\\n" in with_keys
    assert "OPENAI_API_KEY=KEY" in with_keys
    assert "hostler keys add" in with_keys
    without = text_for(("127.0.0.1", 80))
    assert "KEY=unused" in without
    assert "Bearer" not in without


def test_only_the_first_of_many_models_are_named() -> None:
    names = [f"m{number}" for number in range(20)]
    text = banner(names, "m0", [("127.0.0.1", 80)], keys_required=False, hostname="den")
    assert "  models     m0, m1, m2, m3, m4, m5 and 14 more\n" in text


def test_it_fits_into_eighty_columns() -> None:
    text = banner(["smollm2", "smollm2-long"], "smollm2", [("127.0.0.1", 8000)], keys_required=True, hostname="den")
    assert max(len(line) for line in text.splitlines()) < 80


def test_the_curl_command_is_complete() -> None:
    text = text_for(("127.0.0.1", 80))
    command = text[text.index("  curl ") : text.index("  export ")]
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["curl", "http://127.0.0.1:80/v1/chat/completions"]
    assert json.loads(words[-1])["messages"] == [{"role": "user", "content": "Hello!"}]


def test_the_example_is_a_chat_with_a_model_that_can_chat() -> None:
    vectors = Profile(name="vectors", model="x", embeddings=True)
    speech = Profile(name="speech", model="x", definition=Engine(name="e", command=("e",), serves=("speech",)))
    chat, other = Profile(name="chat", model="x"), Profile(name="other", model="x", default=True)
    assert example_model([vectors, speech, chat], ["far"]) == "chat"
    assert example_model([vectors, chat, other], []) == "other"
    assert example_model([vectors], ["far"]) == "far"
    assert example_model([], []) == "NAME"


@pytest.mark.parametrize(
    ("alone", "words"), [(True, "none yet; add a profile, or a file"), (False, "those of its backends")]
)
def test_without_models_it_says_where_they_may_come_from(alone: bool, words: str) -> None:
    text = banner([], None, [("127.0.0.1", 80)], keys_required=False, hostname="den", alone=alone)
    assert f"  models     {words}" in text and max(map(len, text.splitlines())) < 80
