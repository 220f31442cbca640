"""What PyTorch's attention takes to decode, beside everlong_cuda_attention_bench:
one query, the heads of Llama-3.1-8B, bf16, every backend; and for 8192 queries, all of which see
all keys. Also what reading memory takes.
"""

import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Q_HEADS, KV_HEADS, DIM = 32, 8, 128
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def median_us(work, flush, runs=20):
    for _ in range(3):
        work()
    times = []
    for _ in range(runs):
        flush.zero_()  # so that nothing is left in the L2 cache
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end))
    return statistics.median(times)


def best(context, flush):
    q = torch.randn(1, Q_HEADS, 1, DIM, device="cuda", dtype=torch.bfloat16)
    shape = (1, KV_HEADS, context, DIM)
    k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    # A group's heads as queries of one head: the same for a single token, and a backend without
    # grouped heads reads every key once.
    folded = q.view(1, KV_HEADS, Q_HEADS // KV_HEADS, DIM)
    times = {}
    for name, backend in BACKENDS.items():
        for form, work in {
            "grouped": lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
            "folded": lambda: F.scaled_dot_product_attention(folded, k, v),
        }.items():
            try:
                with sdpa_kernel(backend):
                    times[f"{name}, {form}"] = median_us(work, flush)
            except (RuntimeError, torch.cuda.OutOfMemoryError):
                torch.cuda.empty_cache()
    return times, 2 * k.numel() * k.element_size()


def print_prompt(context, flush, queries=8192):
    q = torch.randn(1, Q_HEADS, queries, DIM, device="cuda", dtype=torch.bfloat16)
    shape = (1, KV_HEADS, context, DIM)
    k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    flops = 4 * Q_HEADS * DIM * queries * context
    for name in ("flash", "cudnn"):
        with sdpa_kernel(BACKENDS[name]):
            work = lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            us = median_us(work, flush, runs=3)
        print(f"{queries} queries, {context} tokens, {name}: {us:.0f} us, "
              f"{flops / us / 1e6:.0f} TFLOP/s")


def main():
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    words = torch.ones(1 << 30, dtype=torch.int32, device="cuda")
    us = median_us(words.max, flush)
    print(f"reading memory: {4 * words.numel() / us / 1e3:.0f} GB/s")
    del words
    print_prompt(131072, flush)
    for context in (131072, 1048576):
        times, size = best(context, flush)
        for name, us in sorted(times.items(), key=lambda item: item[1]):
            print(f"{context} tokens, {name}: {us:.0f} us, {size / us / 1e3:.0f} GB/s")


if __name__ == "__main__":
    main()
