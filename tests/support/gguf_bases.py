"""The tiny Llama as a GGUF file, as llama.cpp's converter writes one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from torch import Tensor

from support.models import tiny_llama

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def save_gguf_base(folder: Path, *, layers: int | None = None) -> Path:
    """Write the tiny Llama and a tokenizer of bytes into ``folder/model.gguf``; return the folder.

    ``layers`` is a number of layers to claim in place of the right one.
    """
    folder.mkdir(parents=True)
    model = tiny_llama()
    config = model.config
    writer = GGUFWriter(folder / "model.gguf", "llama")
    writer.add_name("tiny")
    writer.add_block_count(layers or config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, config.vocab_size)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        writer.add_tensor(*_tensor(name.removesuffix(".weight"), parameter, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def _add_tokenizer(writer: GGUFWriter, size: int) -> None:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [str(digit) for digit in range(10)]
    tokens = ["<unk>", "<s>", "\u0120", "ab", *letters]
    tokens += [f"<{number}>" for number in range(size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (size - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(0)


def _tensor(path: str, parameter: Tensor, heads: dict[str, int]) -> tuple[str, np.ndarray]:
    values = parameter.detach().numpy()
    if path in _WHOLE:
        return f"{_WHOLE[path]}.weight", values
    _, _, layer, rest = path.split(".", 3)
    name = _NAMES[rest]
    if name in heads:
        # llama.cpp turns pairs of neighbours, transformers the two halves.
        shape = (heads[name], 2, len(values) // heads[name] // 2, values.shape[1])
        values = np.ascontiguousarray(values.reshape(shape).swapaxes(1, 2).reshape(values.shape))
    return f"blk.{layer}.{name}.weight", values
