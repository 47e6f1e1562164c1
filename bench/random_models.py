"""Tiny GGUF models of several architectures, with random weights: conversations are kept for them as for real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from gguf import GGUFValueType, GGUFWriter, TokenType

#: Every character is a token, so that nothing has to be downloaded, and answers are readable.
CHARACTERS: Final = "".join(chr(code) for code in range(33, 127))
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
#: Space and line feed, as GPT-2's byte-level tokenizer writes them.
SPACES: Final = ("\u0120", "\u010a")
TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

WIDTH: Final = 64
HEADS: Final = 4
KV_HEADS: Final = 2
HEAD: Final = WIDTH // HEADS
FEED_FORWARD: Final = 128
BLOCKS: Final = 4
CONTEXT: Final = 16384
#: The context that models with LongRoPE were trained with at first: in larger ones they turn their keys otherwise.
FIRST_CONTEXT: Final = 4096
WINDOW: Final = 64
EXPERTS: Final = 2
STATE: Final = 16
INNER: Final = 128
#: Heads of the recurrent layers, and groups of them.
RANK: Final = 8
GROUPS: Final = 2
CONVOLUTION: Final = 4

_TYPES: Final = {
    int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING, list: GGUFValueType.ARRAY,
}  # fmt: skip

Shapes = dict[str, tuple[int, ...]]


class Architecture(NamedTuple):
    """Its keys, without the architecture's name in front, and the tensors of each block, in NumPy's order of dimensions.

    `name` is its name in GGUF files, if it has another one here; `others` are tensors beside the blocks.
    """

    keys: Mapping[str, Any]
    blocks: Sequence[Shapes]
    name: str = ""
    others: Mapping[str, tuple[int, ...]] = MappingProxyType({})


def _attention(head: int, *, biases: bool = False) -> Shapes:
    shapes: Shapes = {
        "attn_q.weight": (HEADS * head, WIDTH),
        "attn_k.weight": (KV_HEADS * head, WIDTH),
        "attn_v.weight": (KV_HEADS * head, WIDTH),
        "attn_output.weight": (WIDTH, HEADS * head),
    }
    if biases:
        shapes |= {name.replace(".weight", ".bias"): shape[:1] for name, shape in list(shapes.items())}
    return shapes


def _feed_forward(width: int) -> Shapes:
    return {
        "ffn_gate.weight": (width, WIDTH),
        "ffn_up.weight": (width, WIDTH),
        "ffn_down.weight": (WIDTH, width),
    }


def _norms(*names: str, size: int = WIDTH) -> Shapes:
    return {f"{name}.weight": (size,) for name in names}


def _mamba2() -> Shapes:
    convolved = INNER + 2 * GROUPS * STATE
    return {
        **_norms("attn_norm"),
        "ssm_in.weight": (INNER + convolved + RANK, WIDTH),
        "ssm_conv1d.weight": (convolved, CONVOLUTION),
        "ssm_conv1d.bias": (convolved,),
        "ssm_dt.bias": (RANK,),
        "ssm_a": (RANK, 1),
        "ssm_d": (RANK, 1),
        "ssm_norm.weight": (GROUPS, INNER // GROUPS),
        "ssm_out.weight": (WIDTH, INNER),
    }


def _gated_delta() -> Shapes:
    keys, values = STATE * GROUPS, STATE * RANK
    return {
        "attn_qkv.weight": (2 * keys + values, WIDTH),
        "attn_gate.weight": (values, WIDTH),
        "ssm_conv1d.weight": (2 * keys + values, CONVOLUTION),
        "ssm_dt.bias": (RANK,),
        "ssm_a": (RANK,),
        "ssm_beta.weight": (RANK, WIDTH),
        "ssm_alpha.weight": (RANK, WIDTH),
        "ssm_norm.weight": (STATE,),
        "ssm_out.weight": (WIDTH, values),
    }


def _gated_attention(head: int) -> Shapes:
    return {
        **_attention(head),
        "attn_q.weight": (2 * HEADS * head, WIDTH),
        **_norms("attn_q_norm", "attn_k_norm", size=head),
    }


_RECURRENT: Final = {
    "ssm.conv_kernel": CONVOLUTION, "ssm.inner_size": INNER, "ssm.state_size": STATE, "ssm.time_step_rank": RANK,
    "ssm.group_count": GROUPS,
}  # fmt: skip


def _gpt_oss(head: int, feed_forward: int) -> Shapes:
    return {
        **_norms("attn_norm", "post_attention_norm"),
        **_attention(head, biases=True),
        "attn_sinks.weight": (HEADS,),
        "ffn_gate_inp.weight": (EXPERTS, WIDTH),
        "ffn_gate_inp.bias": (EXPERTS,),
        "ffn_gate_exps.weight": (EXPERTS, feed_forward, WIDTH),
        "ffn_gate_exps.bias": (EXPERTS, feed_forward),
        "ffn_up_exps.weight": (EXPERTS, feed_forward, WIDTH),
        "ffn_up_exps.bias": (EXPERTS, feed_forward),
        "ffn_down_exps.weight": (EXPERTS, WIDTH, feed_forward),
        "ffn_down_exps.bias": (EXPERTS, WIDTH),
    }


def _architectures(head: int, feed_forward: int) -> dict[str, Architecture]:
    plain = {**_norms("attn_norm", "ffn_norm"), **_attention(head), **_feed_forward(feed_forward)}
    qwen = {**_norms("attn_norm", "post_attention_norm"), **_feed_forward(feed_forward)}
    gemma = {
        **plain,
        **_norms("post_attention_norm", "post_ffw_norm"),
        **_norms("attn_q_norm", "attn_k_norm", size=head),
    }
    wide = {"ffn_up.weight": (feed_forward, WIDTH), "ffn_down.weight": (WIDTH, feed_forward)}
    nemotron = (_mamba2(), {**_norms("attn_norm"), **_attention(head)}, _mamba2(), {**_norms("attn_norm"), **wide})
    return {
        "llama": Architecture({}, [plain] * BLOCKS),
        "gemma3": Architecture({"attention.sliding_window": WINDOW}, [gemma] * 6),
        "gpt-oss": Architecture(
            {
                "attention.sliding_window": WINDOW, "expert_count": EXPERTS, "expert_used_count": EXPERTS,
                "expert_feed_forward_length": feed_forward,
            },
            [_gpt_oss(head, feed_forward)] * BLOCKS,
        ),
        "mamba2": Architecture(_RECURRENT, [_mamba2()] * BLOCKS),
        "nemotron_h": Architecture(
            {**_RECURRENT, "attention.head_count_kv": [0, KV_HEADS, 0, 0], "feed_forward_length": [0, 0, 0, feed_forward]},
            nemotron,
        ),
        "qwen35": Architecture(
            {**_RECURRENT, "ssm.inner_size": STATE * RANK, "full_attention_interval": 2, "rope.dimension_sections": [head // 4, head // 8, head // 8, 0]},
            [qwen | _gated_delta(), qwen | _gated_attention(head)] * 2,
        ),
    }  # fmt: skip


def _variants(head: int, feed_forward: int) -> dict[str, Architecture]:
    """Models with a head that guesses (MTP) in the same file, a head in a file of its own, and a model with LongRoPE."""
    plain = {**_norms("attn_norm", "post_attention_norm"), **_attention(head), **_feed_forward(feed_forward)}
    guess = {
        **_norms("nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm"),
        "nextn.eh_proj.weight": (WIDTH, 2 * WIDTH),
    }
    experts = {
        **_norms("attn_norm", "post_attention_norm"),
        **_attention(head),
        "ffn_gate_inp.weight": (EXPERTS, WIDTH),
        "exp_probs_b.bias": (EXPERTS,),
        "ffn_gate_exps.weight": (EXPERTS, feed_forward, WIDTH),
        "ffn_up_exps.weight": (EXPERTS, feed_forward, WIDTH),
        "ffn_down_exps.weight": (EXPERTS, WIDTH, feed_forward),
        "ffn_gate_shexp.weight": (feed_forward, WIDTH),
        "ffn_up_shexp.weight": (feed_forward, WIDTH),
        "ffn_down_shexp.weight": (WIDTH, feed_forward),
    }
    eagle = {**_norms("attn_norm", "attn_norm_2", "ffn_norm"), **_attention(head), **_feed_forward(feed_forward)}
    # Attention sees the token and what the model thinks of it, side by side.
    eagle |= {f"attn_{part}.weight": (eagle[f"attn_{part}.weight"][0], 2 * WIDTH) for part in "qkv"}
    others = _architectures(head, feed_forward)
    qwen, llama = others["qwen35"], others["llama"]
    return {
        "glm4moe-mtp": Architecture(
            {
                "nextn_predict_layers": 1, "leading_dense_block_count": BLOCKS, "expert_count": EXPERTS,
                "expert_used_count": 1, "expert_shared_count": 1, "expert_feed_forward_length": feed_forward,
            },
            [*[plain] * BLOCKS, experts | guess], "glm4moe",
        ),
        "qwen35-mtp": Architecture({**qwen.keys, "nextn_predict_layers": 1}, [*qwen.blocks, qwen.blocks[1] | guess], "qwen35"),
        "eagle3": Architecture(
            {"target_layers": [1, 2, 3], "target_hidden_size": WIDTH}, [eagle], others={"fc.weight": (WIDTH, 3 * WIDTH)}
        ),
        "llama-longrope": Architecture(
            {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": FIRST_CONTEXT}, llama.blocks, "llama",
            {f"rope_factors_{which}.weight": (head // 2,) for which in ("long", "short")},
        ),
    }  # fmt: skip


#: All architectures that can be written, by their names in GGUF files.
ARCHITECTURES: Final = _architectures(HEAD, FEED_FORWARD)

#: Models with heads that guess, a head for a model of the architecture `llama`, and such a model with LongRoPE.
VARIANTS: Final = _variants(HEAD, FEED_FORWARD)


def write_model(path: Path, name: str, *, seed: int = 1, head: int = HEAD, feed_forward: int = FEED_FORWARD) -> Path:
    """Write one of the `ARCHITECTURES` or of the `VARIANTS`, the same one for the same seed; returns `path`.

    Engines read a few tokens after a long prompt as slowly as they write them if a `head` is narrower than their vectors.
    With narrow `feed_forward` layers nearly all of their time goes to attention, other than in real models.
    """
    architecture = (_architectures(head, feed_forward) | _variants(head, feed_forward))[name]
    writer = GGUFWriter(path, architecture.name or name)
    random = np.random.default_rng(seed)
    _write_keys(writer, architecture, head, feed_forward)
    _write_tokenizer(writer)

    tokens = len(SPECIAL) + len(SPACES) + len(CHARACTERS)
    # Without an output of its own a model of random weights repeats its last token.
    shapes: Shapes = {
        "token_embd.weight": (tokens, WIDTH),
        "output_norm.weight": (WIDTH,),
        "output.weight": (tokens, WIDTH),
        **architecture.others,
    }
    for number, block in enumerate(architecture.blocks):
        shapes |= {f"blk.{number}.{tensor}": shape for tensor, shape in block.items()}
    for tensor, shape in shapes.items():
        writer.add_tensor(tensor, _weights(random, tensor, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(random: np.random.Generator, tensor: str, shape: tuple[int, ...]) -> Any:
    if "norm" in tensor or "factors_short" in tensor:
        values = np.ones(shape)
    elif "factors_long" in tensor:
        values = np.linspace(2.0, 30.0, shape[0])
    elif tensor.endswith("ssm_a"):
        # Decay: must be negative, or states grow without bounds.
        values = -random.uniform(0.05, 1.0, shape)
    else:
        values = random.normal(0.0, 1.0 if "embd" in tensor else 0.3, shape)
    return values.astype(np.float32)


def _write_keys(writer: GGUFWriter, architecture: Architecture, head: int, feed_forward: int) -> None:
    keys: dict[str, Any] = {
        "block_count": len(architecture.blocks), "context_length": CONTEXT, "embedding_length": WIDTH,
        "feed_forward_length": feed_forward, "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS,
        "attention.key_length": head, "attention.value_length": head, "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5,
        "rope.freq_base": 10000.0, "rope.dimension_count": head,
        **architecture.keys,
    }  # fmt: skip
    for key, value in keys.items():
        writer.add_key_value(f"{writer.arch}.{key}", value, _TYPES[type(value)])


def _write_tokenizer(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*SPECIAL, *SPACES, *CHARACTERS])
    writer.add_token_types([TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(SPACES) + len(CHARACTERS)))
    # The engine wants a list of merges; this pair never occurs in a word.
    writer.add_token_merges(["\u010a !"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
