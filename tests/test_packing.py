import itertools

import numpy as np
import pytest

from lnflax import packing
from lnflax.packing import Shape


def random_lengths(*shape: int, longest: int, seed: int = 0) -> np.ndarray:
    """Many short examples, a few long ones, and some that are none."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(1 + rng.exponential(longest / 4, shape).astype(int), longest)
    return np.where(rng.random(shape) < 0.05, 0, lengths)


def one_by_one(lengths: list[int], length: int, fullest: bool = False) -> tuple[list[int], list[int], list[int]]:
    """Rows, starts and what the rows have left, an example at a time: the first row with room, or the fullest."""
    row, start, left = [0] * len(lengths), [0] * len(lengths), []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i]:
            found = [r for r, room in enumerate(left) if room >= lengths[i]]
            if not found:
                found = [len(left)]
                left.append(length)
            row[i] = min(found, key=lambda r: left[r]) if fullest else found[0]
            start[i] = length - left[row[i]]
            left[row[i]] -= lengths[i]
    return row, start, left


def fewest(sizes: list[int], room: list[int], length: int) -> int:
    """The fewest rows, over all ways to lay the sizes beside what the rows in use have left."""
    if not sizes:
        return len(room)
    size, *rest = sizes
    ways = [fewest(rest, [*room, length - size], length)]
    for r in range(len(room)):
        if room[r] >= size:
            ways.append(fewest(rest, [*room[:r], room[r] - size, *room[r + 1 :]], length))
    return min(ways)


def check_laid(lengths: np.ndarray, row: np.ndarray, start: np.ndarray, rows: int, length: int) -> None:
    """No two examples overlap, all are inside their rows, and every row has one."""
    taken = np.zeros((rows, length), int)
    for size, r, s in zip(lengths.tolist(), row.tolist(), start.tolist(), strict=True):
        assert s >= 0 and s + size <= length
        taken[r : r + 1, s : s + size] += 1
        assert size or (r, s) == (0, 0)
    assert taken.max(initial=0) <= 1 and taken.sum() == lengths.sum()
    assert set(row[lengths > 0].tolist()) == set(range(rows))


def test_first_fit_by_hand():
    # 5, then 4 in a second row, 3 beside the 4, 2 beside the 5.
    layout, rows = packing.first_fit(np.array([3, 5, 2, 4]), 7)
    assert layout.row.tolist() == [1, 0, 0, 1]
    assert layout.start.tolist() == [4, 0, 5, 0]
    assert rows == 2
    assert {part.dtype for part in layout} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    ("lengths", "length", "row", "start", "rows"),
    [
        ([2, 2, 2], 4, [0, 0, 1], [0, 2, 0], 2),  # equal lengths stay in their order
        ([1, 2, 3], 6, [0, 0, 0], [5, 3, 0], 1),
        ([4, 4], 4, [0, 1], [0, 0], 2),
        ([4], 4, [0], [0], 1),
        ([0, 3, 0, 1], 4, [0, 0, 0, 0], [0, 0, 0, 3], 1),  # no example has no place
        ([0, 0], 4, [0, 0], [0, 0], 0),
    ],
)
def test_first_fit_of_small_steps(lengths, length, row, start, rows):
    layout, used = packing.first_fit(np.array(lengths), length)
    assert (layout.row.tolist(), layout.start.tolist(), int(used)) == (row, start, rows)


@pytest.mark.parametrize(("batch", "length"), [(1, 9), (2, 7), (16, 32), (16, 128), (64, 100), (256, 64)])
def test_first_fit_is_what_one_example_at_a_time_gives(batch, length):
    lengths = random_lengths(40, 3, batch, longest=min(length, 50))
    layout, rows = packing.first_fit(lengths, length)
    assert layout.row.shape == layout.start.shape == lengths.shape and rows.shape == (40, 3)
    for at in itertools.product(range(40), range(3)):
        row, start, left = one_by_one(lengths[at].tolist(), length)
        assert (layout.row[at].tolist(), layout.start[at].tolist(), int(rows[at])) == (row, start, len(left))


def test_first_fit_lays_every_example_once_and_in_the_first_row_with_room():
    lengths = random_lengths(300, 16, longest=40)
    layout, rows = packing.first_fit(lengths, 64)
    for size, row, start, used in zip(lengths, *layout, rows.tolist(), strict=True):
        check_laid(size, row, start, used, 64)
        total = np.bincount(row, size, used)
        assert all(total[: row[i]].max(initial=64) + size[i] > 64 for i in np.flatnonzero(size))


def test_first_fit_is_near_the_fewest_rows():
    lengths = random_lengths(150, 7, longest=12)
    _, rows = packing.first_fit(lengths, 12)
    for step, used in zip(lengths.tolist(), rows.tolist(), strict=True):
        least = fewest([size for size in step if size], [], 12)
        assert least <= used <= 11 / 9 * least + 6 / 9  # Dósa, 2007


def test_first_fit_of_examples_in_another_order_is_the_layout_in_that_order():
    lengths = np.array([9, 1, 7, 2, 5, 3, 8, 0])  # distinct: equal ones may change places
    order = np.array([5, 0, 7, 3, 2, 6, 1, 4])
    layout, rows = packing.first_fit(lengths, 12)
    moved, same = packing.first_fit(lengths[order], 12)
    assert rows == same
    assert moved.row.tolist() == layout.row[order].tolist() and moved.start.tolist() == layout.start[order].tolist()


@pytest.mark.parametrize("lay", [packing.first_fit, packing.plain, packing.pack_all])
def test_an_example_longer_than_a_row_is_refused(lay):
    with pytest.raises(ValueError, match="9 tokens is longer than a row of 8"):
        lay(np.array([3, 9]), 8)


def test_plain_is_one_example_a_row():
    layout, rows = packing.plain(np.array([[3, 5, 2], [4, 0, 1]]), 5)
    assert layout.row.tolist() == [[0, 1, 2], [0, 0, 2]]
    assert layout.start.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert rows.tolist() == [3, 3]
    assert {part.dtype for part in layout} == {np.dtype(np.int32)}


def test_pack_all_by_hand():
    # 5 and 4 begin rows of 8; the two 3s go to the row with 3 left, then to the one with 4; 1 fills the second.
    layout, rows = packing.pack_all(np.array([3, 5, 1, 3, 0, 4]), 8)
    assert layout.row.tolist() == [0, 0, 1, 1, 0, 1]
    assert layout.start.tolist() == [5, 0, 7, 4, 0, 0]
    assert rows == 2


def test_pack_all_of_one_length_and_of_nothing():
    layout, rows = packing.pack_all(np.full(7, 3), 10)
    assert layout.row.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert layout.start.tolist() == [0, 3, 6, 0, 3, 6, 0]
    assert rows == 3
    assert packing.pack_all(np.zeros(3, int), 10)[1] == 0


@pytest.mark.parametrize(
    ("examples", "length", "longest"), [(1, 5, 5), (500, 64, 64), (2000, 100, 30), (800, 256, 128)]
)
def test_pack_all_is_what_the_fullest_row_with_room_gives(examples, length, longest):
    lengths = random_lengths(examples, longest=longest)
    layout, rows = packing.pack_all(lengths, length)
    check_laid(lengths, *layout, rows, length)
    left = length - np.bincount(layout.row, lengths, rows).astype(int)
    assert sorted(left.tolist()) == sorted(one_by_one(lengths.tolist(), length, fullest=True)[2])


def test_pack_all_wastes_little_of_a_whole_set():
    lengths = random_lengths(5000, longest=64)
    _, rows = packing.pack_all(lengths, 128)
    assert rows <= -(-lengths.sum() // 128) + 1
    assert packing.waste(lengths.sum(), rows * 128) < 0.01


def test_waste():
    assert packing.waste(75, 100) == 0.25
    assert packing.waste(8, 8) == 0


def test_cost():
    assert packing.cost(Shape(4, 64), knee=64) == 2 * 256  # at the knee attention doubles it
    assert packing.cost(Shape(2, 128), knee=64) == 3 * 256
    assert Shape(4, 64).tokens == 256


@pytest.mark.parametrize(
    ("knee", "shape"),
    [
        # Four examples of 10: (1, 40) costs 41.6, (2, 24) 49.2, (4, 16) 65.0.
        (1000, (1, 40)),
        # 80, 76.8 and 89.6
        (40, (2, 24)),
        # 440, 336 and 320
        (4, (4, 16)),
    ],
)
def test_longer_rows_pad_less_and_attend_more(knee, shape):
    assert packing.choose_shapes(np.full((5, 1, 4), 10), knee=knee, parts=1) == (shape,)


def test_another_shape_must_be_worth_it():
    # 19 steps of four 8s and one of four 64s: 20 × 256 tokens in one shape, 19 × 32 + 256 in two.
    lengths = np.full((20, 1, 4), 8)
    lengths[7] = 64

    def choose(**kwargs):
        return packing.choose_shapes(lengths, knee=1e6, parts=1, **kwargs)

    assert choose() == ((4, 8), (4, 64))
    assert choose(most=1) == ((4, 64),)
    assert choose(worth=0.83) == ((4, 8), (4, 64))  # 4,256 of 5,120 tokens are saved: 83.1 %
    assert choose(worth=0.84) == ((4, 64),)
    assert choose(worth=0.0) == ((4, 8), (4, 64))  # a third would save nothing


def test_the_shape_that_saves_most_comes_first():
    # Steps of 1, 2, 3 and 8 examples of 8 tokens: in (8, 8) all compute 64.
    lengths = np.zeros((100, 1, 8), int)
    for number, steps in ((1, range(10)), (2, range(10, 70)), (3, range(70, 90)), (8, range(90, 100))):
        lengths[steps, 0, :number] = 8
    # Beside it (1, 8) saves 56 in 10 steps, (2, 8) 48 in 70, (3, 8) 40 in 90, which is most; then (2, 8) 8 in 70.
    assert packing.choose_shapes(lengths, knee=1e6, parts=1, most=2) == ((3, 8), (8, 8))
    assert packing.choose_shapes(lengths, knee=1e6, parts=1, most=3) == ((2, 8), (3, 8), (8, 8))
    index, _ = packing.assign(lengths, (Shape(2, 8), Shape(3, 8), Shape(8, 8)))
    assert np.bincount(index).tolist() == [70, 20, 10]


def test_seeds_share_the_shape_that_the_largest_of_them_needs():
    lengths = np.array([[[8, 8, 8, 8], [8, 8, 0, 0]], [[8, 0, 0, 0], [8, 8, 8, 0]]])
    shapes = packing.choose_shapes(lengths, knee=8, parts=1, worth=0.0)
    assert shapes == ((3, 8), (4, 8))
    assert packing.assign(lengths, shapes)[0].tolist() == [1, 0]


@pytest.mark.parametrize(("parts", "rows"), [(1, 3), (2, 4), (3, 3), (4, 4)])
def test_rows_are_a_multiple_of_the_parts(parts, rows):
    assert packing.choose_shapes(np.array([[[8, 8, 8, 0]]]), knee=8, parts=parts) == ((rows, 8),)


@pytest.mark.parametrize(("seeds", "parts"), [(1, 1), (3, 1), (2, 4)])
def test_shapes_hold_every_step_also_beyond_the_sample(seeds, parts):
    lengths = random_lengths(2 * packing.SAMPLE + 1, seeds, 16, longest=60)
    lengths[[7, 1234], 0, :3] = 60
    shapes = packing.choose_shapes(lengths, knee=1500, parts=parts)
    assert 1 < len(shapes) <= 4
    assert all(shape.rows % parts == 0 and shape.length % 8 == 0 for shape in shapes)
    costs = [packing.cost(shape, 1500) for shape in shapes]
    assert costs == sorted(costs)
    index, _ = packing.assign(lengths, shapes)
    assert set(index.tolist()) <= set(range(len(shapes)))
    assert any((packing.first_fit(lengths, s.length)[1] <= s.rows).all() for s in shapes if s.length >= 60)


@pytest.mark.parametrize(
    ("usual", "other", "knee", "without", "shapes"),
    [
        # The heaviest decides with: 40 tokens are one row of 40 rather than two of 24.
        ([10, 10, 1, 1], [10, 10, 10, 10], 1000, ((1, 24),), ((1, 40),)),
        # So does the longest: (2, 16) costs 160 and (1, 24) 168.
        ([8, 8, 8, 0], [9, 0, 0, 0], 4, ((3, 8),), ((2, 16),)),
        # Neither, four 5s are fewer tokens than three 8s, but take one more row of 8.
        ([8, 8, 8, 0], [5, 5, 5, 5], 8, ((3, 8),), ((4, 8),)),
    ],
)
def test_one_step_outside_the_even_sample(usual, other, knee, without, shapes):
    lengths = np.tile(usual, (2 * packing.SAMPLE + 1, 1, 1))
    assert packing.choose_shapes(lengths, knee=knee, parts=1, most=1) == without
    lengths[1] = other
    assert packing.choose_shapes(lengths, knee=knee, parts=1, most=1) == shapes


def test_rows_of_the_longest_example_are_always_tried():
    # From 8 to 4,096 tokens in equal ratios there is 88 and 120, not 104.
    lengths = np.zeros((3, 1, 64), int)
    lengths[0, 0, 0], lengths[1, 0, 0], lengths[2] = 8, 104, 64
    assert packing.choose_shapes(lengths, knee=1, parts=1, most=1) == ((64, 104),)


def test_assign_takes_the_first_shape_that_holds_a_step():
    lengths = np.array([[[2, 2, 0]], [[3, 2, 3]], [[6, 1, 0]]])
    index, layout = packing.assign(lengths, (Shape(1, 4), Shape(2, 6)))
    assert index.tolist() == [0, 1, 1]
    assert layout.row.tolist() == [[[0, 0, 0]], [[0, 1, 0]], [[0, 1, 0]]]
    assert layout.start.tolist() == [[[0, 2, 0]], [[0, 0, 3]], [[0, 0, 0]]]


def test_assign_lays_all_seeds_of_a_step_in_one_shape():
    lengths = random_lengths(300, 3, 16, longest=40)
    shapes = packing.choose_shapes(lengths, knee=1500, parts=1)
    index, layout = packing.assign(lengths, shapes)
    for step, number in enumerate(index.tolist()):
        own, rows = packing.first_fit(lengths[step], shapes[number].length)
        assert layout.row[step].tolist() == own.row.tolist() and layout.start[step].tolist() == own.start.tolist()
        assert rows.max() <= shapes[number].rows
        for cheaper in shapes[:number]:
            too_long = lengths[step].max() > cheaper.length
            assert too_long or packing.first_fit(lengths[step], cheaper.length)[1].max() > cheaper.rows


@pytest.mark.parametrize("shapes", [(Shape(1, 4),), (Shape(3, 2),), (Shape(1, 5), Shape(4, 2))])
def test_a_step_that_fits_no_shape_is_refused(shapes):
    with pytest.raises(ValueError, match="step 1 of 6 tokens fits none"):
        packing.assign(np.array([[[1, 1]], [[3, 3]]]), shapes)


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [
        ([17], (24,)),
        ([16], (16,)),
        ([1, 1, 1], (8,)),
        # 80 steps of 8 and 20 of 128 tokens: two lengths compute 3,200 tokens, one 12,800.
        ([8] * 80 + [128] * 20, (8, 128)),
        # Two lengths compute 920 tokens of 1,280, three 680 and four would 672.
        ([8] * 5 + [64] * 5 + [127] + [128] * 4, (8, 64, 128)),
        # 24 and 32 save 8 of 320 tokens: too little for another compilation.
        ([32] * 9 + [24], (32,)),
        # The same saving in half of the steps is worth one.
        ([32] * 5 + [24] * 5, (24, 32)),
        # 8 of 160 tokens are just enough.
        ([40] * 3 + [32], (32, 40)),
        # Three at most; (24, 48, 64) computes as many tokens, 344.
        ([8, 16, 24, 32, 40, 48, 56, 64], (16, 40, 64)),
    ],
)
def test_plain_shapes(steps, lengths):
    # The longest of a step is what counts, whichever seed and place it has.
    sizes = np.ones((len(steps), 2, 6), int)
    sizes[np.arange(len(steps)), np.arange(len(steps)) % 2, np.arange(len(steps)) % 6] = steps
    shapes = packing.plain_shapes(sizes, parts=1)
    assert shapes == tuple((6, length) for length in lengths)
    index, layout = packing.assign(sizes, shapes, packing.plain)
    assert np.asarray(lengths)[index].tolist() == [min(own for own in lengths if own >= step) for step in steps]
    assert layout.row.tolist() == np.broadcast_to(np.arange(6), sizes.shape).tolist() and not layout.start.any()


def test_plain_shapes_compute_the_fewest_tokens():
    steps = np.array([8, 16, 24, 32, 40, 48, 56, 64])

    def tokens(lengths):
        return sum(min(own for own in lengths if own >= step) for step in steps)

    least = min(tokens((a, b, 64)) for a, b in itertools.combinations(range(8, 64, 8), 2))
    assert tokens([shape.length for shape in packing.plain_shapes(steps[:, None, None], parts=1)]) == least


def test_plain_shapes_have_rows_for_every_part():
    assert packing.plain_shapes(np.full((3, 1, 6), 5), parts=4) == ((8, 8),)
    assert packing.plain_shapes(np.full((3, 1, 6), 5), parts=3) == ((6, 8),)
