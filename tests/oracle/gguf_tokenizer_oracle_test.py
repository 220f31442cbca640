"""Token ids and text from GGUF files.

Against Hugging Face tokenizers, whose pre-tokenizers the families spell out, and SentencePiece itself. Where
a GGUF file says less than a tokenizer.json, what llama.cpp makes of it counts: no normal form, and in
contractions no long s for an s. bench/llama_cpp_tokens compares with llama.cpp.
"""

import io
from pathlib import Path

import gguf
import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

import gguf_tokenizers
import smollm2
import tokenizer_corpus
import tokenizer_families
from tokenizer_comparison import ADD_SPECIAL, MODES, PARSE_SPECIAL, SKIP_SPECIAL, check, run_driver

# What names the family's words, and the token that its files put before a text.
FAMILIES = {
    tokenizer_families.gpt2: ("gpt-2", None),
    tokenizer_families.llama3: ("llama-bpe", "<|begin_of_text|>"),
    tokenizer_families.qwen: ("qwen2", None),
    tokenizer_families.smollm2: ("smollm", None),
    tokenizer_families.tekken: ("tekken", "<s>"),
    tokenizer_families.llama_3_2: ("llama-bpe", "<|begin_of_text|>"),
    tokenizer_families.qwen_2_5: ("qwen2", None),
}


@pytest.fixture(scope="module")
def documents():
    return [document.replace("'\u017f", "'s") for document in tokenizer_corpus.all_documents()]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda make: make.__name__)
def test_family(family, documents, tmp_path):
    path = tmp_path / "tokenizer.gguf"
    tokenizer = family()
    tokenizer.normalizer = None
    gguf_tokenizers.write_byte_level(path, tokenizer, *FAMILIES[family])
    check(tokenizer, path, documents, ADD_SPECIAL | PARSE_SPECIAL)


@pytest.fixture(scope="module")
def pieces():
    """A SentencePiece model with byte tokens, trained on the spot."""
    lines = "\n".join(tokenizer_corpus.training_documents()).splitlines()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for line in lines if line), model_writer=model, model_type="bpe",
        vocab_size=4000, byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2)
    return model.getvalue()


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece(pieces, documents, prefix, tmp_path):
    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    processor.override_normalizer_spec(add_dummy_prefix=prefix)
    path = tmp_path / "tokenizer.gguf"
    gguf_tokenizers.write_sentence_piece(path, processor, add_space_prefix=prefix)
    replies = run_driver(path, ADD_SPECIAL | SKIP_SPECIAL, [document.encode() for document in documents])
    for document, (ids, text) in zip(documents, replies, strict=True):
        assert ids == [processor.bos_id(), *processor.encode(document)], document[:80]
        assert text == processor.decode(ids[1:]), document[:80]


def smollm2_tokenizer():
    """The tokenizer of SmolLM2's GGUF file. Bytes that no token stands for keep their neighbours apart."""
    path = Path(smollm2.fetch()) / smollm2.FILE
    fields = gguf.GGUFReader(path).fields
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{name}"].contents()
                             for name in ("tokens", "token_type", "merges"))
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges]))
    unknown = set(pre_tokenizers.ByteLevel.alphabet()) - set(tokens)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
         pre_tokenizers.Split(Regex(f"[{''.join(unknown)}]"), "removed")])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds)
                                  if kind == gguf.TokenType.CONTROL])
    return path, tokenizer


def test_smollm2(documents):
    path, tokenizer = smollm2_tokenizer()
    for flags in MODES:
        check(tokenizer, path, documents, flags)
