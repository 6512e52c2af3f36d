import numpy as np
import pytest

from lnflax import batches, packing
from lnflax.batches import NONE
from lnflax.packing import Layout, Shape
from lnflax.tokens import Asked, Encoded

# Three examples, of 3, 2 and 4 tokens; a batch of 4 has none in its last place.
ENCODED = Encoded.of_sentences(
    tokens=np.array([11, 12, 13, 21, 22, 31, 32, 33, 34], np.int32),
    token_types=np.array([0, 0, 1, 0, 0, 0, 1, 1, 1], np.int32),
    offsets=np.array([0, 3, 5, 9], np.int64),
    labels=np.array([1, 0, 2], np.int32),
)
ORDER = np.array([[2, 0, 1, NONE]])


def plain(order, shape, parts, encoded=ENCODED):
    """One example a row."""
    layout, _ = packing.plain(batches.sizes(encoded, order), shape.length)
    return batches.make_batches(encoded, order, batches.asks_of(encoded, order, order.shape[-1]), layout, shape, parts)


def test_a_batch_written_by_hand():
    batch = plain(ORDER, Shape(4, 5), 1)
    assert batch.tokens.tolist() == [[[[31, 32, 33, 34, 0], [11, 12, 13, 0, 0], [21, 22, 0, 0, 0], [0, 0, 0, 0, 0]]]]
    assert batch.token_types.tolist() == [[[[0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]]]
    assert batch.positions.tolist() == [[[[0, 1, 2, 3, 0], [0, 1, 2, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]]]
    assert batch.example_ids.tolist() == [[[[1, 1, 1, 1, 0], [2, 2, 2, 0, 0], [3, 3, 0, 0, 0], [0, 0, 0, 0, 0]]]]
    assert batch.targets.row.tolist() == [[[0, 1, 2, 0]]]
    assert batch.targets.position.tolist() == [[[0, 0, 0, 0]]]
    assert batch.targets.label.tolist() == [[[2, 1, 0, 0]]]
    assert batch.targets.weight.tolist() == [[[1, 1, 1, 0]]]
    kinds = [leaf.dtype for leaf in (*batch[:4], *batch.targets)]
    assert kinds == [np.int32] * 7 + [np.float32]


TAGGED = Encoded(
    *ENCODED[:3],
    labels=np.array([5, 6, 7, 8, 9, 3], np.int32),
    label_offsets=np.array([0, 2, 2, 6]),
    # Of the third example's four words the second has no token.
    asked=Asked(label=np.array([0, 1, 2, 4, 5]), place=np.array([0, 2, 0, 1, 3]), offsets=np.array([0, 2, 2, 5])),
)


def test_words_are_asked_at_their_own_tokens():
    asks = batches.asks_of(TAGGED, ORDER, 6)
    layout = Layout(np.array([[1, 0, 1, 0]], np.int32), np.array([[0, 0, 4, 0]], np.int32))
    batch = batches.make_batches(TAGGED, ORDER, asks, layout, Shape(2, 6), parts=1)
    assert batch.targets.row.tolist() == [[[1, 1, 1, 0, 0, 0]]]
    assert batch.targets.position.tolist() == [[[0, 1, 3, 0, 2, 0]]]
    assert batch.targets.label.tolist() == [[[7, 9, 3, 5, 6, 0]]]
    assert batch.targets.weight.tolist() == [[[1, 1, 1, 1, 1, 0]]]
    assert asks.target.tolist() == [[2, 3, 4, 0, 1, NONE]] and asks.column.tolist() == [[0, 0, 0, 1, 1, 0]]
    halves = batches.make_batches(TAGGED, ORDER, asks, layout, Shape(2, 6), parts=2)
    assert halves.targets.weight.tolist() == [[[0, 0, 0, 1, 1, 0]], [[1, 1, 1, 0, 0, 0]]]
    assert halves.targets.row.tolist() == [[[0] * 6], [[0] * 6]]


def test_room_for_targets():
    assert batches.capacity(TAGGED, 4, Shape(2, 6)) == 12 and batches.capacity(TAGGED, 2, Shape(2, 6)) == 6
    assert batches.capacity(ENCODED, 4, Shape(4, 5)) == 4
    assert batches.count_targets(TAGGED, ORDER).tolist() == [5] and batches.count_targets(ENCODED, ORDER).tolist() == [
        3
    ]
    with pytest.raises(ValueError, match="5 targets, not 4"):
        batches.asks_of(TAGGED, ORDER, 4)


def test_two_parts_are_halves_whose_rows_are_their_own_and_whose_examples_are_the_batchs():
    batch = plain(ORDER, Shape(4, 4), 2)
    assert batch.tokens.tolist() == [[[[31, 32, 33, 34], [11, 12, 13, 0]]], [[[21, 22, 0, 0], [0, 0, 0, 0]]]]
    assert batch.example_ids.tolist() == [[[[1, 1, 1, 1], [2, 2, 2, 0]]], [[[3, 3, 0, 0], [0, 0, 0, 0]]]]
    assert batch.positions.tolist() == [[[[0, 1, 2, 3], [0, 1, 2, 0]]], [[[0, 1, 0, 0], [0, 0, 0, 0]]]]
    # Each part has all targets, with weight where their rows are.
    assert batch.targets.row.tolist() == [[[0, 1, 0, 0]], [[0, 0, 0, 0]]]
    assert batch.targets.label.tolist() == [[[2, 1, 0, 0]], [[0, 0, 0, 0]]]
    assert batch.targets.weight.tolist() == [[[1, 1, 0, 0]], [[0, 0, 1, 0]]]


def test_packed_rows_hold_the_same_examples_elsewhere():
    # The examples of 4 and 2 tokens share the second row, that of 3 has the first.
    layout = Layout(np.array([[1, 0, 1, 0]], np.int32), np.array([[0, 0, 4, 0]], np.int32))
    batch = batches.make_batches(ENCODED, ORDER, batches.asks_of(ENCODED, ORDER, 4), layout, Shape(2, 6), parts=1)
    assert batch.tokens.tolist() == [[[[11, 12, 13, 0, 0, 0], [31, 32, 33, 34, 21, 22]]]]
    assert batch.token_types.tolist() == [[[[0, 0, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0]]]]
    assert batch.positions.tolist() == [[[[0, 1, 2, 0, 0, 0], [0, 1, 2, 3, 0, 1]]]]
    assert batch.example_ids.tolist() == [[[[2, 2, 2, 0, 0, 0], [1, 1, 1, 1, 3, 3]]]]
    assert batch.targets.row.tolist() == [[[1, 0, 1, 0]]]
    assert batch.targets.position.tolist() == [[[0, 0, 4, 0]]]
    assert batch.targets.weight.tolist() == [[[1, 1, 1, 0]]]


def test_leading_axes_of_steps_and_seeds_stay():
    order = np.stack([[[2, 0], [1, NONE]], [[0, 1], [2, NONE]], [[1, 1], [0, 0]]])
    whole = plain(order, Shape(2, 4), 1)
    assert whole.tokens.shape == (1, 3, 2, 2, 4) and whole.targets.label.shape == (1, 3, 2, 2)
    for step in range(3):
        for seed in range(2):
            one = plain(order[step, seed], Shape(2, 4), 1)
            assert whole.tokens[0, step, seed].tolist() == one.tokens[0].tolist()
            assert whole.targets.label[0, step, seed].tolist() == one.targets.label[0].tolist()


def test_scores_stay_float32():
    encoded = ENCODED._replace(labels=np.array([0.5, 4.75, 2.0], np.float32))
    label = plain(ORDER, Shape(4, 4), 1, encoded).targets.label
    assert label.dtype == np.float32 and label.tolist() == [[[2.0, 0.5, 4.75, 0.0]]]


@pytest.mark.parametrize(("examples", "size", "steps"), [(1, 16, 1), (16, 16, 1), (17, 16, 2), (2490, 16, 156)])
def test_an_epoch_has_as_many_steps_as_it_takes(examples, size, steps):
    assert batches.epoch_steps(examples, size) == steps


def test_fill():
    assert batches.fill(np.array([3, 1, 2, 0, 4]), 2).tolist() == [[3, 1], [2, 0], [4, NONE]]
    assert batches.fill(np.array([1, 0]), 2).tolist() == [[1, 0]]


def test_an_epochs_order_holds_every_example_once():
    order = batches.epoch_order("rte", 0, 1, 70, 16)
    assert order.shape == (5, 16)
    assert order[-1, 6:].tolist() == [NONE] * 10
    assert sorted(order.reshape(-1)[:70].tolist()) == list(range(70))
    assert order.reshape(-1)[:70].tolist() != list(range(70))


def test_an_epochs_order_is_a_function_of_task_seed_and_epoch():
    def order(task="rte", seed=0, epoch=1):
        return batches.epoch_order(task, seed, epoch, 70, 16).tolist()

    assert order() == order()
    assert len({str(o) for o in (order(), order(task="mrpc"), order(seed=1), order(epoch=2))}) == 4
    # The order does not depend on how it is cut into steps.
    assert batches.epoch_order("rte", 0, 1, 70, 7).reshape(-1).tolist() == np.ravel(order())[:70].tolist()


def test_group_stop():
    rows = np.array([8, 8, 8, 16, 8, 8])
    assert [batches.group_stop(rows, start, 32) for start in range(6)] == [3, 3, 3, 4, 6, 6]
    assert [batches.group_stop(rows, start, 2) for start in range(6)] == [2, 3, 3, 4, 6, 6]


def test_groups_cover_every_step_once():
    rows = np.array([8, 8, 16, 16, 16, 8, 24])
    begin, groups = 0, []
    while begin < len(rows):
        stop = batches.group_stop(rows, begin, 2)
        assert 0 < stop - begin <= 2 and len(set(rows[begin:stop].tolist())) == 1
        groups.append((begin, stop))
        begin = stop
    assert groups == [(0, 2), (2, 4), (4, 5), (5, 6), (6, 7)]
