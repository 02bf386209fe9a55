"""Small T5 models of transformers, saved to a folder: the oracle of the tests of `deft_tsds.t5`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHAPES = {
    # Odd sizes on purpose: heads * d_kv is not d_model, the vocabulary is odd, the stacks differ in depth. (The decoder
    # is never the deeper one: there transformers' own cache fails.)
    "t5": {"feed_forward_proj": "relu", "num_layers": 2, "num_decoder_layers": 2},
    "flan": {"feed_forward_proj": "gated-gelu", "num_layers": 3, "num_decoder_layers": 2, "tie_word_embeddings": False},
}
# The other half of {relu, gated gelu} x {tied, untied}, one layer deep.
CROSSED = {
    "t5-untied": {"feed_forward_proj": "relu", "num_layers": 1, "num_decoder_layers": 1, "tie_word_embeddings": False},
    "flan-tied": {"feed_forward_proj": "gated-gelu", "num_layers": 1, "num_decoder_layers": 1},
}


def torch_t5(kind: str, *, seed: int = 0):
    """A T5ForConditionalGeneration with weights large enough that its greedy text is neither constant nor endless."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    sizes = {"vocab_size": 97, "d_model": 36, "d_kv": 8, "d_ff": 44, "num_heads": 5}
    shape = {**SHAPES, **CROSSED}[kind]
    config = T5Config.from_dict({**sizes, **shape, "decoder_start_token_id": 0})
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "relative_attention_bias" in name:
                weight.normal_(0, 1.5)
            elif "layer_norm" in name:
                weight.uniform_(0.5, 1.5)
        if (
            "tie_word_embeddings" in shape
        ):  # T5Config of transformers 5 ties whatever it is told; a second matrix unties
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight) / 2)
            model.lm_head.weight[config.eos_token_id] *= 2.5
        else:  # small embeddings, or a tied model repeats its last token for ever
            model.shared.weight.mul_(0.1)
            model.shared.weight[config.eos_token_id] *= 3.5
            model.decoder.final_layer_norm.weight.mul_(20.0)
    return model


def save_torch_t5(kind: str, folder: Path, *, seed: int = 0):
    """`torch_t5`, written by transformers to `folder`."""
    model = torch_t5(kind, seed=seed)
    model.save_pretrained(folder)
    return model


def batch(rows: int, length: int, *, seed: int = 0, vocab_size: int = 97) -> tuple[np.ndarray, np.ndarray]:
    """Random ids [rows, length] ending in EOS at varying lengths, and their mask."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, length + 1, rows)
    lengths[0] = length
    ids = rng.integers(3, vocab_size, (rows, length))
    mask = np.arange(length) < lengths[:, None]
    ids[np.arange(rows), lengths - 1] = 1
    return np.where(mask, ids, 0).astype(np.int32), mask


def trimmed(rows: np.ndarray, eos: int = 1) -> list[list[int]]:
    """Each row up to its first EOS: transformers' beam search pads with EOS, ours with padding."""
    lists = [list(map(int, row)) for row in rows]
    return [row[: row.index(eos) + 1] if eos in row else row for row in lists]
