"""SmolLM2-135M-Instruct in fp32, on the weights that its Q4_1 file stands for, by transformers."""

import pydoc_data.topics
import subprocess
from dataclasses import dataclass

import tokenizers.pre_tokenizers
import torch
import transformers

from conftest import ROOT

transformers.utils.logging.disable_progress_bar()

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOPICS = ("assert", "with", "strings", "truth", "class", "naming")  # English and code


@dataclass
class Oracle:
    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerFast

    def logits(self, tokens, last):
        """After each of the last tokens, [last][vocab_size]."""
        with torch.no_grad():
            return self.model(torch.tensor([tokens]), logits_to_keep=last).logits[0].numpy()

    def text_tokens(self, count):
        """The first of a text, Python's reference on some topics."""
        text = "\n".join(pydoc_data.topics.topics[name] for name in TOPICS)
        tokens = self.tokenizer(text)["input_ids"][:count]
        assert len(tokens) == count
        return tokens


def fetch():
    """The folder of the file."""
    run = subprocess.run([ROOT / "scripts" / "fetch-model", "smollm2"], check=True, text=True,
                         stdout=subprocess.PIPE)
    return run.stdout.splitlines()[-1]


def load_oracle(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE,
                                                              dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    # What transformers' reader of GGUF forgets of this family's pre-tokenizer.
    steps = tokenizers.pre_tokenizers
    tokenizer.backend_tokenizer.pre_tokenizer = steps.Sequence(
        [steps.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer])
    return Oracle(model.eval(), tokenizer)


def log_probabilities(logits):
    return torch.log_softmax(torch.tensor(logits, dtype=torch.float64), dim=-1)


def compare(logits, expected):
    """Of logits [tokens][vocab_size] the mean KL divergence from the expected ones, and the part of the
    positions where both have the same best token."""
    kl = 0.0
    for begin in range(0, len(expected), 256):
        rows = slice(begin, begin + 256)
        ours, theirs = log_probabilities(logits[rows]), log_probabilities(expected[rows])
        kl += (theirs.exp() * (theirs - ours)).sum().item()
    return kl / len(expected), (logits.argmax(axis=-1) == expected.argmax(axis=-1)).mean()
