"""Token ids and text against Hugging Face tokenizers: families, options, hard texts."""

import random
import struct

import pytest

import tokenizer_corpus
import tokenizer_families
from tokenizer_comparison import (ADD_SPECIAL, DECODE_ONLY, MODES, PARSE_SPECIAL, SKIP_SPECIAL, check,
                                  normal_form, run_driver)


@pytest.fixture(scope="module")
def documents():
    return tokenizer_corpus.all_documents()


@pytest.fixture(scope="module")
def hard_documents():
    return list(tokenizer_corpus.hard_documents())


@pytest.fixture(scope="module", params=tokenizer_families.FAMILIES, ids=lambda make: make.__name__)
def family(request, tmp_path_factory):
    tokenizer = request.param()
    path = tmp_path_factory.mktemp("family") / "tokenizer.json"
    tokenizer.save(str(path))
    return request.param.__name__, tokenizer, path


@pytest.mark.parametrize("flags", MODES)
def test_family(family, documents, flags):
    _, tokenizer, path = family
    check(tokenizer, path, documents, flags)


# What comes back of a text where that is not the text: a mark for a space that is one, a space before
# the text that stays, a space of the text that serves as the one before it.
KEPT = {
    "gpt2_prefix_space": lambda text: text if text[:1] in ("", " ") else " " + text,
    "llama2": lambda text: text.replace("\u2581", " "),
    "mistral": lambda text: text.replace("\u2581", " ").removeprefix(" "),
}


def test_family_keeps_text(family, documents):
    name, tokenizer, path = family
    if name == "llama2_normalized_tokens":
        documents = [document for document in documents
                     if "[INST]" not in document and "<think>" not in document]
    kept = KEPT.get(name.removesuffix("_normalized_tokens"), lambda text: normal_form(tokenizer, text))
    replies = run_driver(path, 0, [document.encode() for document in documents])
    for document, (_, text) in zip(documents, replies):
        assert text == kept(document)


def test_family_decodes_any_ids(family):
    """Ids in an order that no text has; a run of byte tokens counts where it is UTF-8."""
    _, tokenizer, path = family
    rng = random.Random(5)
    usable = [i for i in range(tokenizer.get_vocab_size()) if not tokenizer.id_to_token(i).startswith("<0x")]
    batches = [rng.choices(usable, k=rng.randrange(1, 40)) for _ in range(3000)]
    for flags in (0, SKIP_SPECIAL):
        texts = tokenizer.decode_batch(batches, skip_special_tokens=bool(flags))
        replies = run_driver(path, DECODE_ONLY | flags, [struct.pack(f"<{len(ids)}i", *ids) for ids in batches])
        assert [text for _, text in replies] == texts


def test_variants(hard_documents, tmp_path):
    """Each option that the families do not use."""
    path = tmp_path / "tokenizer.json"
    for name, tokenizer in tokenizer_families.variants():
        tokenizer.save(str(path))
        for flags in (0, ADD_SPECIAL | PARSE_SPECIAL):
            check(tokenizer, path, hard_documents, flags)
