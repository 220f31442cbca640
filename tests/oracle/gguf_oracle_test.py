"""Logits from GGUF files against Hugging Face transformers, in fp32 on the weights that they stand for."""

import dataclasses

import pytest
import torch

import gguf_models
from tiny_models import VARIANTS, bound, check, logits, make, our_logits

# Rows that are whole blocks of every type.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
# What the files say of architectures and rope scaling; the remaining variants differ in their config.json.
NAMES = ["gqa", "mha", "mqa", "tied", "head_dim", "biases", "llama3", "linear", "yarn", "mistral", "qwen2",
         "qwen3", "smollm3"]


def write(path, model, kind):
    gguf_models.write(path, model, gguf_models.QUANTIZATIONS[kind])
    return path


def random_tokens(model):
    return torch.randint(model.config.vocab_size, (150,), generator=torch.Generator().manual_seed(2)).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_variant(name, tmp_path):
    model = make(VARIANTS[name])
    path = write(tmp_path / "model.gguf", model, "F32")
    tokens = random_tokens(model)
    expected = logits(model, tokens)
    for backend in ("reference", "cpu"):
        check(our_logits(path, tokens, backend, "f32", chunk=61), expected, bound("f32", len(tokens)))


@pytest.mark.parametrize("name", ["tied", "qwen2"])
@pytest.mark.parametrize("kind", gguf_models.QUANTIZATIONS)
def test_type(name, kind, tmp_path):
    """Exactly what the same weights give as F32, and what transformers makes of them."""
    model = make(dataclasses.replace(VARIANTS[name], config=VARIANTS[name].config | WIDE))
    path = write(tmp_path / "model.gguf", model, kind)
    plain = write(tmp_path / "plain.gguf", model, "F32")
    tokens = random_tokens(model)
    ours = our_logits(path, tokens, "reference", "f32", chunk=61)
    assert (ours == our_logits(plain, tokens, "reference", "f32", chunk=61)).all()
    check(ours, logits(model, tokens), 2e-3)
