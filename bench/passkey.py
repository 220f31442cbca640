"""The pass key prompt: one number in a long repetition, asked for at the end."""

import random

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


def passkey(tokens, depth, seed=1):
    """A prompt of about `tokens` tokens of SmolLM2's and the key, `depth` (0 to 1) into it."""
    key = str(random.Random(f"{tokens} {depth} {seed}").randrange(10000, 100000))
    sentences = (tokens - 60) // 24
    before = round(depth * sentences)
    return ("There is important information hidden inside a lot of irrelevant text. Find it and "
            f"memorize it. {FILLER * before}The pass key is {key}. Remember it. {key} is the pass key. "
            f"{FILLER * (sentences - before)}What is the pass key? The pass key is "), key
