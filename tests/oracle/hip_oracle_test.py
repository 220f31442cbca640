"""Selections and outputs of InfiniteHiP attention against hip_algorithm.py.

A list must hold all that is chosen whatever f32 rounds, and nothing else but what may be chosen.
Inputs are such that this leaves hardly anything open. Outputs must lie within bounds computed from
the machine epsilon and the values' magnitudes.
"""

import dataclasses

import numpy
import pytest

import hip_algorithm
from hip_algorithm import BLOCK, Block, Model, Select, Stage
from hip_problem import FINAL_LIST, Comparison, Problem, Step, compare, round_to

BACKENDS = ["reference", "cpu"]
ROWS = 64
WINDOW = 72
DISTANCE = 136

# The paper's presets: tokens of a chunk, tokens kept, decode steps between refreshes.
PRESETS = {
    "3k": ([256, 32, 8], [32768, 8192, 2048], [16, 8, 4]),
    "3k-fast": ([256, 32, 8], [32768, 8192, 2048], [32, 16, 8]),
    "3k-flash": ([256, 32, 8], [32768, 8192, 2048], [96, 24, 8]),
    "5k": ([64, 32, 16], [32768, 16384, 4096], [16, 8, 4]),
}


def hip(stages, **options):
    last = stages[-1]
    return Select(**{"selector": "hip", "stages": stages, "distance": WINDOW,
                     "keep_blocks": last.keep_chunks * last.chunk_tokens // BLOCK} | options)


def preset(name, divisor=1):
    """A preset, with a part of its tokens."""
    chunks, keep, refresh = PRESETS[name]
    stages = [Stage(chunk, max(tokens // divisor // chunk, 1), pool_rows=i < 2)
              for i, (chunk, tokens) in enumerate(zip(chunks, keep))]
    return hip(stages), refresh


def scan(**options):
    return Select(**{"distance": DISTANCE, "keep_blocks": 10} | options)


THREE = [Stage(64, 7, pool_rows=True), Stage(32, 8, pool_rows=True), Stage(8, 9)]
EVERY_KEY = [THREE[0], *(dataclasses.replace(stage, every_key=True) for stage in THREE[1:])]

# name: selection, bits of the index
OPTIONS = {
    "hip": (hip(THREE), 4),
    "hip_at_chunk_numbers": (hip(THREE, probes="chunk"), 4),
    "hip_near_the_start": (hip([Stage(32, 6), Stage(8, 9)], probes="chunk", distance=1000), 4),
    "hip_unrotated": (hip(THREE, probes="none"), 4),
    "hip_last_probe": (hip(THREE, last_probe=True), 4),
    "hip_all_heads": (hip(THREE, all_heads=True), 4),
    "hip_rows_not_pooled": (hip([Stage(64, 7), Stage(32, 8), Stage(8, 9)]), 4),
    "hip_all_rows_pooled": (hip([*THREE[:2], Stage(8, 9, pool_rows=True)]), 4),
    "hip_every_key": (hip(EVERY_KEY), 4),
    "hip_every_key_at_chunk_numbers": (hip(EVERY_KEY, probes="chunk"), 4),
    "hip_in_one_stage": (hip([Stage(8, 9)]), 4),
    "hip_in_four_stages": (hip([Stage(256, 3), Stage(128, 4), Stage(32, 6), Stage(16, 5)]), 4),
    "scan": (scan(), 4),
    "scan_of_2_bits": (scan(), 2),
    "scan_of_1_bit": (scan(), 1),
    "scan_dilated": (scan(dilation=1), 4),
    "scan_all_heads": (scan(all_heads=True), 4),
    "scan_reranked": (scan(rerank=4, keep_blocks=5), 1),
    "scan_reranked_and_dilated": (scan(rerank=2, keep_blocks=8, dilation=2), 2),
}


def blocks_of(step, sinks=16, window=WINDOW, positions="true"):
    """Blocks of up to 64 rows, as a prompt is cut into, with a slot each."""
    blocks = []
    for sequence, (begin, end) in enumerate(step.bounds):
        for first in range(begin - begin % ROWS, end, ROWS):
            row, stop = max(first, begin), min(first + ROWS, end)
            window_begin = max((row - window) // BLOCK * BLOCK, sinks)
            blocks.append(Block(sequence, step.first_row(sequence) + row - begin, stop - row, sinks,
                                window_begin, positions, window + ROWS, len(blocks), 0))
    return blocks


def batch(seed, model, select, contexts, rows, positions="true", **options):
    """Sequences that hold `contexts` tokens and get `rows` more, which are attended."""
    ends = [context + count for context, count in zip(contexts, rows)]
    levels_at = select.distance if select.selector == "scan" else None
    problem = Problem(seed, model, ends, levels_at=levels_at, **options)
    problem.fill(contexts)
    step = Step(list(zip(contexts, ends)), selects=[select])
    step.blocks = blocks_of(step, positions=positions)
    problem.steps.append(step)
    return problem


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_option(name, backend):
    select, bits = OPTIONS[name]
    compare(batch(1, Model(4, 2, 64), select, [700, 450, 1030, 200], [1, 70, 1, 3], bits=bits),
            backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(24))
def test_any_shape(seed, backend):
    """Heads, groups, head dimensions, ragged batches, block remainders, types, position rules."""
    random = numpy.random.default_rng(seed)
    kv_heads = int(random.integers(1, 4))
    model = Model(kv_heads * int(random.integers(1, 5)), kv_heads, int(random.choice([64, 128])),
                  rotate=random.random() < 0.9, theta=float(random.choice([1e4, 5e5])),
                  rope_scale=float(random.choice([1.0, 1.25])))
    select, bits = list(OPTIONS.values())[random.integers(len(OPTIONS))]
    count = int(random.integers(1, 4))
    problem = batch(seed, model, select, random.integers(100, 900, count).tolist(),
                    random.choice([1, 1, 2, 63, 64, 65, 90], count).tolist(),
                    positions=str(random.choice(["true", "streaming", "clipped"])), bits=bits,
                    kv_type=str(random.choice(["f32", "f16", "bf16"])))
    compare(problem, backend, threads=int(random.integers(1, 4)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["3k", "5k"])
def test_preset_of_full_size(name, backend):
    select, _ = preset(name)
    compare(batch(1, Model(2, 1, 64), select, [40000], [9], positions="streaming",
                  capacity=1024), backend)


def decode(seed, select, refresh, count):
    """A prompt whose last token and `count` more are decoded: stages run again at multiples of their
    intervals, and the window begins where the first stage last ran."""
    prompt = 900
    levels_at = select.distance if select.selector == "scan" else None
    problem = Problem(seed, Model(4, 2, 64), [prompt + count], levels_at=levels_at)
    problem.fill([prompt])
    for t in range(count):
        position = prompt + t
        first_stage = next((i for i, r in enumerate(refresh) if t % r == 0), len(refresh))
        anchor = position - t % refresh[0]
        block = Block(0, 0, 1, 16, (anchor - WINDOW) // BLOCK * BLOCK, "clipped", DISTANCE, slot=3,
                      select=0, first_stage=first_stage, first=t == 0)
        problem.steps.append(Step([(position, position + 1)], [block], [select]))
    return problem


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [*PRESETS, "scan"])
def test_decode_reuses_lists_between_refreshes(name, backend):
    select, refresh = (scan(dilation=1), [8]) if name == "scan" else preset(name, divisor=64)
    comparison = compare(decode(1, select, refresh, refresh[0] + refresh[-1] + 1), backend)
    check_reuse(comparison)


def check_reuse(comparison):
    """The counts of blocks that were chosen, and of those that the list before had."""
    for kv_head in range(comparison.problem.model.kv_heads):
        expected, before = numpy.zeros(2, int), None
        for step, result in zip(comparison.problem.steps[1:], comparison.results[1:]):
            chosen = set(result.list(3, kv_head, FINAL_LIST))
            block = step.blocks[0]
            if before is not None and block.first_stage < step.selects[0].num_stages:
                expected += len(chosen), len(chosen & before)
            before = chosen
            assert result.reuse[3, kv_head].tolist() == expected.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("select", [
    hip([Stage(256, 64), Stage(32, 64), Stage(8, 128)]), scan(keep_blocks=128)], ids=["hip", "scan"])
def test_full_budget_is_dense(select, backend):
    problem = batch(1, Model(4, 2, 64), select, [700, 450], [1, 70])
    comparison = compare(problem, backend)
    step, result = problem.steps[-1], comparison.results[-1]
    for block in step.blocks:
        queries = problem.queries(step, block)
        everything = dataclasses.replace(block, num_sinks=0, window_begin=0)
        for row, position in enumerate(queries.positions):
            expected, error = hip_algorithm.attend(
                problem.model, everything, queries.rows[row], position,
                comparison.stored[block.sequence], comparison.values[block.sequence], [[], []])
            assert numpy.all(abs(result.out[block.first_row + row] - expected) <= error)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("select", [scan(), scan(rerank=2), hip([
    Stage(32, 9, every_key=True), Stage(8, 9, every_key=True)])], ids=["scan", "rerank", "hip"])
def test_planted_key_is_found_wherever_it_is(select, backend):
    """Its product with the query is far above all others; every key is scored."""
    model = Model(4, 2, 64)
    length = 700
    for position in [16, 17, 300, 383, 384, 623, *range(400, 410)]:
        problem = batch(position, model, select, [length], [1])
        sequence = problem.sequences[0]
        seen = hip_algorithm.turn(model, sequence.q[length], select.distance)
        sequence.k[position] = 3 * seen[::model.group]
        chosen = [problem.run(backend)[-1].list(0, h, FINAL_LIST) for h in range(model.kv_heads)]
        assert all(position // BLOCK in blocks for blocks in chosen), (position, chosen)


@pytest.mark.parametrize("backend", BACKENDS)
def test_probing_reaches_a_short_last_chunk(backend):
    """Its first probes lie past the candidates; its only block's second probe sees the planted key."""
    stages = [Stage(256, 1), Stage(32, 1), Stage(8, 1)]
    problem = batch(1, Model(2, 1, 64), hip(stages, keep_blocks=1), [16 + 256 + 8 + WINDOW], [1])
    sequence = problem.sequences[0]
    sequence.k[16 + 256 + 2] = 9 * sequence.q[-1, :1]
    assert compare(problem, backend).results[-1].list(0, 0, FINAL_LIST) == [(16 + 256) // BLOCK]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("kv_type", ["f32", "bf16"])
def test_index_holds_the_nearest_codes(kv_type, bits, backend):
    """Around the mean of each channel of a page; the scale is for the backend to choose."""
    problem = Problem(1, Model(2, 2, 64), [640], kv_type=kv_type, bits=bits)
    problem.fill([640])
    result = problem.run(backend)[-1]
    keys = round_to(kv_type, problem.sequences[0].k)
    for number, page in enumerate(problem.sequences[0].pages):
        (mean, rest), step = hip_algorithm.unpack_index(result.index[page], 2, 64, bits)
        stored = keys[64 * number:64 * number + 64]
        assert numpy.all(abs(mean - stored.mean(axis=0)) <= 2**-10 * abs(stored).max(axis=0))
        levels = (numpy.arange(2**bits) - (2**bits - 1) / 2) * step[:, :, None, None]
        nearest = abs(stored[..., None] - mean[..., None] - levels).min(axis=-1)
        error = abs(stored - mean - rest)
        assert numpy.all(error <= nearest + 2**-10 * abs(stored).max())
        assert (error**2).mean() / stored.var() < {1: 0.40, 2: 0.14, 4: 0.012}[bits]


@pytest.mark.parametrize("name, change", [
    ("hip", {"last_probe": True}), ("hip", {"all_heads": True}), ("hip", {"distance": WINDOW + 1}),
    ("hip", {"probes": "chunk"}), ("hip", {"probes": "none"}),
    ("hip", {"stages": [dataclasses.replace(stage, pool_rows=False) for stage in THREE]}),
    ("hip", {"stages": EVERY_KEY}),
    ("scan", {"dilation": 1}), ("scan", {"all_heads": True}), ("scan", {"rerank": 2}),
    ("scan", {"distance": DISTANCE + 1}), ("scan", {"keep_blocks": 11})])
def test_comparison_sees_a_changed_option(name, change):
    select, bits = OPTIONS[name]
    problem = batch(1, Model(4, 2, 64), select, [700, 450], [1, 70], bits=bits)
    results = problem.run("reference")
    problem.steps[-1].selects[0] = dataclasses.replace(select, **change)
    with pytest.raises(AssertionError):
        Comparison(problem, results).check()


@pytest.mark.parametrize("change", [
    {"positions": "true"}, {"positions": "streaming"}, {"clip_distance": WINDOW + ROWS + 1},
    {"num_sinks": 8}])
def test_comparison_sees_a_changed_block(change):
    problem = batch(1, Model(4, 2, 64), scan(), [700], [1], positions="clipped")
    results = problem.run("reference")
    problem.steps[-1].blocks[0] = dataclasses.replace(problem.steps[-1].blocks[0], **change)
    with pytest.raises(AssertionError):
        Comparison(problem, results).check()
