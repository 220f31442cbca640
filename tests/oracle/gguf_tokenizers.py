"""Writes tokenizers as GGUF files, as llama.cpp's converter does it, with the package gguf.

The files hold nothing else: llama.cpp reads them as models of which it loads the vocabulary only.
"""

import json

import gguf

NORMAL, CONTROL, USER_DEFINED, UNUSED = (
    gguf.TokenType[name] for name in ("NORMAL", "CONTROL", "USER_DEFINED", "UNUSED"))


def write(path, fill):
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def write_byte_level(path, tokenizer, pre, add_bos=None):
    """A tokenizer of the package tokenizers, with a gap in its ids filled as the converter does."""
    document = json.loads(tokenizer.to_str())
    model = document["model"]
    tokens = {i: (token, NORMAL) for token, i in model["vocab"].items()}
    for added in document["added_tokens"]:
        tokens[added["id"]] = (added["content"], CONTROL if added["special"] else USER_DEFINED)
    count = max(tokens) + 1
    listed = [tokens.get(i, (f"[PAD{i}]", UNUSED)) for i in range(count)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]

    def fill(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([token for token, _ in listed])
        writer.add_token_types([kind for _, kind in listed])
        writer.add_token_merges(merges)
        if add_bos:
            writer.add_bos_token_id(tokenizer.token_to_id(add_bos))
            writer.add_add_bos_token(True)

    write(path, fill)


def write_sentence_piece(path, processor, **flags):
    """A tokenizer of the package sentencepiece."""
    ids = range(processor.get_piece_size())

    def kind(i):
        tests = {"UNKNOWN": processor.is_unknown, "CONTROL": processor.is_control,
                 "UNUSED": processor.is_unused, "BYTE": processor.is_byte}
        return next((gguf.TokenType[name] for name, test in tests.items() if test(i)), NORMAL)

    def fill(writer):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([processor.id_to_piece(i) for i in ids])
        writer.add_token_scores([processor.get_score(i) for i in ids])
        writer.add_token_types([kind(i) for i in ids])
        writer.add_bos_token_id(processor.bos_id())
        writer.add_eos_token_id(processor.eos_id())
        writer.add_unk_token_id(processor.unk_id())
        for name, value in flags.items():
            getattr(writer, f"add_{name}")(value)

    write(path, fill)
