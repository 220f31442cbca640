"""Token ids and text of tokenizer_driver, and their comparison with the package tokenizers."""

import struct
import subprocess
import unicodedata

from conftest import BUILD

ADD_SPECIAL, PARSE_SPECIAL, SKIP_SPECIAL, DECODE_ONLY = 1, 2, 4, 8  # flags of tokenizer_driver
MODES = [0, ADD_SPECIAL | PARSE_SPECIAL | SKIP_SPECIAL]


def run_driver(path, flags, bodies, driver=BUILD / "bin" / "tokenizer_driver"):
    """Returns [(ids, text)] for texts, or with DECODE_ONLY for packed ids."""
    requests = b"".join(struct.pack("<BI", flags, len(body)) + body for body in bodies)
    replies = subprocess.run([driver, path], input=requests,
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
