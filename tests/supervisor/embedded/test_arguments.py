"""The arguments of the embedded engine."""

from __future__ import annotations

import pytest

from hostler.supervisor.embedded.arguments import FLAGS, BadArgument, parse


@pytest.mark.parametrize(
    ("words", "where", "value"),
    [
        (["-c", "4096"], "n_ctx", 4096),
        (["--ctx-size", "4096"], "n_ctx", 4096),
        (["--ctx_size", "4096"], "n_ctx", 4096),
        (["-c", "1", "-c", "2"], "n_ctx", 2),
        (["-a", "b,a"], "model_alias", {"a", "b"}),
        (["--host", "127.0.0.1,::1"], "hostnames", ["127.0.0.1", "::1"]),
        (["-ngl", "all"], "n_gpu_layers", -2),
        (["--gpu-layers", "auto"], "n_gpu_layers", -1),
        (["--n-gpu-layers", "0"], "n_gpu_layers", 0),
        (["-cram", "-1"], "cache_ram_mib", -1),
        (["--slot-save-path", "/tmp"], "slot_save_path", "/tmp/"),
        (["--no-webui"], "ui", False),
        (["--no-jinja"], "use_jinja", False),
        (["-fit", "off"], "fit_params", False),
        (["--rope-scale", "4"], "rope_freq_scale", 0.25),
        (["--rerank"], "embedding", True),
        (["-md", "/d.gguf"], "speculative.draft.mparams.path", "/d.gguf"),
        (["--draft-max", "4"], "speculative.draft.n_max", 4),
        (
            ["--chat-template-kwargs", '{"enable_thinking": false}'],
            "default_template_kwargs",
            {"enable_thinking": "false"},
        ),
    ],
)
def test_an_argument_becomes_a_value(words: list[str], where: str, value: object) -> None:
    assert parse(words)[where] == value


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--no-mmap"], "error: invalid argument: --no-mmap"),
        (["stray"], "error: invalid argument: stray"),
        (["-c", "many"], 'error while handling argument "-c": '),
        (["-c"], 'error while handling argument "-c": expected value'),
        (["--slot-save-path", "/nonexistent"], "not a directory: /nonexistent"),
        (["-fa", "perhaps"], "expected one of: on, off, auto"),
        (["-ctk", "q3"], "unsupported cache type: q3"),
    ],
)
def test_a_bad_argument_is_refused_by_name(words: list[str], line: str) -> None:
    with pytest.raises(BadArgument) as refused:
        parse(words)
    assert line in str(refused.value)


def test_guesses_come_from_a_draft_model_or_from_the_text_itself() -> None:
    known = pytest.importorskip("xllamacpp").common_speculative_type
    types = parse(["--spec-type", "ngram-mod,draft-mtp,draft-eagle3"])["speculative.types"]
    names = ("NGRAM_MOD", "DRAFT_MTP", "DRAFT_EAGLE3")
    assert types == [getattr(known, f"COMMON_SPECULATIVE_TYPE_{name}") for name in names]
    with pytest.raises(BadArgument, match="ngram-simple"):
        parse(["--spec-type", "guess"])


def test_no_argument_is_defined_twice() -> None:
    names = [name for flag in FLAGS for name in flag.names]
    assert len(names) == len(set(names))


def test_every_value_has_its_place_in_the_engine() -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    for flag in FLAGS:
        owner = xllamacpp.CommonParams()
        for part in flag.where.split("."):
            assert hasattr(owner, part), flag.names
            owner = getattr(owner, part)
