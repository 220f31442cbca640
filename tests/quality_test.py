"""A small part of bench/needle_quality's table: contexts of two and four trained lengths, by real generation."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("EVERLONG_BUILD", ROOT / "build" / "release"))


def codes_right(setting, length, codes):
    run = subprocess.run(
        [ROOT / "bench" / "needle_quality", "--bin", BUILD / "bin", "--json", "--settings", setting,
         "--lengths", str(length), "--codes", str(codes)], check=True, stdout=subprocess.PIPE, text=True)
    cell = json.loads(run.stdout)
    assert abs(cell["mean_prompt_tokens"] - length) < 0.1 * length
    return cell["right"]


@pytest.mark.parametrize("length,codes", [(8192, 2), (16384, 1)])
def test_the_default_retrieves_every_code(length, codes):
    assert codes_right("default", length, codes) == codes


def test_dense_attention_fails_beyond_the_trained_length():
    assert codes_right("dense", 8192, 2) == 0
