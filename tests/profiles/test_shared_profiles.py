"""Profiles that the members of a cluster share."""

from __future__ import annotations

import pytest

from hostler.profiles.shared_profiles import AnyVariable, parse_shared_profiles
from hostler.profiles.yaml_config import DocumentError

TEXT = """
profiles:
  small: {model: /models/small.gguf}
  large: {model: "${env:MODELS}/large.gguf", engine: vllm, args: [--api-x, "${env:TOKEN}"]}
hosts:
  large: ["gpu-*", attic]
"""


def test_each_host_has_what_is_for_it() -> None:
    _, found = parse_shared_profiles(TEXT, "shared", {"MODELS": "/m", "TOKEN": "x"})
    assert list(found.of_host("gpu-1")) == list(found.of_host("attic")) == ["small", "large"]
    assert list(found.of_host("cellar")) == ["small"]
    assert list(found.of_host("pc.lan", "gpu-2")) == ["small", "large"]
    assert found.profiles["large"].model == "/m/large.gguf"


def test_an_empty_document_has_none() -> None:
    assert parse_shared_profiles("", "shared", {})[1].of_host("a") == {}
    assert parse_shared_profiles("# nothing\n", "shared", {})[1].of_host("a") == {}


def test_variables_of_other_machines_do_not_matter_for_a_check() -> None:
    _, found = parse_shared_profiles(TEXT, "shared", AnyVariable())
    assert found.profiles["large"].model == "/MODELS/large.gguf"
    assert len(AnyVariable()) == len(list(AnyVariable())) == 0


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("profiles: {a: {model: /a, env: {LD_PRELOAD: /x.so}}}", "profiles.a.env: is not shared"),
        ("profiles: {a: {model: /a, engine: /tmp/program}}", "profiles.a.engine: is not shared; name a preset"),
        ("profiles: {a: {model: /a, engine: 'sh -c true'}}", "profiles.a.engine: is not shared"),
        ("profiles: {a: {model: models/a.gguf}}", "profiles.a.model: models/a.gguf is a relative path"),
        ("profiles: {a: {model: /a, draft: ../d.gguf}}", "profiles.a.draft: ../d.gguf is a relative path"),
        ("engines: {x: {cmd: /bin/sh}}", "engines"),
        ("macros: {x: y}", "macros"),
        ("profiles: {a: {model: /a}}\nhosts: {b: [x]}", "hosts.b: is no profile; profiles are: a"),
        ("profiles: {a: {model: '${env:MISSING}'}}", "MISSING"),
        ("[1, 2]", "expected"),
        ("profiles: {a: {model: /a", "shared"),
    ],
)  # fmt: skip
def test_what_a_host_alone_decides_is_not_shared(text: str, mistake: str) -> None:
    with pytest.raises(DocumentError) as raised:
        parse_shared_profiles(text, "shared", {})
    assert mistake in str(raised.value)


@pytest.mark.parametrize("model", ["/m/a.gguf", "~/a.gguf", "C:\\models\\a.gguf", "hf:org/repo:Q4_K_M", "org/repo"])
def test_models_are_named_as_in_a_file_of_the_host(model: str) -> None:
    _, found = parse_shared_profiles(f"profiles: {{a: {{model: '{model}'}}}}", "shared", {})
    assert found.profiles["a"].model == model
