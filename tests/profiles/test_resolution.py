"""Profiles: inheritance, conflicting names, and what a profile must not contain."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hostler.profiles.resolution import resolve
from hostler.profiles.schema import Profile, ProfileEntry, ProfileError
from hostler.profiles.yaml_config import Size


def entry(**given: Any) -> ProfileEntry:
    return ProfileEntry(**({"model": "/m.gguf"} | given))


def error_of(**entries: ProfileEntry) -> str:
    with pytest.raises(ProfileError) as caught:
        resolve({name.replace("__", "/"): value for name, value in entries.items()})
    return str(caught.value)


def test_fills_in_defaults() -> None:
    assert resolve({"a": entry()}) == (Profile(name="a", model="/m.gguf"),)


def test_inherits_all_but_names_over_several_levels() -> None:
    first = entry(context=100, args=("--x", "1"), ttl_s=5.0, aliases=("one",), description="first", default=True)
    second = ProfileEntry(base="a", context=200, memory=Size(9))
    third = ProfileEntry(base="b", args=("--y",), ttl_s=None)
    profiles = {profile.name: profile for profile in resolve({"c": third, "b": second, "a": first})}
    assert profiles["b"] == Profile(name="b", model="/m.gguf", context=200, args=("--x", "1"), ttl_s=5.0, memory=9)
    assert profiles["c"] == Profile(name="c", model="/m.gguf", context=200, args=("--y",), ttl_s=None, memory=9)


def test_a_profile_can_be_encoded_as_json() -> None:
    encoded = msgspec.json.encode(resolve({"a": entry(memory=Size(9), gpu_layers="all")}))
    assert b'"memory":9' in encoded


def test_does_not_inherit_the_checksum_of_another_file() -> None:
    base = entry(sha256="a" * 64)
    same, other = resolve({"a": base, "b": ProfileEntry(base="a"), "c": ProfileEntry(base="a", model="/o.gguf")})[1:]
    assert same.sha256 == "a" * 64
    assert other.sha256 is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"a": ProfileEntry(base="b"), "b": ProfileEntry(base="a")},
            "profiles.b.base: circular inheritance: a -> b -> a",
        ),
        ({"a": ProfileEntry(base="a")}, "profiles.a.base: circular inheritance: a -> a"),
        (
            {"qwen": entry(), "b": ProfileEntry(base="qwne")},
            "profiles.b.base: unknown profile qwne, did you mean qwen?",
        ),
        (
            {"a": ProfileEntry(context=5)},
            "profiles.a: needs model: (the file to run) or base: (a profile to inherit from)",
        ),
        ({"a": entry(context=0)}, "profiles.a.context: must be at least 1, got 0"),
        ({"a": entry(parallel=0)}, "profiles.a.parallel: must be at least 1, got 0"),
        ({"a": entry(max_concurrent=0)}, "profiles.a.max_concurrent: must be at least 1, got 0"),
        ({"a": entry(max_waiting=0)}, "profiles.a.max_waiting: must be at least 1, got 0"),
        ({"a": entry(max_answer_s=0)}, "profiles.a.max_answer_s: must be at least 0.1, got 0"),
        ({"a": entry(evict_cost=-1.0)}, "profiles.a.evict_cost: must be at least 0, got -1.0"),
        (
            {"a": entry(devices=("gpu0", "cuda:1"))},
            "profiles.a.devices: 'cuda:1' is not a device: they are gpu0, gpu1 and so on",
        ),
        ({"a": entry(ttl_s=float("nan"))}, "profiles.a.ttl_s: must be at least 0, got nan"),
        ({"a": entry(gpu_layers=-1)}, "profiles.a.gpu_layers: must be at least 0, got -1"),
        (
            {"a": entry(default=True), "b": entry(default=True)},
            "profiles.b.default: a is already the default; only one profile can be",
        ),
        ({"a": entry(args=("--port", "1"))}, "profiles.a.args: --port is set by the supervisor: leave it out"),
        ({"a": entry(args=("-c", "1"))}, "profiles.a.args: -c is set by the supervisor: use context instead"),
        ({"a": entry(args=("--alias=x",))}, "profiles.a.args: --alias is set by the supervisor: use aliases instead"),
        (
            {"a": entry(env={"LLAMA_API_KEY": "x"})},
            "profiles.a.env: LLAMA_API_KEY is set by the supervisor: leave it out",
        ),
        ({"a": entry(env={"A B": "x"})}, "profiles.a.env: 'A B' is not a valid environment variable"),
        ({"a": entry(sha256="ABC")}, "profiles.a.sha256: must be 64 hexadecimal digits in lower case"),
        (
            {"a": entry(model="https://x.org/m.gguf")},
            "profiles.a.sha256: is required for a model from a web address",
        ),
        (
            {"a": entry(model="ftp://x/m.gguf")},
            "profiles.a.model: unknown source ftp:; use a path, hf:, hub:, https: or pypi:",
        ),
    ],
)
def test_errors_name_the_profile_the_key_and_the_remedy(entries: dict[str, ProfileEntry], message: str) -> None:
    assert error_of(**entries) == message


@pytest.mark.parametrize(
    "flag", ["--host", "--port", "--api-key", "-m", "--model", "--alias", "--slot-save-path", "-np"]
)
def test_rejects_flags_that_the_supervisor_sets(flag: str) -> None:
    assert flag in error_of(a=entry(args=("--flash-attn", "on", flag, "x")))


@pytest.mark.parametrize("name", ["a", "7b", "_x", "org/model", "a.b-c_d@e", "qwen3:8b", "hf.co/a/b:Q4_K_M", "x" * 128])
def test_accepts_names_that_are_safe_in_urls_and_paths(name: str) -> None:
    assert resolve({name: entry()})[0].name == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "-a", ".a", "/a", "a/", "a//b", "a/../b", "..", "a/.", "a:b:c", "ä", "a\n", "a%2e", "x" * 129],
)
def test_rejects_other_names(name: str) -> None:
    with pytest.raises(ProfileError, match="is not a valid name"):
        resolve({name: entry()})
    with pytest.raises(ProfileError, match="is not a valid name"):
        resolve({"a": entry(aliases=(name,))})


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        (("a", ()), ("A", ()), "profiles.A: the name A is taken: a is a profile"),
        (("a", ()), ("a:latest", ()), "profiles.a:latest: the name a:latest is taken: a is a profile"),
        (("a", ("x",)), ("b", ("X:latest",)), "profiles.b.aliases: the name X:latest is taken: x is an alias of a"),
        (("a", ("b",)), ("b", ()), "profiles.b: the name b is taken: b is an alias of a"),
    ],
)
def test_rejects_conflicting_names(
    one: tuple[str, tuple[str, ...]], two: tuple[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ProfileError) as caught:
        resolve({name: entry(aliases=aliases) for name, aliases in (one, two)})
    assert str(caught.value) == message


def test_a_profile_may_repeat_its_own_name() -> None:
    assert resolve({"a": entry(aliases=("a:latest", "A"))})
