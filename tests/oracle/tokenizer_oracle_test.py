"""Token ids and text against Hugging Face tokenizers: families, options, hard texts."""

import os
import random
import struct
import subprocess
import unicodedata
from pathlib import Path

import pytest

import tokenizer_corpus
import tokenizer_families

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("EVERLONG_BUILD", ROOT / "build" / "release"))

ADD_SPECIAL, PARSE_SPECIAL, SKIP_SPECIAL, DECODE_ONLY = 1, 2, 4, 8  # flags of tokenizer_driver
MODES = [0, ADD_SPECIAL | PARSE_SPECIAL | SKIP_SPECIAL]


def run_driver(path, flags, bodies):
    """Returns [(ids, text)] for texts, or with DECODE_ONLY for packed ids."""
    requests = b"".join(struct.pack("<BI", flags, len(body)) + body for body in bodies)
    replies = subprocess.run([BUILD / "bin" / "tokenizer_driver", path], input=requests,
                             stdout=subprocess.PIPE, check=True).stdout
    fields, offset = [], 0
    while offset < len(replies):
        length, = struct.unpack_from("<I", replies, offset)
        fields.append(replies[offset + 4:offset + 4 + length])
        offset += 4 + length
    return [(list(struct.unpack(f"<{len(ids) // 4}i", ids)), text.decode())
            for ids, text in zip(fields[::2], fields[1::2])]


def show(tokenizer, document, expected, actual):
    at = next((i for i, (a, b) in enumerate(zip(expected, actual)) if a != b),
              min(len(expected), len(actual)))
    window = slice(max(0, at - 3), at + 5)
    return (f"token {at} of {document[:80]!r}: "
            f"{[tokenizer.id_to_token(i) for i in expected[window]]} became "
            f"{[tokenizer.id_to_token(i) for i in actual[window]]}")


def normal_form(tokenizer, document):
    """What the tokenizer's NFC and so on make of a document: its own tables are of Unicode 9, so that it
    takes later combining marks for letters."""
    form = type(tokenizer.normalizer).__name__
    return unicodedata.normalize(form, document) if form.startswith("NF") else document


def check(tokenizer, path, documents, flags):
    """Compares ids and the text that they decode to."""
    tokenizer.encode_special_tokens = not flags & PARSE_SPECIAL
    encodings = tokenizer.encode_batch(
        [normal_form(tokenizer, document) for document in documents],
        add_special_tokens=bool(flags & ADD_SPECIAL))
    expected = [encoding.ids for encoding in encodings]
    texts = tokenizer.decode_batch(expected, skip_special_tokens=bool(flags & SKIP_SPECIAL))
    replies = run_driver(path, flags, [document.encode() for document in documents])
    assert len(replies) == len(documents)
    for document, ids, text, (our_ids, our_text) in zip(documents, expected, texts, replies):
        assert our_ids == ids, show(tokenizer, document, ids, our_ids)
        assert our_text == text, f"decoding {document[:80]!r}"


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
