"""Tiny random models of every served architecture, and the comparison of logits with fp32's.

A difference is measured as a part of the range of its position's logits. With keys and values in
f16 it must stay below 2e-3; in f32 below what fp32 itself leaves open: the rotary angle of
position p is off by up to p * 2^-24 radian. The best token must be the same, unless transformers
holds the two for a tie: its margin between them is below the same bound.
"""

import subprocess
from dataclasses import dataclass, field

import numpy
import torch
import transformers

from conftest import BUILD

transformers.utils.logging.disable_progress_bar()

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


def make(variant):
    """The model of a variant, in fp32."""
    config = getattr(transformers, variant.architecture + "Config")(**GEOMETRY | variant.config)
    model = getattr(transformers, variant.architecture + "ForCausalLM")(config)
    randomize(model)
    return model


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0].numpy()


def our_logits(path, tokens, backend, kv_type, chunk):
    run = subprocess.run(
        [BUILD / "bin" / "everlong_logits", path, backend, kv_type, str(chunk)],
        input=" ".join(map(str, tokens)).encode(), capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    return numpy.frombuffer(run.stdout, dtype=numpy.float32).reshape(len(tokens), -1)


def bound(kv_type, count):
    return {"f32": count * 2**-24, "f16": 2e-3}[kv_type]


def difference(ours, expected):
    """The largest difference at each position, as a part of the range of its logits."""
    return abs(ours - expected).max(axis=1) / (expected.max(axis=1) - expected.min(axis=1))


def check(ours, expected, allowed):
    assert ours.shape == expected.shape
    worst = difference(ours, expected)
    rows = numpy.arange(len(expected))
    margin = expected.max(axis=1) - expected[rows, ours.argmax(axis=1)]
    margin /= expected.max(axis=1) - expected.min(axis=1)
    ties = [f"{row}: {margin[row]:.1e}" for row in rows[margin > 0]]
    print(f"difference {worst.max():.1e} of at most {allowed:.1e}; ties {ties}")
    assert worst.max() <= allowed, f"position {worst.argmax()}: {worst.max()}"
    assert margin.max() <= allowed, f"position {margin.argmax()}: margin {margin.max()}"
