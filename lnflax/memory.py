"""How much memory there is, how much a cell's programs need, and how its runs are cut so that they fit.

A compiled program knows its bytes before anything is allocated, so nothing is guessed: what does best is compiled
first, and taken if it fits, at no cost, since it is the program that runs. Only where it does not are three small
programs compiled, a line drawn through them, the best cut chosen by it, and that cut's own program asked once more.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from lnflax import bert, devices, grid, host, rules, shapes
from lnflax.batches import Batch
from lnflax.devices import Plan
from lnflax.errors import InputError
from lnflax.grid import Chunks
from lnflax.step import Recipe

SHARE = 0.9  # of the memory there is: the rest is the allocator's gaps, the next batches, and on a CPU the compiler
SIZES = (
    Chunks(2, 4),
    Chunks(2, 5),
    Chunks(3, 4),
)  # XLA treats a few runs otherwise than many; compiling costs the same
HOPE = 1.1  # a cut is tried whose line is a little above what there is: lines have been found up to 8 % off
TRIES = 4  # cuts that are compiled before runs go one by one


class Program(NamedTuple):
    """Bytes of a compiled program on one device."""

    kept: int  # arguments and results; what is donated and given back counts once
    live: int  # temporaries

    @property
    def need(self) -> int:
        """All of it."""
        return self.kept + self.live


class Size(NamedTuple):
    """A rectangle of runs."""

    seeds: int
    rates: int

    @property
    def runs(self) -> int:
        """How many it holds."""
        return self.seeds * self.rates


Spread = Callable[[Size], Plan]  # of so many runs over the devices


class Measure(Protocol):
    """What the program of a plan needs; `recompute`: whether blocks are computed again on the way back."""

    def __call__(self, plan: Plan, chunks: Chunks, *, recompute: bool) -> Program:  # noqa: D102
        ...


class Cut(NamedTuple):
    """How the runs of a cell are cut."""

    part: Size  # the most runs of the cell that train together; the rest wait for their turn
    chunks: Chunks  # how many of a device's runs are computed at once
    recompute: bool  # whether blocks are computed again on the way back
    need: int  # bytes on each device


def training(recipe: Recipe, batches: Callable[[Plan], Batch]) -> Measure:
    """What the training program of a plan needs; `batches` gives one device's batches of a plan, as shapes.

    Nothing but the program is made, and it is the one that runs: JAX finds it again when it is called.
    """

    @functools.cache
    def measure(plan: Plan, chunks: Chunks, *, recompute: bool) -> Program:
        own = dataclasses.replace(recipe, recompute=recompute)
        arguments = shapes.train_arguments(own, *rectangle(plan), batches(plan))
        program: Any = grid.train_program(own, chunks, plan)
        return analyse(program.lower(*devices.shapes(arguments, plan.devices)).compile())

    return measure


def bound(recipe: Recipe, held: Size, chunks: Chunks, tokens: int, length: int, steps: int) -> int:
    """More than a training program needs, from shapes alone: most programs of a CPU need not be asked.

    Args:
        recipe: what trains.
        held: the runs that a device holds.
        chunks: how many of them are computed at once.
        tokens: of one run's step on one device.
        length: of a row.
        steps: of a call.
    """
    model, labels = recipe.model, dict(recipe.labels)
    sizes = {path: math.prod(leaf.shape) for path, leaf in rules.flatten(bert.parameter_shapes(model)).items()}
    slots = {path: count for path, count, _ in recipe.gathered}
    trained = sum(slots.get(path, size) for path, size in sizes.items() if labels[path] != "frozen")
    written = sum(sizes[path] for path in slots if path.endswith("/kernel"))  # anew in every run's step
    at_once = min(chunks.seeds, held.seeds) * min(chunks.rates, held.rates)
    hidden, wide, heads = model.hidden_size, model.intermediate_size, model.num_attention_heads
    activations = tokens * model.num_hidden_layers * (40 * hidden + 4 * wide + 8 * heads * length)
    masks = steps * tokens * model.num_hidden_layers * (heads * length + 2 * hidden)  # a byte each, and a copy
    states = (4 * held.runs + 8 * at_once) * trained + at_once * written
    return 4 * (2 * sum(sizes.values()) + states + (at_once + 1) * activations) + 2 * held.seeds * masks


def analyse(compiled: Any) -> Program:
    """What XLA says of a compiled program, for each device that runs it."""
    found = compiled.memory_analysis()
    own = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return Program(own, found.temp_size_in_bytes)


def budget(count: int) -> int:
    """Bytes that programs may use on each of `count` devices."""
    return int(SHARE * min(_limit(device, count) for device in jax.local_devices()[:count]))


def _limit(device: Any, count: int) -> int:
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform != "cpu":
        return 2**62  # not known: an error of the allocator is all that tells
    return limit or host.available() // count


def peak() -> int:
    """The most bytes used: on any device by this process, or where they have no memory of their own by the process.

    The latter since `host.reset_peak()`.
    """
    stats = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((most for most in stats if most is not None), default=host.peak())


@dataclasses.dataclass(frozen=True)
class Needs:
    """A line through a few programs: bytes as a function of what a device holds and of what it computes at once."""

    fixed: float  # the frozen parameters
    held_seed: float  # masks, batches
    held_run: float  # the trained values and the optimizer's state
    base: float
    live_seed: float  # the outputs of the prefix, dropout masks
    live_run: float  # activations, gradients

    def of(self, held: Size, chunks: Chunks) -> Program:
        """The program of a device that holds `held` and computes `chunks` at once."""
        at_once = Size(min(chunks.seeds, held.seeds), min(chunks.rates, held.rates))
        kept = self.fixed + held.seeds * self.held_seed + held.runs * self.held_run
        live = self.base + at_once.seeds * self.live_seed + at_once.runs * self.live_run
        copied = 0 if at_once == held else at_once.runs  # a block of states is taken out and put back
        if held.seeds % at_once.seeds or held.rates % at_once.rates:
            copied += held.runs  # a rest has a program of its own, between which XLA copies all states
        return Program(round(kept), round(live + copied * self.held_run))


def fit(measure: Callable[[Size, Chunks], Program]) -> Needs:
    """The line through the programs of SIZES, each all at once."""
    one, more_rates, more_seeds = (measure(Size(s.seeds, s.rates), s) for s in SIZES)
    terms = []
    for part in range(2):
        run = (more_rates[part] - one[part]) / SIZES[0].seeds
        seed = more_seeds[part] - one[part] - run * SIZES[0].rates
        rest = one[part] - SIZES[0].seeds * seed - SIZES[0].seeds * SIZES[0].rates * run
        terms += [rest, seed, run]
    return Needs(*terms)


def best_cut(cell: Size, spread: Spread, want: Chunks, needs: Needs, budget: int) -> Cut | None:
    """Of the cuts that fit, the one with the fewest blocks to compute one after another, then the fewest parts.

    Seeds are cut before rates: they share nothing but the frozen parameters, where each part of the rates computes
    the prefix anew. Where the states are what is large, little or nothing lies below them as prefix.

    Args:
        cell: all runs.
        spread: how runs are spread over the devices.
        want: the most that does well at once.
        needs: the line.
        budget: bytes there are.

    Returns:
        None where none fits.
    """
    fitting = []
    for part in ladder(*cell):
        sizes = [rectangle(spread(Size(len(seeds), len(rates)))) for seeds, rates in parts(cell, part)]
        held = max(sizes)
        for at_once in ladder(min(want.seeds, held.seeds), min(want.rates, held.rates)):
            cut = Cut(part, Chunks(*at_once), False, needs.of(held, Chunks(*at_once)).need)
            blocks = sum(-(-size.seeds // at_once.seeds) * -(-size.rates // at_once.rates) for size in sizes)
            if cut.need <= budget:
                fitting.append((blocks, len(sizes), cut))
    return min(fitting, key=lambda each: each[:2])[2] if fitting else None


def rectangle(plan: Plan) -> Size:
    """The runs that each device holds."""
    return Size(len(plan.seeds[0]), len(plan.rates[0]))


def ladder(seeds: int, rates: int) -> list[Size]:
    """From all runs down to one: fewer seeds, then fewer rates of a single seed; sizes that divide about evenly."""
    return [Size(size, rates) for size in shares(seeds)] + [Size(1, size) for size in shares(rates)[1:]]


def shares(count: int) -> list[int]:
    """The sizes of `count` things in 1, 2, … about equal parts, descending: 7 gives 7, 4, 3, 2, 1."""
    return sorted({-(-count // parts) for parts in range(1, count + 1)}, reverse=True)


def cut_to_fit(name: str, cell: Size, spread: Spread, want: Chunks, measure: Measure, budget: int) -> Cut:
    """How the runs of a cell are cut so that they fit; blocks are computed again only where one run does not fit else.

    That never pays before: what is short of memory has so many tokens that products are as large as does good.

    Args:
        name: of the cell, for the error.
        cell: all runs.
        spread: how runs are spread over the devices.
        want: the most that does well at once.
        measure: what a program needs.
        budget: bytes there are on each device.

    Raises:
        InputError: one run does not fit.
    """
    for recompute in (False, True):
        cut = _search(cell, spread, want, functools.partial(measure, recompute=recompute), budget)
        if cut is not None:
            return cut._replace(recompute=recompute)
    least = measure(spread(Size(1, 1)), Chunks(1, 1), recompute=True).need
    raise InputError(
        f"{name}: one run alone needs {gib(least)} on a device, though blocks are computed again on the way back, and"
        f" {gib(budget)} may be used: lower batch_size or max_length, or take a smaller model"
    )


def _search(
    cell: Size, spread: Spread, want: Chunks, measure: Callable[[Plan, Chunks], Program], budget: int
) -> Cut | None:
    """The best cut, its need measured and not estimated."""

    def measured(part: Size, chunks: Chunks) -> Cut:
        return Cut(part, chunks, False, measure(spread(part), chunks).need)

    held = rectangle(spread(cell))
    whole = measured(cell, Chunks(min(want.seeds, held.seeds), min(want.rates, held.rates)))
    if whole.need <= budget:
        return whole
    least = measured(Size(1, 1), Chunks(1, 1))
    if least.need > budget:
        return None
    plan = spread(cell)
    needs = fit(lambda size, chunks: measure(_of_one_group(plan, size), chunks))
    limit = HOPE * budget
    for _ in range(TRIES):
        cut = best_cut(cell, spread, want, needs, int(limit))
        if cut is None:
            break
        found = measured(cut.part, cut.chunks)
        if found.need <= budget:
            return found
        limit = budget * cut.need / found.need  # by so much the line was too low
    return least


def _of_one_group(plan: Plan, size: Size) -> Plan:
    """So many runs on as few devices as the plan lets share a batch."""
    return dataclasses.replace(plan, seeds=(tuple(range(size.seeds)),), rates=(tuple(range(size.rates)),))


def halve(cut: Cut) -> Cut | None:
    """The next smaller cut, after an error of the allocator: half the chunk, else half the part; None below one run."""
    at_once = Size(min(cut.chunks.seeds, cut.part.seeds), min(cut.chunks.rates, cut.part.rates))
    if at_once.runs > 1:
        return cut._replace(chunks=Chunks(*_half(at_once)))
    if cut.part.runs > 1:
        return cut._replace(part=_half(cut.part))
    return None if cut.recompute else cut._replace(recompute=True)


def _half(size: Size) -> Size:
    """Seeds first."""
    return Size(-(-size.seeds // 2), size.rates) if size.seeds > 1 else Size(1, -(-size.rates // 2))


def parts(cell: Size, part: Size) -> list[tuple[range, range]]:
    """The seeds and the rates of each part, in order, as even as may be."""
    return list(itertools.product(_ranges(cell.seeds, part.seeds), _ranges(cell.rates, part.rates)))


def _ranges(count: int, most: int) -> list[range]:
    number = -(-count // most)
    ends = [count * i // number for i in range(number + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(ends)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is the allocator's."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def describe(cut: Cut) -> str:
    """The cut in words: `2 × 7 runs at once, 3 × 7 in a part`."""
    again = ", blocks computed again on the way back" if cut.recompute else ""
    return f"{cut.chunks.seeds} × {cut.chunks.rates} runs at once, {cut.part.seeds} × {cut.part.rates} in a part{again}"


def gib(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**30:.1f} GiB"
