"""Addressed randomness: every normal has an address (seed, stream, block of paths, step).

Paths are cut into blocks of a fixed size that depends on the event shape only. A block is always drawn whole
(the last one is cut afterwards), so path i sees the same bits whatever the number of paths, the chunking, the
number of workers or the step at which a run is resumed. Nothing is ever drawn from a global generator.

The words of the generator's state come from Philox, keyed by (seed, stream) and counted by (block, chunk of steps):
torch's CPU generator keeps only 32 bits of an integer seed, so hashed integer seeds would collide at scale.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import check

STEPS_PER_KEY = 32  # steps drawn from one keyed generator; a resumed run redraws at most this many
STEPS_PER_CALL = 8  # steps of vectors drawn at once: other workers hold the interpreter meanwhile
_BLOCK_ELEMENTS = 2**15  # normals a block and step: fits the cache, long enough to amortise a Python call
_LARGE_EVENT = 2**12  # events of this size (images) get a block each, so that one of them can be made again alone
_MT_WORDS = 624


def _generator(seed: int, stream: str, block: int, chunk: int) -> torch.Generator:
    """A torch CPU generator whose Mersenne state is filled from Philox at (seed, stream, block, chunk)."""
    key = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")
    philox = np.random.Philox(key=np.array([seed, key], np.uint64), counter=np.array([0, chunk, block, 0], np.uint64))
    state = np.zeros(632, np.uint64)  # layout: seed, (left, seeded), next, 624 words, cached normals
    state[1] = 1 | (1 << 32)  # left = 1: the words are twisted before the first use; seeded = 1
    state[3 : 3 + _MT_WORDS] = philox.random_raw(_MT_WORDS // 2).view(np.uint32)
    generator = torch.Generator()
    generator.set_state(torch.from_numpy(state.view(np.uint8).copy()))
    return generator


def block_size(event_shape: Sequence[int]) -> int:
    """Number of paths in a block: a power of two with about 2^15 normals a step, one path for image-sized events."""
    size = math.prod(event_shape)
    if size >= _LARGE_EVENT:
        return 1
    return 1 << int(math.log2(_BLOCK_ELEMENTS // size))


def _draw(generator: torch.Generator, size: int, event_shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """(size, *event) standard normals; vectors lie in memory with the paths contiguous, larger events path by path."""
    if len(event_shape) == 1:
        return torch.empty(event_shape[0], size, dtype=dtype).normal_(generator=generator).mT
    return torch.empty(size, *event_shape, dtype=dtype).normal_(generator=generator)


def _draw_steps(
    generator: torch.Generator, rows: int, size: int, event_shape: tuple[int, ...], dtype: torch.dtype
) -> Sequence[Tensor]:
    """`rows` successive draws as `_draw` lays them out."""
    if len(event_shape) == 1:
        return torch.empty(rows, *event_shape, size, dtype=dtype).normal_(generator=generator).mT.unbind()
    return [_draw(generator, size, event_shape, dtype) for _ in range(rows)]


@dataclass
class Block:
    """The draws of one block of paths: successive calls are independent, and always for the whole block."""

    generator: torch.Generator
    index: int
    size: int  # paths in the whole block
    count: int  # how many of them are wanted
    dtype: torch.dtype = torch.float32

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        """(size, *event) standard normals, drawn in the noise's own precision and cast to `dtype`."""
        return _draw(self.generator, self.size, tuple(event_shape), self.dtype).to(dtype)

    def uniform(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float64) -> Tensor:
        """(size, *shape) uniforms in the open interval (0, 1)."""
        u = torch.empty(self.size, *shape, dtype=torch.float64).uniform_(generator=self.generator)
        return u.clamp_(2.0**-54, 1 - 2.0**-53).to(dtype)


@dataclass(frozen=True)
class Noise:
    """Standard normals addressed by (seed, stream, block, step).

    `dtype` is the precision in which normals are drawn (they are cast to the state's); float32 normals are four
    times cheaper and reach 5.6 standard deviations.
    Raises: BadInput for a seed outside [0, 2^64).
    """

    seed: int = 0
    dtype: torch.dtype = field(default=torch.float32)

    def __post_init__(self) -> None:
        check(
            isinstance(self.seed, int) and 0 <= self.seed < 2**64,
            f"seed {self.seed!r}",
            "an integer in [0, 2^64)",
            "Pass Noise(seed=...).",
        )

    block_size = staticmethod(block_size)

    def block(self, stream: str, index: int, n: int, event_shape: Sequence[int]) -> Block:
        """Block number `index` of a batch of n paths."""
        size = block_size(event_shape)
        return Block(_generator(self.seed, stream, index, 0), index, size, min(size, n - index * size), self.dtype)

    def blocks(self, stream: str, n: int, event_shape: Sequence[int]) -> Iterator[Block]:
        """The blocks that hold paths 0 .. n-1."""
        check(n >= 1, f"n = {n}", "at least one path")
        for index in range(-(-n // block_size(event_shape))):
            yield self.block(stream, index, n, event_shape)

    def steps(self, index: int, event_shape: Sequence[int], times: np.ndarray, start: int = 0) -> Iterator[Tensor]:
        """The normals of block `index` for steps start, start + 1, ...: tensors (block size, *event).

        Vectors of several steps are drawn in one call: never more than `times` has steps, nor does it change a bit,
        the blocks being multiples of the 16 numbers that the generator makes at once.
        """
        return self._steps(index, block_size(event_shape), tuple(event_shape), len(times) - 1, start)

    def _steps(self, index: int, size: int, event: tuple[int, ...], wanted: int, start: int) -> Iterator[Tensor]:
        together = STEPS_PER_CALL if len(event) == 1 and size >= 16 else 1
        for chunk in count(start // STEPS_PER_KEY):
            generator = _generator(self.seed, "step", index, chunk)
            first, end = chunk * STEPS_PER_KEY, (chunk + 1) * STEPS_PER_KEY
            while first < end:
                rows = min(together, end - first, max(wanted - first, 1))
                yield from _draw_steps(generator, rows, size, event, self.dtype)[max(start - first, 0) :]
                first += rows

    def coarsened(self, fine_times: np.ndarray) -> CoarseNoise:
        """The same Brownian path on any coarser grid whose times are a subset of `fine_times`."""
        return CoarseNoise(self.seed, self.dtype, np.asarray(fine_times, dtype=np.float64))


@dataclass(frozen=True)
class CoarseNoise(Noise):
    """Normals of a coarse grid made of a fine grid's: xi_coarse = sum_j sqrt(dt_j) xi_j / sqrt(sum_j dt_j)."""

    fine_times: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def steps(self, index: int, event_shape: Sequence[int], times: np.ndarray, start: int = 0) -> Iterator[Tensor]:
        ends = np.searchsorted(self.fine_times, times)
        nested = ends[-1] < len(self.fine_times) and np.array_equal(self.fine_times[ends], times)
        check(
            nested,
            "a coarse grid that is not nested in the fine one",
            "coarse times that are a subset of the fine times",
            "Build the fine grid with grid.refine(factor).",
        )
        fine = super().steps(index, event_shape, self.fine_times, start=int(ends[start]))
        dt = np.diff(self.fine_times)
        for a, b in zip(ends[start:-1], ends[start + 1 :], strict=True):
            weights = np.sqrt(dt[a:b] / dt[a:b].sum())
            z = next(fine) * weights[0]
            for w in weights[1:]:
                z = z.add_(next(fine), alpha=w)
            yield z


@dataclass(frozen=True)
class PathNoise(Noise):
    """A stream of its own for every path, so that path i can be made again alone: `PathNoise(seed, first=i)`, n = 1.

    batch: paths that are computed together. first: the number of this run's first path. On image-sized events the bits
    are those of Noise, which gives such an event a block for itself.
    """

    batch: int = 1
    first: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.batch >= 1, f"batch = {self.batch}", "at least one path")
        check(self.first >= 0, f"first = {self.first}", "the number of a path, from 0 on")

    def block_size(self, event_shape: Sequence[int]) -> int:
        return self.batch

    def _paths(self, index: int) -> range:
        start = self.first + index * self.batch
        return range(start, start + self.batch)

    def block(self, stream: str, index: int, n: int, event_shape: Sequence[int]) -> Block:
        generators = [_generator(self.seed, stream, path, 0) for path in self._paths(index)]
        count = min(self.batch, n - index * self.batch)
        return PathBlock(generators[0], index, self.batch, count, self.dtype, generators)

    def blocks(self, stream: str, n: int, event_shape: Sequence[int]) -> Iterator[Block]:
        check(n >= 1, f"n = {n}", "at least one path")
        for index in range(-(-n // self.batch)):
            yield self.block(stream, index, n, event_shape)

    def steps(self, index: int, event_shape: Sequence[int], times: np.ndarray, start: int = 0) -> Iterator[Tensor]:
        each = [self._steps(path, 1, tuple(event_shape), len(times) - 1, start) for path in self._paths(index)]
        for normals in zip(*each, strict=True):
            yield torch.cat(normals)


@dataclass
class PathBlock(Block):
    """A block whose paths have a generator each, which draws size / len(generators) of the rows."""

    generators: list[torch.Generator] = field(default_factory=list)

    def _alone(self) -> list[Block]:
        rows = self.size // len(self.generators)
        return [Block(generator, self.index, rows, rows, self.dtype) for generator in self.generators]

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.cat([block.normal(event_shape, dtype) for block in self._alone()])

    def uniform(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.cat([block.uniform(shape, dtype) for block in self._alone()])
