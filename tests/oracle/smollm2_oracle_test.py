"""SmolLM2-135M-Instruct, as scripts/fetch-model fetches it (GGUF, Q4_1), against fp32 on the weights
that the file stands for: logits, greedy answers, and a pass key found in long prompts.

The logits may differ by a mean KL divergence of 1e-3. To second order that is half the variance of the
difference between two log probabilities. Where a greedy answer takes another token than fp32 would,
fp32 must hold the two for a tie within six times its deviation.
"""

import importlib
import sys

import grpc
import pytest

import smollm2
from conftest import ROOT, start_server
from tiny_models import our_logits

sys.path.insert(0, str(ROOT / "bench"))
from passkey import passkey  # noqa: E402

MEAN_KL = 1e-3
TIE = 6 * (2 * MEAN_KL)**0.5
QUESTIONS = [
    "What is the capital of France?",
    "Write three sentences about the sea.",
    "What is 7 + 5?",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that returns the larger of two numbers.",
    "List the names of four planets.",
]


@pytest.fixture(scope="module")
def folder():
    return smollm2.fetch()


@pytest.fixture(scope="module")
def oracle(folder):
    return smollm2.load_oracle(folder)


@pytest.fixture(scope="module")
def inference(protos, folder, tmp_path_factory):
    server = start_server(tmp_path_factory.mktemp("smollm2"), model=folder)
    with grpc.insecure_channel(server.grpc) as channel:
        yield importlib.import_module("everlong.v1.inference_pb2_grpc").InferenceStub(channel)
    assert server.terminate() == 0


def test_logits(oracle, folder):
    tokens = oracle.text_tokens(2048)
    ours = our_logits(folder, tokens, "cpu", "f16", chunk=512)
    kl, same = smollm2.compare(ours, oracle.logits(tokens, len(tokens)))
    print(f"mean KL {kl:.2e}, same best token at {same:.2%}")
    assert same >= 0.99
    assert kl <= MEAN_KL


def generate(inference, request, max_output_tokens):
    """Text and token ids."""
    request.sampling.temperature = 0
    request.stopping.max_output_tokens = max_output_tokens
    outputs = [event.output for event in inference.Generate(request) if event.HasField("output")]
    return "".join(o.text for o in outputs), [token for o in outputs for token in o.token_ids]


def check_answer(oracle, prompt, output):
    """Each token of the output is the one that fp32 would take there, or in a tie with it."""
    expected = oracle.logits(prompt + output, len(output) + 1)[:-1]
    margins = expected.max(axis=-1) - expected[range(len(output)), output]
    print(f"fp32 would take another token at {[(i, m) for i, m in enumerate(margins) if m > 0]}")
    assert margins.max() <= TIE


@pytest.mark.parametrize("question", QUESTIONS)
def test_answer(oracle, inference, pb, question):
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content=question)])
    prompt = oracle.tokenizer.apply_chat_template([{"role": "user", "content": question}],
                                                  add_generation_prompt=True)["input_ids"]
    assert inference.Tokenize(pb.TokenizeRequest(chat=chat)).token_ids == prompt
    text, output = generate(inference, pb.GenerateRequest(chat=chat), 48)
    print(text)
    check_answer(oracle, prompt, output)
    if question == QUESTIONS[0]:
        assert text == "The capital of France is Paris."


@pytest.mark.parametrize("depth", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("tokens", [1024, 2048])
def test_passkey(oracle, inference, pb, tokens, depth):
    text, key = passkey(tokens, depth)
    answer, output = generate(inference, pb.GenerateRequest(text=text), 6)
    assert answer.startswith(key), answer
    prompt = oracle.tokenizer(text)["input_ids"]
    assert tokens - 50 <= len(prompt) <= tokens
    if tokens == 1024:  # fp32 finds the longer prompts' keys too, but takes its time
        check_answer(oracle, prompt, output[:len(key)])
