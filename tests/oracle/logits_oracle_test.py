"""Logits at every position against Hugging Face transformers, computed in fp32."""

import functools
import json
import shutil
import subprocess

import pytest
import tokenizers
import torch
import transformers

from conftest import ROOT
from tiny_models import GEOMETRY, VARIANTS, YARN, bound, check, difference, logits, make, our_logits

NEEDLE = ROOT / "models" / "needle-7m"
BACKENDS = ["reference", "cpu"]


def save(variant, directory):
    model = make(variant).to(variant.dtype)
    model.save_pretrained(directory, max_shard_size=variant.max_shard_size)
    shutil.copy(NEEDLE / "tokenizer.json", directory)


def expected_logits(directory, tokens):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return logits(model, tokens)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tmp_path_factory):
    """A tiny checkpoint, 150 tokens and their logits."""
    directory = tmp_path_factory.mktemp(request.param)
    save(VARIANTS[request.param], directory)
    tokens = torch.randint(GEOMETRY["vocab_size"], (150,),
                           generator=torch.Generator().manual_seed(2)).tolist()
    return directory, tokens, expected_logits(directory, tokens)


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_model(variant, backend, kv_type):
    directory, tokens, expected = variant
    check(our_logits(directory, tokens, backend, kv_type, chunk=61), expected, bound(kv_type, len(tokens)))


@functools.cache
def needle(count):
    """A prompt of about that many tokens, and their logits."""
    text = subprocess.run([ROOT / "scripts" / "needle-prompt", "--tokens", str(count)],
                          capture_output=True, check=True, text=True).stdout
    tokens = tokenizers.Tokenizer.from_file(str(NEEDLE / "tokenizer.json")).encode(text).ids
    return tokens, expected_logits(NEEDLE, tokens)


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
@pytest.mark.parametrize("backend, count", [("reference", 1000), ("cpu", 1000), ("cpu", 4000)])
def test_needle(backend, count, kv_type):
    tokens, expected = needle(count)
    check(our_logits(NEEDLE, tokens, backend, kv_type, chunk=512), expected, bound(kv_type, len(tokens)))


@pytest.mark.parametrize("name, change", [
    ("llama3", {"rope_parameters": None}),
    ("yarn", {"rope_parameters": YARN | {"beta_slow": 1.5}}),
    ("yarn_factor", {"rope_parameters": YARN | {"attention_factor": 1.25}}),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}),
    ("gqa", {"rms_norm_eps": 1e-4}),
])
def test_comparison_sees_what_a_config_says(tmp_path, name, change):
    """The bound is worth something: a detail of the geometry that is wrong does not meet it."""
    save(VARIANTS[name], tmp_path)
    tokens = list(range(1, 151))
    expected = expected_logits(tmp_path, tokens)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    ours = our_logits(tmp_path, tokens, "reference", "f32", chunk=150)
    assert difference(ours, expected).max() > bound("f32", len(tokens))
