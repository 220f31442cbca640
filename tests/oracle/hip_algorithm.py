"""InfiniteHiP's selection and attention by their definition (arXiv 2502.08910; kernels/args.h), in
double precision, with bounds of what f32 may change: an implementation that shares no code or
structure with the backends.

Everything is about one layer of one sequence: keys and values are [tokens][kv_heads][head_dim],
queries [rows][q_heads][head_dim], all before rotation.
"""

from dataclasses import dataclass, field

import numpy

BLOCK = 8
PAGE = 64
INFINITY = numpy.inf


def gamma(count):
    """The relative change by `count` roundings in f32 (Higham, lemma 3.1)."""
    return count * 2**-24 / (1 - count * 2**-24)


@dataclass
class Model:
    q_heads: int
    kv_heads: int
    head_dim: int
    rotate: bool = True
    theta: float = 1e4
    rope_scale: float = 1.0

    @property
    def inv_freq(self):
        exponents = numpy.arange(0, self.head_dim, 2) / self.head_dim
        return (self.theta ** -exponents).astype(numpy.float32)

    @property
    def scale(self):
        return float(numpy.float32(self.head_dim ** -0.5))

    @property
    def group(self):
        return self.q_heads // self.kv_heads


@dataclass
class Stage:
    chunk_tokens: int
    keep_chunks: int
    every_key: bool = False
    pool_rows: bool = False


@dataclass
class Select:
    selector: str = "scan"
    probes: str = "relative"
    last_probe: bool = False
    all_heads: bool = False
    keep_blocks: int = 0
    distance: int = 0
    dilation: int = 0
    rerank: int = 1
    stages: list = field(default_factory=list)

    @property
    def num_stages(self):
        return len(self.stages) if self.selector == "hip" else 1

    def heads(self, model, kv_head):
        """Query heads whose scores count for a KV head."""
        if self.all_heads:
            return range(model.q_heads)
        return range(kv_head * model.group, (kv_head + 1) * model.group)


@dataclass
class Block:
    """A query block; see kernels/args.h."""

    sequence: int
    first_row: int
    num_rows: int
    num_sinks: int = 0
    window_begin: int = 0
    positions: str = "true"
    clip_distance: int = 0
    slot: int = -1
    select: int = -1
    first_stage: int = 0
    first: bool = True


@dataclass
class Queries:
    """The rows of a query block and where they stand."""

    rows: numpy.ndarray
    positions: numpy.ndarray

    def pooled(self):
        """The mean of every four neighbours."""
        fours = self.positions // 4
        groups = [fours == four for four in numpy.unique(fours)]
        return Queries(numpy.stack([self.rows[g].mean(axis=0) for g in groups]),
                       numpy.stack([self.positions[g].mean() for g in groups]))


@dataclass
class Scores:
    """Of keys, blocks or chunks: between which values f32 may find each. Equal sources that are not
    negative mean equal scores."""

    low: numpy.ndarray
    high: numpy.ndarray
    source: numpy.ndarray = None


def turn(model, vectors, positions):
    """Rotary embedding to one position or one for each vector: dimension i is paired with
    i + head_dim / 2."""
    if not model.rotate:
        return vectors
    angles = numpy.multiply.outer(numpy.asarray(positions, float), model.inv_freq.astype(float))
    cos, sin = numpy.cos(angles), numpy.sin(angles)
    first, second = numpy.split(vectors, 2, axis=-1)
    turned = numpy.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned * model.rope_scale


def products(model, queries, query_at, keys, keys_at):
    """q . k of all pairs, turned to their positions, and the error of each in f32."""
    value = turn(model, queries, query_at) @ turn(model, keys, keys_at).T
    return value, product_error(model, abs(queries), abs(keys), max(numpy.max(query_at), numpy.max(keys_at), 1))


def product_error(model, queries, keys, farthest):
    """Given magnitudes: the error of the sum, of cosines and sines, and of angles, which are off by up
    to 2^-24 of the largest position there."""
    scale = model.rope_scale**2 if model.rotate else 1.0
    error = gamma(model.head_dim + 16) * queries @ keys.T
    if model.rotate:
        pairs = [sum(numpy.split(vectors, 2, axis=-1)) for vectors in (queries, keys)]
        angle_error = farthest * 2**-24 * model.inv_freq + 2**-22
        error += (pairs[0] * angle_error) @ pairs[1].T
    return scale * error


def best_scores(queries, heads, count, bounds_of):
    """Of `count` keys, the maximum over query rows and heads; `bounds_of` says between which values
    the scores of a head's rows lie."""
    best = Scores(*numpy.full((2, count), -INFINITY))
    for head in heads:
        low, high = bounds_of(head, queries.rows[:, head])
        best.low = numpy.maximum(best.low, low.max(axis=0))
        best.high = numpy.maximum(best.high, high.max(axis=0))
    return best


def key_scores(model, queries, query_at, keys, keys_at, heads):
    def bounds_of(head, rows):
        value, error = products(model, rows, query_at, keys[:, head // model.group], keys_at)
        return value - error, value + error

    return best_scores(queries, heads, len(keys), bounds_of)


def index_scores(model, queries, distance, index, heads):
    """Of the keys that are sums of index[0], their page's mean, and index[1]. In either product a
    query may be rounded to 127ths of its largest element."""
    def bounds_of(head, rows):
        mean, rest = index[:, :, head // model.group] * (model.rope_scale if model.rotate else 1)
        turned = turn(model, rows, distance)
        step = abs(turned).max(axis=-1, keepdims=True) / 127
        change = numpy.rint(turned / step) * step - turned
        error = product_error(model, abs(rows), abs(mean) + abs(rest), distance)
        low, high = turned @ (mean + rest).T - error, turned @ (mean + rest).T + error
        for part in (mean, rest):
            low += numpy.minimum(change @ part.T, 0)
            high += numpy.maximum(change @ part.T, 0)
        return low, high

    return best_scores(queries, heads, index.shape[1], bounds_of)


@dataclass
class Choice:
    """Numbers that are chosen whatever the rounding, and those that may be; both ascending."""

    sure: numpy.ndarray
    possible: numpy.ndarray

    def map(self, function):
        return Choice(function(self.sure), function(self.possible))


def best_of(scores, count):
    """The `count` best; of equal ones the first."""
    numbers = numpy.arange(len(scores.low))
    precedes = scores.low[:, None] > scores.high
    if scores.source is not None:
        equal = (scores.source[:, None] == scores.source) & (scores.source >= 0)
        precedes |= equal & (numbers[:, None] < numbers)
    may_precede = len(numbers) - precedes.sum(axis=1)  # so many, with itself
    return Choice(numpy.flatnonzero(may_precede <= count),
                  numpy.flatnonzero(precedes.sum(axis=0) < count))


# The paper's selector.


def probe_path(start, width, left, right, end, last_probe, best=(-INFINITY, -INFINITY)):
    """Greedy halving of a chunk: its score, over all ways that rounding may take. Where both probes
    lie past the end, the left half is next."""
    if width < 2:
        return best
    half = width // 2

    def follow(scores, position, start):
        probe = (-INFINITY,) * 2
        if position < end:
            probe = scores.low[position], scores.high[position]
        score = probe if last_probe else (max(best[0], probe[0]), max(best[1], probe[1]))
        return probe, lambda: probe_path(start, half, left, right, end, last_probe, score)

    a, go_left = follow(left, start + half // 2, start)
    b, go_right = follow(right, start + half + half // 2, start + half)
    if a[0] > b[1] or a[1] == -INFINITY:
        return go_left()
    if b[0] > a[1]:
        return go_right()
    (low_a, high_a), (low_b, high_b) = go_left(), go_right()
    return min(low_a, low_b), max(high_a, high_b)


def probe_scores(model, select, queries, keys, starts, width, heads):
    """What left and right probes score, key by key."""
    def score(query_at, keys_at):
        return key_scores(model, queries, query_at, keys, keys_at, heads)

    if select.probes == "relative":
        return score(select.distance + 1, 0), score(select.distance + 1, 1)
    if select.probes == "none":
        return (score(0, 0),) * 2
    keys_at = numpy.zeros(len(keys))
    for number, start in enumerate(starts):
        keys_at[start:start + width] = number
    query_at = numpy.minimum(queries.positions, len(starts) + select.distance)
    return (score(query_at, keys_at),) * 2


def chunk_scores(model, select, stage, queries, keys, starts, end, heads):
    if stage.pool_rows:
        queries = queries.pooled()
    width = stage.chunk_tokens
    left, right = probe_scores(model, select, queries, keys, starts, width, heads)
    if stage.every_key:
        left = key_scores(model, queries, select.distance, keys, 0, heads)
        chunks = [slice(start, min(start + width, end)) for start in starts]
        return Scores(*(numpy.array([values[chunk].max() for chunk in chunks])
                        for values in (left.low, left.high)))
    paths = [probe_path(start, width, left, right, end, select.last_probe) for start in starts]
    return Scores(*numpy.array(paths).reshape(-1, 2).T)


def hip_stage(model, select, number, block, queries, keys, kept, kv_head):
    """Blocks that stage `number` keeps of what the stage before kept, its list `kept`."""
    stage = select.stages[number]
    end = block.window_begin
    if number == 0:
        starts = numpy.arange(block.num_sinks, end, stage.chunk_tokens)
    else:
        pieces = numpy.arange(0, select.stages[number - 1].chunk_tokens, stage.chunk_tokens)
        starts = (numpy.asarray(kept)[:, None] * BLOCK + pieces).ravel()
        starts = starts[starts < end]
    scores = chunk_scores(model, select, stage, queries, keys, starts, end,
                          select.heads(model, kv_head))
    parts = numpy.arange(stage.chunk_tokens // BLOCK if number + 1 == select.num_stages else 1)

    def blocks(chosen):
        chosen = (starts[chosen, None] // BLOCK + parts).ravel()
        return chosen[chosen < end // BLOCK]

    return best_of(scores, stage.keep_chunks).map(blocks)


# The scan.


def by_block(scores, begin, end):
    """The best of every eight keys of [begin, end)."""
    return Scores(*(values[begin:end].reshape(-1, BLOCK).max(axis=1)
                    for values in (scores.low, scores.high)))


def dilated(scores, count):
    """Each block with the best score of those up to `count` blocks before and after it."""
    if count == 0:
        return scores
    low, high, source = [], [], []
    for block in range(len(scores.low)):
        first, end = max(block - count, 0), block + count + 1
        best = first + numpy.argmax(scores.low[first:end])
        low.append(scores.low[best])
        high.append(scores.high[first:end].max())
        sure = numpy.sum(scores.high[first:end] >= scores.low[best]) == 1
        source.append(best if sure else -1)
    return Scores(numpy.array(low), numpy.array(high), numpy.array(source))


def only(scores, finalists):
    """The scores of finalists; what is none, surely or possibly, may have none."""
    low = numpy.full(len(scores.low), -INFINITY)
    high = low.copy()
    low[finalists.sure] = scores.low[finalists.sure]
    high[finalists.possible] = scores.high[finalists.possible]
    return Scores(low, high)


def scan(model, select, block, queries, keys, index, kv_head):
    """Blocks chosen from `index`, the compact keys, and the stored ones."""
    heads = select.heads(model, kv_head)
    begin, end = block.num_sinks, block.window_begin

    scores = by_block(index_scores(model, queries, select.distance, index, heads), begin, end)
    if select.rerank > 1:
        finalists = best_of(scores, select.keep_blocks * select.rerank)
        stored = key_scores(model, queries, select.distance, keys, 0, heads)
        scores = only(by_block(stored, begin, end), finalists)
    best = best_of(dilated(scores, select.dilation), select.keep_blocks)
    return best.map(lambda numbers: numbers + begin // BLOCK)


def unpack_index(page_bytes, kv_heads, head_dim, bits):
    """What an index page holds: means and what is added to them [2][64][kv_heads][head_dim], and the
    step from one code to the next [64][kv_heads]."""
    dims = numpy.arange(head_dim)
    codes = 4 * numpy.arange(PAGE)[:, None] + dims % 4
    codes_size = head_dim * 8 * bits
    means, rests, scales = [], [], []
    for head in page_bytes.reshape(kv_heads, -1):
        groups = head[:codes_size].reshape(head_dim // 4, 32 * bits)
        fields = groups[dims // 4, codes % (32 * bits)] >> (bits * (codes // (32 * bits)))
        halves = head[codes_size:].view(numpy.float16).astype(float)
        scales.append(halves[:PAGE])
        means.append(numpy.tile(halves[PAGE:], (PAGE, 1)))
        rests.append(scales[-1][:, None] * ((fields & (2**bits - 1)) - (2**bits - 1) / 2))
    return numpy.stack([numpy.stack(means, 1), numpy.stack(rests, 1)]), numpy.stack(scales, 1)


# Attention.


def read_positions(block, position, selected):
    """The positions that a query reads, in order."""
    chosen = (numpy.asarray(selected, int)[:, None] * BLOCK + numpy.arange(BLOCK)).ravel()
    return numpy.concatenate([numpy.arange(block.num_sinks), chosen,
                              numpy.arange(block.window_begin, position + 1)])


def apparent_positions(block, position, read):
    """Where the query and the keys that it reads seem to stand."""
    if block.positions == "true":
        return position, read
    if block.positions == "streaming":
        return len(read) - 1, numpy.arange(len(read))
    return position, numpy.where(read >= block.window_begin, read, position - block.clip_distance)


def attend(model, block, query, position, keys, values, selected):
    """The output [q_heads][head_dim] of one query, and the error of each element in f32. `selected`:
    the blocks of each KV head."""
    outputs, errors = [], []
    for head in range(model.q_heads):
        kv_head = head // model.group
        read = read_positions(block, position, selected[kv_head])
        query_at, keys_at = apparent_positions(block, position, read)
        # Shifted so that all are positive: only differences count.
        shift = min(query_at, keys_at.min(), 0)
        value, error = products(model, query[None, head], query_at - shift, keys[read, kv_head],
                                keys_at - shift)
        logits = model.scale * value[0]
        weights = numpy.exp(logits - logits.max())
        weights /= weights.sum()
        head_values = values[read, kv_head]
        outputs.append(weights @ head_values)
        # A logit that is off by e changes its weight by exp(e), and the sum of weights too; exp is
        # as good as 8 roundings; sums take as many as there are keys.
        span = max(logits.max() - logits.min(), 1)
        logit_error = model.scale * error.max() + gamma(4) * span
        relative = numpy.expm1(2 * logit_error) + 2 * gamma(len(read) + 32)
        errors.append(relative * (weights @ abs(head_values)))
    return numpy.stack(outputs), numpy.stack(errors)
