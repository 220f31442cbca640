"""Logits of the CUDA backend against Hugging Face transformers in fp32, where there is a GPU. In bf16 both
round much; ours may be as far from fp32 as transformers' own bf16 on the same weights is."""

import shutil

import numpy
import pytest
import tokenizers
import torch
import transformers

from conftest import NEEDLE
from logits_oracle_test import save
from tiny_models import GEOMETRY, VARIANTS, our_logits

pytestmark = pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="there is no NVIDIA GPU")


def their_logits(directory, tokens, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0].float().numpy()


def error(logits, exact):
    return numpy.linalg.norm(logits - exact) / numpy.linalg.norm(exact)


def compare(directory, tokens, chunk):
    exact = their_logits(directory, tokens, torch.float32)
    theirs = error(their_logits(directory, tokens, torch.bfloat16), exact)
    ours = error(our_logits(directory, tokens, "cuda", "bf16", chunk), exact)
    print(f"difference from fp32: {ours:.2e}, of transformers in bf16 {theirs:.2e}")
    assert ours <= theirs


@pytest.mark.parametrize("chunk", [61, 1])
@pytest.mark.parametrize("name", VARIANTS)
def test_tiny_model(tmp_path, name, chunk):
    save(VARIANTS[name], tmp_path)
    tokens = torch.randint(GEOMETRY["vocab_size"], (150,),
                           generator=torch.Generator().manual_seed(2)).tolist()
    compare(tmp_path, tokens, chunk)


@pytest.mark.parametrize("chunk", [512, 1])
def test_needle(chunk):
    text = (NEEDLE / "README.md").read_text()
    tokens = tokenizers.Tokenizer.from_file(str(NEEDLE / "tokenizer.json")).encode(text).ids[:1000]
    compare(NEEDLE, tokens, chunk)
