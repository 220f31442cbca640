"""Ragged batches for hip_oracle_test.py: what a backend makes of them, and the comparison."""

import dataclasses
import json
import subprocess
from dataclasses import dataclass, field

import numpy

import hip_algorithm
from conftest import BUILD
from hip_algorithm import BLOCK, PAGE, Block, Model, Queries

NUM_LISTS = 4
FINAL_LIST = 3


def round_to(kv_type, values):
    """The nearest values of the type, ties to even."""
    values = values.astype(numpy.float32)
    if kv_type == "f16":
        values = values.astype(numpy.float16)
    if kv_type == "bf16":
        bits = values.view(numpy.uint32)
        bits = bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000
        values = bits.astype(numpy.uint32).view(numpy.float32)
    return values.astype(float)


@dataclass
class Sequence:
    """Its q, k and v, [tokens][heads][head_dim], and the numbers of its pages."""

    q: numpy.ndarray
    k: numpy.ndarray
    v: numpy.ndarray
    pages: list

    def rows(self, begin, end):
        parts = [part[begin:end].reshape(end - begin, -1) for part in (self.q, self.k, self.v)]
        return numpy.concatenate(parts, axis=1)


@dataclass
class Step:
    """Of each sequence the tokens [begin, end); blocks are empty where nothing is attended."""

    bounds: list
    blocks: list = field(default_factory=list)
    selects: list = field(default_factory=list)

    def first_row(self, sequence):
        return sum(end - begin for begin, end in self.bounds[:sequence])


@dataclass
class Result:
    index: numpy.ndarray  # [pages][bytes]
    blocks: numpy.ndarray  # [slots][kv_heads][NUM_LISTS][capacity]
    counts: numpy.ndarray
    reuse: numpy.ndarray  # [slots][kv_heads][2]
    out: numpy.ndarray  # [tokens][q_heads][head_dim]

    def list(self, slot, kv_head, number):
        return self.blocks[slot, kv_head, number][:self.counts[slot, kv_head, number]]


class Problem:
    """With `levels_at`, queries turned by so many positions are multiples of 127ths of their largest
    element, so that rounding them to such changes nothing."""

    def __init__(self, seed, model, lengths, kv_type="bf16", bits=4, slots=8, capacity=512,
                 levels_at=None):
        self.random = numpy.random.default_rng(seed)
        self.model, self.kv_type, self.bits, self.levels_at = model, kv_type, bits, levels_at
        self.slots, self.capacity = slots, capacity
        counts = [-(-length // PAGE) for length in lengths]
        pages = numpy.split(self.random.permutation(sum(counts)), numpy.cumsum(counts)[:-1])
        self.num_pages = sum(counts)
        self.sequences = [self.sequence(length, ids) for length, ids in zip(lengths, pages)]
        self.steps = []

    def sequence(self, length, pages):
        """Normal values, of keys around a mean of each channel, as those of models are."""
        def draw(heads):
            return self.random.standard_normal((length, heads, self.model.head_dim))

        q, k, v = draw(self.model.q_heads), draw(self.model.kv_heads), draw(self.model.kv_heads)
        k += 0.5 * self.random.standard_normal(k.shape[1:])
        if self.levels_at is not None:
            step = abs(q).max(axis=-1, keepdims=True) / 127
            q = hip_algorithm.turn(self.model, numpy.rint(q / step) * step,
                                   -self.levels_at)
        return Sequence(*(x.astype(numpy.float32).astype(float) for x in (q, k, v)),
                        pages.tolist())

    def fill(self, lengths):
        """Stores so many tokens of each sequence."""
        self.steps.append(Step([(0, length) for length in lengths]))

    def run(self, backend, threads=2):
        """The result of every step."""
        header = {"backend": backend, "threads": threads, "kv_type": self.kv_type,
                  "bits": self.bits, "slots": self.slots, "capacity": self.capacity,
                  "num_pages": self.num_pages, "inv_freq": self.model.inv_freq.tolist(),
                  "scale": self.model.scale, **dataclasses.asdict(self.model),
                  "steps": [self.step_json(step) for step in self.steps]}
        rows = [self.sequences[s].rows(*bounds)
                for step in self.steps for s, bounds in enumerate(step.bounds)]
        run = subprocess.run(
            [BUILD / "bin" / "everlong_hip"], capture_output=True, check=False,
            input=json.dumps(header, default=int).encode() + b"\n"
            + numpy.concatenate(rows).astype(numpy.float32).tobytes())
        assert run.returncode == 0, run.stderr.decode()
        output = memoryview(run.stdout)
        results = []
        for step in self.steps:
            result, output = self.parse(output, step.first_row(len(step.bounds)))
            results.append(result)
        assert len(output) == 0
        return results

    def step_json(self, step):
        ends = [step.first_row(s) for s in range(len(step.bounds) + 1)]
        blocks = step.blocks or [
            Block(s, ends[s], end - begin) for s, (begin, end) in enumerate(step.bounds)]
        pages = [s.pages[:-(-end // PAGE)] for s, (_, end) in zip(self.sequences, step.bounds)]
        return {"attend": bool(step.blocks), "query_begin": ends,
                "context_begin": [begin for begin, _ in step.bounds],
                "pages": sum(pages, []),
                "page_begin": numpy.cumsum([0, *map(len, pages)]).tolist(),
                "blocks": [dataclasses.asdict(block) for block in blocks],
                "selects": [dataclasses.asdict(select) for select in step.selects]}

    def parse(self, output, num_tokens):
        kv_heads = self.model.kv_heads

        def take(dtype, *shape):
            nonlocal output
            size = numpy.dtype(dtype).itemsize * int(numpy.prod(shape))
            part, output = output[:size], output[size:]
            return numpy.frombuffer(part, dtype=dtype).reshape(shape)

        head_bytes = self.model.head_dim * 8 * self.bits + 2 * (PAGE + self.model.head_dim)
        index = take(numpy.uint8, self.num_pages, kv_heads * head_bytes)
        lists = (2, self.slots, kv_heads, NUM_LISTS)  # of two layers, the second
        blocks = take(numpy.int32, *lists, self.capacity)[1]
        counts = take(numpy.int32, *lists)[1]
        reuse = take(numpy.int64, self.slots, 2, kv_heads, 2)[:, 1]
        out = take(numpy.float32, num_tokens, self.model.q_heads, self.model.head_dim)
        return Result(index, blocks, counts, reuse, out), output

    def index(self, result, sequence):
        """Of a sequence's complete pages, see hip_algorithm.unpack_index."""
        pages = [hip_algorithm.unpack_index(result.index[page], self.model.kv_heads,
                                            self.model.head_dim, self.bits)
                 for page in self.sequences[sequence].pages]
        return numpy.concatenate([keys for keys, _ in pages], axis=1)

    def queries(self, step, block):
        begin = step.bounds[block.sequence][0] + block.first_row - step.first_row(block.sequence)
        positions = numpy.arange(begin, begin + block.num_rows)
        return Queries(self.sequences[block.sequence].q[positions], positions)


@dataclass
class Comparison:
    """Compares the results of a problem's steps; counts the choices that rounding cannot change."""

    problem: Problem
    results: list
    sure: int = 0
    total: int = 0

    def check(self):
        problem = self.problem
        self.stored = [round_to(problem.kv_type, s.k) for s in problem.sequences]
        self.values = [round_to(problem.kv_type, s.v) for s in problem.sequences]
        before = None
        for step, result in zip(problem.steps, self.results):
            for block in step.blocks:
                if block.slot >= 0:
                    self.check_selection(step, block, result, before)
                self.check_output(step, block, result)
            before = result
        return self

    def check_selection(self, step, block, result, before):
        select = step.selects[block.select]
        candidates = numpy.arange(block.num_sinks // BLOCK, block.window_begin // BLOCK)
        for kv_head in range(self.problem.model.kv_heads):
            chosen = result.list(block.slot, kv_head, FINAL_LIST)
            if len(candidates) <= select.keep_blocks:
                assert numpy.array_equal(chosen, candidates)
                continue
            assert len(chosen) <= select.keep_blocks and numpy.all(numpy.diff(chosen) > 0)
            assert numpy.all(numpy.isin(chosen, candidates))
            for stage in range(select.num_stages):
                self.check_stage(step, block, stage, kv_head, result, before)

    def check_stage(self, step, block, stage, kv_head, result, before):
        select = step.selects[block.select]
        number = stage if stage + 1 < select.num_stages else FINAL_LIST
        actual = result.list(block.slot, kv_head, number)
        if stage < block.first_stage:
            assert numpy.array_equal(actual, before.list(block.slot, kv_head, number))
            return
        expected = self.expected(step, block, result, stage, kv_head)
        self.sure += len(expected.sure)
        self.total += len(actual)
        assert set(expected.sure) <= set(actual) <= set(expected.possible), (block, stage, kv_head)

    def expected(self, step, block, result, stage, kv_head):
        problem, s = self.problem, block.sequence
        select = step.selects[block.select]
        queries = problem.queries(step, block)
        if select.selector == "scan":
            return hip_algorithm.scan(problem.model, select, block, queries, self.stored[s],
                                      problem.index(result, s), kv_head)
        kept = result.list(block.slot, kv_head, stage - 1) if stage > 0 else None
        return hip_algorithm.hip_stage(problem.model, select, stage, block, queries,
                                       self.stored[s], kept, kv_head)

    def check_output(self, step, block, result):
        queries = self.problem.queries(step, block)
        selected = [result.list(block.slot, h, FINAL_LIST) if block.slot >= 0 else []
                    for h in range(self.problem.model.kv_heads)]
        for row in {*range(0, block.num_rows, 9), block.num_rows - 1}:
            position = queries.positions[row]
            expected, error = hip_algorithm.attend(
                self.problem.model, block, queries.rows[row], position,
                self.stored[block.sequence], self.values[block.sequence], selected)
            actual = result.out[block.first_row + row]
            assert numpy.all(abs(actual - expected) <= error), (block, position)


def compare(problem, backend, threads=2):
    """Most choices must be beyond rounding, or the comparison says little."""
    comparison = Comparison(problem, problem.run(backend, threads)).check()
    print(f"{comparison.sure} of {comparison.total} choices are beyond rounding")
    assert comparison.sure >= 0.9 * comparison.total
    return comparison
