"""Writes the models of tiny_models as GGUF files, as llama.cpp's converter does it, with the package gguf.

The converter itself is in no package. What it does to a checkpoint beyond copying: it names tensors
after a table that the package has, puts rows of Llama's query and key projections in the order in
which neighbours are rotated together, and turns Llama 3's rope scaling into a tensor.
"""

import gguf
import numpy
import torch

QUANTIZATIONS = {name: gguf.GGMLQuantizationType[name] for name in (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")}
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
                 "smollm3": "smollm3"}
ROTATES_NEIGHBOURS = ("llama", "smollm3")


def random_k_blocks(rng, kind, rows, cols, deviation):
    """Blocks of a K type, which the package reads but does not make: random codes and factors, and scales
    under which weights are centred and deviate so much."""
    count = rows * cols // 256
    step = deviation / {"Q4_K": 250, "Q5_K": 500, "Q6_K": 1300}[kind.name]
    scale = numpy.full((count, 1), step, numpy.float16).view(numpy.uint8)
    if kind.name == "Q6_K":
        blocks = [rng.integers(0, 256, (count, 208), numpy.uint8), scale]
    else:
        code_bytes = {"Q4_K": 128, "Q5_K": 160}[kind.name]
        middle = {"Q4_K": 7.5, "Q5_K": 15.5}[kind.name]
        minimum = numpy.full((count, 1), middle * step, numpy.float16).view(numpy.uint8)
        blocks = [scale, minimum, rng.integers(0, 256, (count, 12 + code_bytes), numpy.uint8)]
    return numpy.concatenate(blocks, axis=1).reshape(rows, -1)


def stored(rng, values, kind):
    """The bytes of a matrix [rows][...] and what they stand for."""
    if kind.name.endswith("_K"):
        data = random_k_blocks(rng, kind, *values.shape, values.std())
    else:
        data = gguf.quantize(values, kind)
    return data, gguf.dequantize(data, kind).reshape(values.shape)


def neighbours_together(data, heads):
    """Rows, or elements of a vector, of each head: the first half and the second interleaved."""
    return data.reshape(heads, 2, -1, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)


def add_geometry(writer, config):
    rope = config.rope_parameters
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def add_tokenizer(writer, vocab_size):
    """Enough for the file to be a model: bytes, and pairs of them."""
    alphabet = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    merges = [(a, b) for a in alphabet[:20] for b in alphabet[:20]][:vocab_size - len(alphabet)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(alphabet + [a + b for a, b in merges])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab_size)
    writer.add_token_merges([f"{a} {b}" for a, b in merges])
    writer.add_eos_token_id(0)


def rope_factors(model):
    """What Llama 3's scaling divides the frequencies by."""
    config = model.config
    scaled = model.model.rotary_emb.inv_freq.numpy()
    exponents = numpy.arange(0, config.head_dim, 2, dtype=numpy.float64) / config.head_dim
    return (config.rope_parameters["rope_theta"]**-exponents / scaled).astype(numpy.float32)


def write(path, model, kind):
    """Writes `model` with matrices of that type, and sets its weights to what these stand for."""
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    names = gguf.get_tensor_name_map(
        {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture],
        config.num_hidden_layers)
    rng = numpy.random.default_rng(3)
    writer = gguf.GGUFWriter(path, architecture)
    add_geometry(writer, config)
    add_tokenizer(writer, config.vocab_size)
    for name, parameter in model.named_parameters():
        tensor_kind = kind if parameter.dim() == 2 else QUANTIZATIONS["F32"]
        data, values = stored(rng, parameter.detach().numpy(), tensor_kind)
        parameter.data = torch.from_numpy(values)
        heads = {"q_proj": config.num_attention_heads,
                 "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads and architecture in ROTATES_NEIGHBOURS:
            data = neighbours_together(data, heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), data,
                          raw_dtype=tensor_kind)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(model))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
