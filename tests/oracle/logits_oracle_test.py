"""Logits at every position against Hugging Face transformers, computed in fp32.

A difference is measured as a part of the range of its position's logits. With keys and values in
f16 it must stay below 2e-3; in f32 below what fp32 itself leaves open: the rotary angle of
position p is off by up to p * 2^-24 radian. The best token must be the same, unless transformers
holds the two for a tie: its margin between them is below the same bound.
"""

import functools
import json
import shutil
import subprocess
from dataclasses import dataclass, field

import numpy
import pytest
import tokenizers
import torch
import transformers

from conftest import BUILD, ROOT

transformers.utils.logging.disable_progress_bar()

NEEDLE = ROOT / "models" / "needle-7m"
BACKENDS = ["reference", "cpu"]

GEOMETRY = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "bos_token_id": None, "eos_token_id": 0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0,
        "original_max_position_embeddings": 64}


@dataclass(frozen=True)
class Variant:
    architecture: str = "Llama"
    config: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    max_shard_size: str = "1GB"


def rope(**parameters):
    return {"rope_parameters": parameters}


VARIANTS = {
    "gqa": Variant(),
    "mha": Variant(config={"num_key_value_heads": 4}),
    "mqa": Variant(config={"num_key_value_heads": 1}),
    "tied": Variant(config={"tie_word_embeddings": True}),
    "head_dim": Variant(config={"head_dim": 32, "num_attention_heads": 3,
                                "num_key_value_heads": 1, "hidden_size": 72}),
    "biases": Variant(config={"attention_bias": True, "mlp_bias": True}),
    "llama3": Variant(config=rope(**LLAMA3)),
    "linear": Variant(config=rope(rope_type="linear", rope_theta=5e4, factor=4.0)),
    "yarn": Variant(config=rope(**YARN)),
    "yarn_untruncated": Variant(config=rope(**YARN, truncate=False, beta_fast=16, beta_slow=2)),
    "yarn_mscale": Variant(config=rope(**YARN, mscale=1.0, mscale_all_dim=0.5)),
    "yarn_factor": Variant(config=rope(**YARN, attention_factor=1.3)),
    "f16": Variant(dtype=torch.float16),
    "bf16_sharded": Variant(dtype=torch.bfloat16, max_shard_size="100KB"),
    "mistral": Variant("Mistral", {"sliding_window": None, "head_dim": 24}),
    "qwen2": Variant("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": Variant("Qwen3", {"head_dim": 32, "attention_bias": True}),
    "smollm3": Variant("SmolLM3", {"num_hidden_layers": 5, "pad_token_id": None}),
}


def randomize(model):
    """Weights that keep activations and attention scores of order one, so that all parts count."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data = 1 + 0.3 * noise
        elif name.endswith("bias"):
            parameter.data = 0.5 * noise
        elif "embed" in name:
            parameter.data = noise
        else:
            parameter.data = noise / parameter.shape[1] ** 0.5
    model.tie_weights()


def save(variant, directory):
    config = getattr(transformers, variant.architecture + "Config")(**GEOMETRY | variant.config)
    model = getattr(transformers, variant.architecture + "ForCausalLM")(config)
    randomize(model)
    model.to(variant.dtype).save_pretrained(directory, max_shard_size=variant.max_shard_size)
    shutil.copy(NEEDLE / "tokenizer.json", directory)


def expected_logits(directory, tokens):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0].numpy()


def our_logits(directory, tokens, backend, kv_type, chunk):
    run = subprocess.run(
        [BUILD / "bin" / "everlong_logits", directory, backend, kv_type, str(chunk)],
        input=" ".join(map(str, tokens)).encode(), capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    return numpy.frombuffer(run.stdout, dtype=numpy.float32).reshape(len(tokens), -1)


def bound(kv_type, count):
    return {"f32": count * 2**-24, "f16": 2e-3}[kv_type]


def difference(ours, expected):
    """The largest difference at each position, as a part of the range of its logits."""
    return abs(ours - expected).max(axis=1) / (expected.max(axis=1) - expected.min(axis=1))


def check(ours, expected, kv_type):
    assert ours.shape == expected.shape
    allowed = bound(kv_type, len(expected))
    worst = difference(ours, expected)
    rows = numpy.arange(len(expected))
    margin = expected.max(axis=1) - expected[rows, ours.argmax(axis=1)]
    margin /= expected.max(axis=1) - expected.min(axis=1)
    ties = [f"{row}: {margin[row]:.1e}" for row in rows[margin > 0]]
    print(f"difference {worst.max():.1e} of at most {allowed:.1e}; ties {ties}")
    assert worst.max() <= allowed, f"position {worst.argmax()}: {worst.max()}"
    assert margin.max() <= allowed, f"position {margin.argmax()}: margin {margin.max()}"


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
    check(our_logits(directory, tokens, backend, kv_type, chunk=61), expected, kv_type)


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
    check(our_logits(NEEDLE, tokens, backend, kv_type, chunk=512), expected, kv_type)


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
