"""What programs need, and how runs are cut to fit: by hand, and against XLA's own word."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from lnflax import bert, compiling, devices, evaluation, grid, host, memory, packing, rules, shapes, trainer
from lnflax.errors import InputError
from lnflax.grid import Chunks
from lnflax.memory import Cut, Needs, Program, Size
from lnflax.packing import Shape
from lnflax.step import Recipe
from lnflax.trainer import Rows
from tests import grids
from tests.parity.cases import BASE

ALL = Chunks(2**31, 2**31)
CELL = Size(3, 7)
NEEDS = Needs(fixed=100, held_seed=2, held_run=3, base=50, live_seed=5, live_run=10)

SUFFIX = devices.Work(prefix=0.0, suffix=1e9, update=0.0)  # runs share nothing


def spread(size):
    """All on one device."""
    return devices.make_plan(*size, 1, SUFFIX, split=False)


def synthetic(needs, recomputed=None, error=1.0):
    """A measure that follows a line, but for a factor off its small programs; the calls that it has seen."""
    calls = []

    def measure(plan, chunks, *, recompute):
        held = memory.rectangle(plan)
        calls.append((held, chunks, recompute))
        small = held in [(size.seeds, size.rates) for size in memory.SIZES]
        found = (recomputed if recompute else needs).of(held, chunks)
        return found if small else Program(*(round(error * part) for part in found))

    return measure, calls


def cut_to_fit(measure, budget, want=ALL, cell=CELL, over=spread):
    return memory.cut_to_fit("rte/full", cell, over, want, measure, budget)


def test_the_line_by_hand():
    assert NEEDS.of(Size(1, 1), ALL) == (100 + 2 + 3, 50 + 5 + 10)
    kept = 100 + 3 * 2 + 21 * 3
    assert NEEDS.of(CELL, ALL) == (kept, 50 + 3 * 5 + 21 * 10)
    assert NEEDS.of(CELL, Chunks(1, 1)) == (kept, 50 + 5 + 10 + 3)  # with a copy of one run's state
    assert NEEDS.of(CELL, Chunks(1, 7)) == (kept, 50 + 5 + 7 * 10 + 7 * 3)
    assert NEEDS.of(CELL, Chunks(1, 4)) == (kept, 50 + 5 + 4 * 10 + 4 * 3 + 21 * 3)  # of 7, a rest of 3


def test_the_fit_finds_the_line():
    parts = dataclasses.astuple(NEEDS)

    def measure(size, chunks):
        assert (size.seeds, size.rates) == (chunks.seeds, chunks.rates)
        return Program(*(fixed + size.seeds * seed + size.runs * run for fixed, seed, run in (parts[:3], parts[3:])))

    assert memory.fit(measure) == NEEDS


def test_ladders():
    assert memory.shares(7) == [7, 4, 3, 2, 1]
    assert memory.shares(1) == [1]
    assert memory.ladder(3, 4) == [(3, 4), (2, 4), (1, 4), (1, 2), (1, 1)]


def test_parts_are_even():
    assert memory.parts(Size(3, 7), Size(3, 7)) == [(range(3), range(7))]
    assert memory.parts(Size(3, 7), Size(2, 7)) == [(range(1), range(7)), (range(1, 3), range(7))]
    assert [len(rates) for _, rates in memory.parts(Size(1, 7), Size(1, 3))] == [2, 2, 3]
    for part in memory.ladder(5, 6):
        cut = memory.parts(Size(5, 6), part)
        assert sorted((s, r) for seeds, rates in cut for s in seeds for r in rates) == list(np.ndindex(5, 6))
        assert all(len(seeds) <= part.seeds and len(rates) <= part.rates for seeds, rates in cut)


@pytest.mark.parametrize(
    ("needs", "budget", "part", "chunks"),
    [
        (Needs(0, 0, 1, 0, 0, 10), 231, (3, 7), (3, 7)),  # 21 states and 21 at once
        (Needs(0, 0, 1, 0, 0, 10), 230, (3, 7), (2, 7)),  # two blocks; 14 and then 21 states are copied: 196
        (Needs(0, 0, 1, 0, 0, 10), 195, (2, 7), (2, 7)),  # two parts of 14 and 7, each at once
        (Needs(0, 0, 0, 0, 0, 10), 209, (3, 7), (2, 7)),  # no state: one part, two blocks
        (Needs(0, 0, 0, 0, 0, 10), 70, (3, 7), (1, 7)),
        (Needs(0, 0, 0, 0, 0, 10), 69, (3, 7), (1, 4)),
        (Needs(0, 0, 9, 0, 0, 10), 150, (1, 7), (1, 7)),  # a seed a part
        (Needs(0, 0, 9, 0, 0, 10), 130, (1, 4), (1, 4)),  # of four rates and of three
        (Needs(0, 0, 9, 0, 0, 10), 19, (1, 1), (1, 1)),
    ],
)
def test_the_fewest_blocks_then_the_fewest_parts(needs, budget, part, chunks):
    cut = memory.best_cut(CELL, spread, ALL, needs, budget)
    assert cut == Cut(Size(*part), Chunks(*chunks), False, needs.of(cut.part, cut.chunks).need)
    assert cut.need <= budget


def test_one_byte_less_than_one_run_and_nothing_fits():
    assert memory.best_cut(CELL, spread, ALL, Needs(0, 0, 9, 0, 0, 10), 18) is None


def test_what_fits_is_asked_for_once():
    measure, calls = synthetic(NEEDS)
    need = NEEDS.of(CELL, ALL).need
    assert cut_to_fit(measure, need) == Cut(CELL, Chunks(3, 7), False, need)
    assert calls == [(CELL, Chunks(3, 7), False)]


def test_a_cpu_goes_run_by_run():
    measure, calls = synthetic(NEEDS)
    assert cut_to_fit(measure, 1000, want=Chunks(1, 1))[:2] == (CELL, Chunks(1, 1))
    assert len(calls) == 1


def test_a_cpu_cuts_seeds_where_states_are_too_large():
    needs = Needs(0, 0, 100, 0, 0, 10)
    measure, _ = synthetic(needs)
    assert cut_to_fit(measure, 22 * 100 + 9, want=Chunks(1, 1))[:2] == (Size(2, 7), Chunks(1, 1))
    assert cut_to_fit(measure, 8 * 100 + 10, want=Chunks(1, 1))[:2] == (Size(1, 7), Chunks(1, 1))
    assert cut_to_fit(measure, 8 * 100 + 9, want=Chunks(1, 1))[:2] == (Size(1, 4), Chunks(1, 1))


@pytest.mark.parametrize("error", [0.9, 1.0, 1.05, 1.3])
def test_a_cut_is_measured_before_it_is_believed(error):
    """Whatever the line was off by, what is chosen fits; and a line too low by 30 % costs no more than a step."""
    needs = Needs(100, 0, 0, 0, 5, 10)
    measure, calls = synthetic(needs, error=error)
    cut = cut_to_fit(measure, 250)
    assert cut.need == pytest.approx(error * needs.of(CELL, cut.chunks).need, abs=1) and cut.need <= 250
    assert cut.chunks == {0.9: Chunks(2, 7), 1.0: Chunks(2, 7), 1.05: Chunks(1, 7), 1.3: Chunks(1, 7)}[error]
    assert len(calls) <= 1 + 1 + 3 + memory.TRIES


def test_blocks_are_computed_again_only_where_one_run_does_not_fit():
    plain, again = Needs(100, 0, 1, 0, 0, 50), Needs(100, 0, 1, 0, 0, 5)
    one = plain.of(Size(1, 1), ALL).need
    measure, _ = synthetic(plain, again)
    assert not cut_to_fit(measure, one + 21).recompute
    measure, _ = synthetic(plain, again)
    cut = cut_to_fit(measure, one - 1)
    assert cut.recompute and cut.need <= one - 1 and cut[:2] == (Size(1, 7), Chunks(1, 7))


def test_what_fits_in_no_way_is_one_line():
    needs = Needs(9 * 2**30, 0, 0, 0, 0, 2**30)
    measure, _ = synthetic(needs, needs)
    with pytest.raises(InputError) as error:
        cut_to_fit(measure, 3 * 2**29)
    assert str(error.value) == (
        "rte/full: one run alone needs 10.0 GiB on a device, though blocks are computed again on the way back, and"
        " 1.5 GiB may be used: lower batch_size or max_length, or take a smaller model"
    )


def test_devices_hold_what_the_plan_gives_them():
    """Two devices, three seeds, seven rates: four rates each, of all seeds."""
    needs = Needs(0, 0, 1, 0, 0, 10)
    measure, calls = synthetic(needs)
    cut = cut_to_fit(measure, 12 * 11, over=lambda size: devices.make_plan(*size, 2, SUFFIX, split=False))
    assert (cut.part, cut.chunks, calls) == (CELL, Chunks(3, 4), [(Size(3, 4), Chunks(3, 4), False)])


def test_halves():
    cut, seen = Cut(CELL, Chunks(3, 7), False, 0), []
    while cut is not None:
        seen.append((*cut.part, cut.chunks.seeds, cut.chunks.rates, cut.recompute))
        cut = memory.halve(cut)
    by_chunk = [(3, 7, *chunks, False) for chunks in ((3, 7), (2, 7), (1, 7), (1, 4), (1, 2), (1, 1))]
    by_part = [(*part, 1, 1, False) for part in ((2, 7), (1, 7), (1, 4), (1, 2), (1, 1))]
    assert seen == [*by_chunk, *by_part, (1, 1, 1, 1, True)]
    assert memory.halve(Cut(CELL, ALL, False, 0)).chunks == Chunks(2, 7)


def test_words():
    cut = Cut(Size(2, 7), Chunks(1, 4), True, 5 * 2**29)
    text = "1 × 4 runs at once, 2 × 7 in a part"
    assert memory.describe(cut) == f"{text}, blocks computed again on the way back"
    assert memory.describe(cut._replace(recompute=False)) == text
    assert memory.gib(cut.need) == "2.5 GiB"


def test_which_errors_are_the_allocators():
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")
    assert memory.is_out_of_memory(full) and memory.is_out_of_memory(MemoryError())
    assert not memory.is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: no"))


def made_up(platform, *stats):
    """Devices with these memory statistics."""
    return [types.SimpleNamespace(platform=platform, memory_stats=lambda own=own: own) for own in stats]


def test_the_budget(monkeypatch):
    monkeypatch.setattr(host, "available", lambda: 8000)
    limits = ({"bytes_limit": 1000, "peak_bytes_in_use": 7}, {"bytes_limit": 900, "peak_bytes_in_use": 8})
    monkeypatch.setattr(jax, "local_devices", lambda: made_up("gpu", *limits))
    assert (memory.budget(1), memory.budget(2), memory.peak()) == (900, 810, 8)
    monkeypatch.setattr(jax, "local_devices", lambda: made_up("cpu", None, None, None, None))
    assert (memory.budget(1), memory.budget(4)) == (7200, 1800)
    monkeypatch.setattr(host, "peak", lambda: 55)
    assert memory.peak() == 55
    monkeypatch.setattr(jax, "local_devices", lambda: made_up("gpu", None))
    assert memory.budget(1) > 2**60


def measure_of(recipe, rows, length, targets):
    return memory.training(
        recipe, lambda plan: shapes.batch_shapes(recipe, (8, len(plan.seeds[0])), rows, length, targets)
    )


def test_the_program_that_is_measured_is_the_one_that_runs():
    study = grids.study(seeds=(0, 1), learning_rates=(1e-3, 2e-3))
    own, _ = grids.make("layernorms", study, device_count=2)
    measure = measure_of(own.recipe, 8, 16, 8)
    with compiling.counted() as programs:
        found = measure(own.plan, own.chunks, recompute=False)
    assert programs.ready == 1
    own = dataclasses.replace(own, rows=Rows(packing.plain, (Shape(8, 16),)))
    (batch, known), updates = (
        trainer.train_batches(own, trainer.plan_epoch(own, 1), 0, 1),
        trainer.make_updates(own, 0, 1),
    )
    count, states = devices.put(np.ones(2, np.int32), 2), trainer.start(own)
    given = (own.frozen, own.masks, own.streams, batch, known, updates, count)
    with compiling.counted() as programs:
        states, _ = grid.train_program(own.recipe, own.chunks, own.plan)(states, *given)
    assert programs.ready == 0
    bytes_on_devices = sum(x.nbytes for x in jax.tree.leaves((states, given))) / 2
    losses = 8 * 1 * 2 * 4  # [steps, seeds, rates]
    assert found.kept == pytest.approx(bytes_on_devices + losses, rel=0.01)
    assert found.live > 0


def test_room_is_left_for_the_prefixes_that_are_kept(monkeypatch):
    """Width 12 and four bytes each: of every token below a trained block, of every example below the head."""
    data = grids.examples(count=10)
    tokens = len(data.tokens)
    room = {}
    for setting in ("full", "frozen", "single_norm_1"):
        own, _ = grids.make(setting, grids.study(), pooling="cls")
        room[setting] = evaluation.reserve(own.recipe, own.plan, [data, data])
    assert room == {"full": 0, "frozen": 2 * 10 * 12 * 4, "single_norm_1": 2 * int(1.2 * tokens * 12 * 4)}
    monkeypatch.setattr(evaluation, "KEPT_BYTES", 100)
    assert evaluation.reserve(own.recipe, own.plan, [data, data]) == 200


MIDDLE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 500}


@pytest.mark.parametrize("setting", ["layernorms", pytest.param("full", marks=pytest.mark.slow)])
def test_the_line_meets_programs_of_other_sizes(setting):
    own, _ = grids.make(setting, grids.study(), **MIDDLE)
    measure = measure_of(own.recipe, 8, 32, 8)
    needs = memory.fit(lambda size, chunks: measure(spread(size), chunks, recompute=False))
    frozen = sum(leaf.nbytes for leaf in jax.tree.leaves(own.frozen))
    states = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.start(own)))
    assert needs.fixed == pytest.approx(frozen, rel=0.02, abs=2000)
    assert needs.held_run == pytest.approx(states, rel=0.02, abs=200)
    for size, error in (((2, 7), 0.03), ((3, 7), 0.1)):  # XLA keeps one thing more from some size on
        found = measure(spread(Size(*size)), Chunks(*size), recompute=False).need
        assert needs.of(Size(*size), ALL).need == pytest.approx(found, rel=error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "gib", "chunks", "part"),
    [
        ("layernorms", 80, (3, 7), (3, 7)),
        ("layernorms", 24, (3, 7), (3, 7)),
        ("layernorms", 8, (1, 7), (3, 7)),
        ("layernorms", 6, (1, 4), (3, 7)),
        ("full", 80, (3, 7), (3, 7)),
    ],
)
def test_bert_base_is_planned_from_shapes(setting, gib, chunks, part):
    """21 runs, batch 16 in 8 rows of 128 tokens; by XLA's word for CPUs. No weight is made."""
    recipe = recipe_of(setting)
    before = sum(x.nbytes for x in jax.live_arrays())
    cut = memory.cut_to_fit("cell", CELL, spread, ALL, measured_base(setting, recipe), int(0.9 * gib * 2**30))
    assert (cut.chunks, cut.part, cut.recompute) == (Chunks(*chunks), Size(*part), False)
    assert cut.need <= 0.9 * gib * 2**30
    assert sum(x.nbytes for x in jax.live_arrays()) - before < 2**20
    state = 3 * 4 * sum(int(np.prod(rules.flatten(bert.parameter_shapes(BASE))[p].shape)) for p in trained(recipe))
    assert cut.need > 21 * state if part == (3, 7) else cut.need > 7 * state


def recipe_of(setting):
    own, _ = grids.make(setting, grids.study())
    rule = dict(own.recipe.labels)
    shape = rules.flatten(bert.parameter_shapes(BASE))
    labels = {path: rule[path.replace(f"layer/{block_of(path)}/", "layer/0/")] for path in shape}
    return Recipe(BASE, tuple(labels.items()), own.recipe.optimizer)


def block_of(path):
    return path.partition("layer/")[2].partition("/")[0]


def trained(recipe):
    return [path for path, label in recipe.labels if label == "trainable"]


MEASURES = {}


def measured_base(setting, recipe):
    """One measure a setting: it remembers what it has compiled."""
    if setting not in MEASURES:
        MEASURES[setting] = measure_of(recipe, 8, 128, 16)
    return MEASURES[setting]
