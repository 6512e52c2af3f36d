import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from scipy.special import erf

from lnflax import bert, dropout, rules, step
from lnflax.batches import Targets
from lnflax.bert import POOLINGS, Classifier, Readers
from lnflax.optimizer import OptimizerConfig
from tests import tiny

ADAM = OptimizerConfig(
    eps=1e-6, epsilon_form="adam", b1=0.9, b2=0.999, weight_decay=0, clip_norm=0, head_learning_rate=0
)
STATE = jnp.uint32(20240229)
LENGTHS = (5, 3, 7, 4)
PACKED = ((2, 1), (3, 0))
LAYOUTS = (((0,), (1,), (2,), (3,)), PACKED, ((0, 1, 2, 3),), ((), (3,), (), (1, 2, 0)))

BLOCK = {
    "attention/self/query/kernel": (12, 12),
    "attention/self/query/bias": (12,),
    "attention/self/key/kernel": (12, 12),
    "attention/self/key/bias": (12,),
    "attention/self/value/kernel": (12, 12),
    "attention/self/value/bias": (12,),
    "attention/output/dense/kernel": (12, 12),
    "attention/output/dense/bias": (12,),
    "attention/output/LayerNorm/scale": (12,),
    "attention/output/LayerNorm/bias": (12,),
    "intermediate/dense/kernel": (12, 20),
    "intermediate/dense/bias": (20,),
    "output/dense/kernel": (20, 12),
    "output/dense/bias": (12,),
    "output/LayerNorm/scale": (12,),
    "output/LayerNorm/bias": (12,),
}
TREE = {
    "bert/embeddings/word_embeddings/embedding": (61, 12),
    "bert/embeddings/position_embeddings/embedding": (24, 12),
    "bert/embeddings/token_type_embeddings/embedding": (2, 12),
    "bert/embeddings/LayerNorm/scale": (12,),
    "bert/embeddings/LayerNorm/bias": (12,),
    **{f"bert/encoder/layer/{i}/{name}": shape for i in range(2) for name, shape in BLOCK.items()},
    "bert/pooler/dense/kernel": (12, 12),
    "bert/pooler/dense/bias": (12,),
    "classifier/kernel": (12, 2),
    "classifier/bias": (2,),
}


def four_rows(examples, layout=PACKED, **options):
    """A batch of one shape for all tests, so that few programs are compiled; with rows of padding."""
    return tiny.batch(examples, (*layout, (), (), ())[:4], length=20, **options)


@functools.partial(tiny.jit, static_argnums=0)
def forward(config, params, batch, masks):
    return Classifier(config).apply({"params": params}, batch, masks)


@functools.partial(tiny.jit, static_argnums=0)
def backward(config, params, batch, masks):
    def loss(params):
        out = Classifier(config).apply({"params": params}, batch, masks)
        return jnp.sum(step.losses(out, batch.targets) * batch.targets.weight) / batch.targets.weight.sum(), out

    return jax.value_and_grad(loss, has_aux=True)(params)


dropout_masks = tiny.jit(bert.dropout_masks, static_argnums=0)


def logits(config, batch, masks=None):
    return np.asarray(forward(config, tiny.params(config), batch, masks or {}))


def results(config, batch, masks):
    """Logits, the weighted mean loss as a training step has it, and its gradient by path."""
    (loss, out), grads = backward(config, tiny.params(config), batch, masks)
    return np.asarray(out), float(loss), {path: np.asarray(leaf) for path, leaf in rules.flatten(grads).items()}


def assert_close(ours, theirs):
    """Gradients by path, to 1e-5 of the largest; what is 0 in exact arithmetic (keys' biases) is held to that too."""
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(leaf).max() for leaf in theirs.values())
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[path], rtol=1e-5, atol=1e-6 * largest, err_msg=path)


def changed(batch, row, columns, **values):
    """The batch with other values in one row's columns."""
    fields = {}
    for name, value in values.items():
        fields[name] = getattr(batch, name).copy()
        fields[name][row, columns] = value
    return batch._replace(**fields)


def test_the_whole_parameter_tree_of_a_tiny_bert():
    shapes = {path: leaf.shape for path, leaf in rules.flatten(bert.parameter_shapes(tiny.config())).items()}
    assert shapes == TREE
    assert {leaf.dtype for leaf in jax.tree.leaves(bert.parameter_shapes(tiny.config(dtype="bfloat16")))} == {
        np.dtype("float32")
    }


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_pooler_exists_only_where_it_is_used(pooling):
    shapes = rules.flatten(bert.parameter_shapes(tiny.config(pooling=pooling, num_outputs=1)))
    assert set(shapes) == {path for path in TREE if not path.startswith("bert/pooler/")}
    assert shapes["classifier/kernel"].shape == (12, 1)


def test_stages_and_the_stage_of_every_parameter():
    config = tiny.config()
    names = bert.stages(config)
    assert names == [
        "embeddings", "embeddings_norm",
        "0/attention", "0/attention_norm", "0/ffn", "0/ffn_norm",
        "1/attention", "1/attention_norm", "1/ffn", "1/ffn_norm",
        "pooling", "classifier",
    ]  # fmt: skip
    own = {path: names[bert.stage_of(config, path)] for path in TREE}
    assert own["bert/embeddings/token_type_embeddings/embedding"] == "embeddings"
    assert own["bert/embeddings/LayerNorm/bias"] == "embeddings_norm"
    assert own["bert/encoder/layer/1/attention/self/key/bias"] == "1/attention"
    assert own["bert/encoder/layer/1/attention/output/dense/kernel"] == "1/attention"
    assert own["bert/encoder/layer/0/attention/output/LayerNorm/scale"] == "0/attention_norm"
    assert own["bert/encoder/layer/0/intermediate/dense/bias"] == "0/ffn"
    assert own["bert/encoder/layer/0/output/dense/kernel"] == "0/ffn"
    assert own["bert/encoder/layer/0/output/LayerNorm/bias"] == "0/ffn_norm"
    assert own["bert/pooler/dense/kernel"] == "pooling"
    assert own["classifier/bias"] == "classifier"
    with pytest.raises(ValueError, match="no stage reads 'bert/head'"):
        bert.stage_of(config, "bert/head")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_rows_equal_plain_ones_with_dropout_on(pooling):
    config = tiny.config(pooling=pooling)
    examples = tiny.examples(*LENGTHS)
    (plain, loss, gradients), *packed = [
        results(config, batch, dropout_masks(config, batch, STATE))
        for batch in (four_rows(examples, layout) for layout in LAYOUTS)
    ]
    assert np.abs(plain - logits(config, four_rows(examples))).max() > 0.1, "dropout is on"
    for other, other_loss, other_gradients in packed:
        np.testing.assert_allclose(other, plain, rtol=0, atol=2e-6)
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert_close(other_gradients, gradients)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("noisy", [False, True])
def test_an_example_does_not_see_its_neighbour_in_the_row(pooling, noisy):
    config = tiny.config(pooling=pooling)
    batch = four_rows(tiny.examples(*LENGTHS))
    masks = dropout_masks(config, batch, STATE) if noisy else {}
    other = changed(batch, 0, slice(0, 7), tokens=[1, 9, 9, 2, 60, 5, 3], token_types=1)  # example 3 of row 0
    before, after = logits(config, batch, masks), logits(config, other, masks)
    assert np.abs(before[2] - after[2]).max() > 1e-3
    np.testing.assert_array_equal(before[[0, 1, 3]], after[[0, 1, 3]])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_neighbour_of_another_length_changes_nothing_either(pooling):
    config = tiny.config(pooling=pooling)
    first, second = tiny.examples(6, 5)
    alone = logits(config, four_rows([first, second], ((0,), (1,))))
    shorter = (first[0][:3], first[1][:3])
    beside = logits(config, four_rows([shorter, second], ((0, 1),)))
    np.testing.assert_allclose(beside[1], alone[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_tokens_do_not_matter(pooling):
    config = tiny.config(pooling=pooling)
    batch = four_rows(tiny.examples(*LENGTHS))
    other = changed(batch, slice(None), slice(10, 20), tokens=7, token_types=1, positions=3)
    np.testing.assert_array_equal(logits(config, batch), logits(config, other))
    longer = tiny.batch(tiny.examples(*LENGTHS), PACKED, length=24)  # and without rows of padding
    np.testing.assert_allclose(logits(config, longer), logits(config, batch), rtol=0, atol=2e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_rows_and_targets_of_weight_zero_change_nothing(pooling):
    config = tiny.config(pooling=pooling)
    examples = tiny.examples(*LENGTHS)
    runs = []
    for spare in (0, 3):
        batch = four_rows(examples, spare=spare)
        if spare:  # two of them in rows of padding, one at an example's own place
            row = batch.targets.row.copy()
            row[-2:] = 2, 3
            batch = batch._replace(targets=batch.targets._replace(row=row))
        masks = dropout_masks(config, batch, STATE)
        runs.append(results(config, batch, masks))
    (plain, loss, gradients), (padded, padded_loss, padded_gradients) = runs
    assert padded.shape == (7, 2)
    assert np.isfinite(padded).all()
    np.testing.assert_allclose(padded[:4], plain, rtol=0, atol=1e-6)
    assert padded_loss == pytest.approx(loss, rel=1e-6)
    assert_close(padded_gradients, gradients)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_batch_of_padding_only_has_no_nan(pooling):
    config = tiny.config(pooling=pooling)
    batch = four_rows(tiny.examples(*LENGTHS))
    rows = [np.zeros_like(rows) for rows in batch[:4]]
    batch = batch._replace(tokens=rows[0], token_types=rows[1], positions=rows[2], example_ids=rows[3])
    out, loss, gradients = results(config, batch, dropout_masks(config, batch, STATE))
    assert np.isfinite(out).all()
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in gradients.values())


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("noisy", [False, True])
def test_prefix_and_suffix_make_the_whole_at_every_cut(pooling, noisy):
    config = tiny.config(pooling=pooling)
    batch = four_rows(tiny.examples(*LENGTHS))
    masks = dropout_masks(config, batch, STATE) if noisy else {}
    params = {"params": tiny.params(config)}
    model = Classifier(config)
    whole = model.apply(params, batch, masks)
    for cut in range(1, len(bert.stages(config))):
        features = model.apply(params, batch, masks, None, 0, cut)
        np.testing.assert_array_equal(model.apply(params, batch, masks, features, cut), whole, err_msg=str(cut))


@pytest.mark.parametrize("trained", {bert.stage_of(tiny.config(), path): path for path in TREE}.values())
def test_a_recipe_is_cut_at_its_first_trained_parameter(trained):
    config = tiny.config()
    labels = tuple((path, "trainable" if path in (trained, "classifier/bias") else "frozen") for path in sorted(TREE))
    recipe = step.Recipe(config, labels, ADAM)
    values, frozen = rules.split(tiny.params(config), recipe.label_tree)
    batch = four_rows(tiny.examples(*LENGTHS))
    below, above = step.noise(recipe, batch, STATE, jnp.int32(3))
    features = step.prefix(recipe, frozen, batch, below)  # reads no trained leaf: it is None there
    assert (features is None) == (recipe.cut == 0)
    chosen = jax.tree.map(lambda label: None, recipe.label_tree)
    out = step.suffix(recipe, values, frozen, chosen, features, batch, above)
    assert not set(below) & set(above)
    whole = Classifier(config).apply({"params": tiny.params(config)}, batch, below | above)
    np.testing.assert_array_equal(out, whole)


def test_pooling_by_hand():
    batch = four_rows(tiny.examples(*LENGTHS))
    x = tiny.draw("hidden", (4, 20, 12), 1.0)
    first = np.stack([x[1, 4], x[0, 7], x[0, 0], x[1, 0]])  # where examples 1 … 4 begin
    np.testing.assert_array_equal(Readers(batch, everyone=False).pick(x), first)
    last = {}
    for pooling in POOLINGS:
        config = tiny.config(pooling=pooling)
        params = {"params": tiny.params(config)}
        start = bert.stages(config).index("pooling")
        given = x if pooling == "mean" else first
        last[pooling] = Classifier(config).apply(params, batch, {}, given, start, start + 1)
    mean = np.stack([x[1, 4:9].mean(0), x[0, 7:10].mean(0), x[0, :7].mean(0), x[1, :4].mean(0)])
    own = tiny.weights(tiny.config())
    pooled = np.tanh(first @ own["bert/pooler/dense/kernel"] + own["bert/pooler/dense/bias"])
    np.testing.assert_array_equal(last["cls"], first)
    np.testing.assert_allclose(last["mean"], mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(last["pooler"], pooled, rtol=0, atol=1e-6)


def full_computation(patch):
    """The last block is computed for every token; the head picks."""
    pooled = bert.Body.pooled
    patch.setattr(bert, "readers", lambda config, batch, block: Readers(batch, everyone=True))
    patch.setattr(bert.Body, "pooled", lambda body, x, batch: pooled(body, few(batch).pick(x), batch))


def few(batch):
    return Readers(batch, everyone=False)


def asked(batch, places):
    """The batch with targets at these `(row, position, weight)`."""
    row, position, weight = (np.array(column) for column in zip(*places, strict=True))
    return batch._replace(targets=Targets(row, position, (row + position) % 2, weight.astype(np.float32)))


def fresh_results(config, batch):
    """Logits, loss and gradients with dropout on, and off; traced anew."""
    run = tiny.jit(lambda params, masks: backward.__wrapped__(config, params, batch, masks))
    masks = tiny.jit(lambda: bert.dropout_masks(config, batch, STATE))()
    return [run(tiny.params(config), noise) for noise in (masks, {})]


SENTENCES = [(1, 4, 1), (0, 7, 1), (0, 0, 1), (1, 0, 1), (0, 0, 0), (2, 3, 0)]  # the examples' first tokens; no example
WORDS = [(r, c, 1) for r in (0, 1) for c in range(9)] + [(0, 0, 0)] * 2 + [(0, 1, 0), (3, 5, 0)]  # more than a row has


@pytest.mark.parametrize(
    ("pooling", "layout", "places"),
    [("pooler", PACKED, SENTENCES), ("cls", PACKED, WORDS), ("pooler", LAYOUTS[0], None)],
)
def test_the_last_block_of_the_targets_alone_equals_that_of_all_tokens(pooling, layout, places):
    config = tiny.config(pooling=pooling)
    batch = four_rows(tiny.examples(*LENGTHS), layout)
    batch = batch if places is None else asked(batch, places)
    with pytest.MonkeyPatch.context() as patch:
        full_computation(patch)
        expected = fresh_results(config, batch)
    for ours, whole in zip(fresh_results(config, batch), expected, strict=True):
        (loss, out), gradients = ours
        (whole_loss, whole_out), whole_gradients = whole
        np.testing.assert_allclose(out, whole_out, rtol=0, atol=2e-6)
        assert float(loss) == pytest.approx(float(whole_loss), rel=1e-6)
        assert_close(
            *(
                {path: np.asarray(leaf) for path, leaf in rules.flatten(tree).items()}
                for tree in (gradients, whole_gradients)
            )
        )


@pytest.mark.parametrize("places", [SENTENCES, WORDS])
def test_the_last_blocks_masks_are_those_of_its_tokens(places):
    batch = asked(four_rows(tiny.examples(*LENGTHS)), places)
    everyone, own = (dropout_masks(tiny.config(pooling=pooling), batch, STATE) for pooling in ("mean", "pooler"))
    for site in ("1/attention", "1/ffn"):
        np.testing.assert_array_equal(own[site], few(batch).pick(everyone[site]))
    scores, all_scores = (masks["1/probs"].swapaxes(1, 2) for masks in (own, everyone))
    assert scores.shape[1] == min(len(places), 20)
    np.testing.assert_array_equal(few(batch).from_rows(scores), few(batch).pick(all_scores))
    assert all((own[site] == everyone[site]).all() for site in everyone if not site.startswith("1/"))


def test_the_last_block_costs_keys_and_values():
    """Of its 2·tokens·(4·hidden² + 2·hidden·wide) flops two products of hidden² are left, and a few targets'."""
    config = tiny.config(hidden_size=96, intermediate_size=384)
    batch = four_rows(tiny.examples(*LENGTHS))
    counts = []
    for patched in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if patched:
                full_computation(patch)
            run = jax.jit(lambda params, batch: Classifier(config).apply({"params": params}, batch, {}))
            compiled = run.lower(bert.parameter_shapes(config), batch).compile()
            counts.append(compiled.cost_analysis()["flops"])
    tokens, targets = 4 * 20, 4
    saved = 2 * (tokens - targets) * (2 * 96 * 96 + 2 * 96 * 384)
    assert counts[0] - counts[1] == pytest.approx(saved, rel=0.2)  # and what attention and activation save


def test_dropout_sites_are_complete_and_a_rate_of_zero_has_no_mask():
    batch = four_rows(tiny.examples(*LENGTHS))
    shapes = {name: mask.shape for name, mask in dropout_masks(tiny.config(), batch, STATE).items()}
    tokens, scores, targets = (4, 20, 12), (4, 3, 20, 20), (4, 12)
    assert shapes == {
        "embeddings": tokens,
        **{"0/probs": scores, "0/attention": tokens, "0/ffn": tokens},
        **{"1/probs": (4, 3, 4, 20), "1/attention": targets, "1/ffn": targets},
        "classifier": targets,
    }
    for field, left in (
        ("hidden_dropout_prob", {"0/probs", "1/probs", "classifier"}),
        ("attention_probs_dropout_prob", set(shapes) - {"0/probs", "1/probs"}),
        ("classifier_dropout", set(shapes) - {"classifier"}),
    ):
        assert set(dropout_masks(tiny.config(**{field: 0.0}), batch, STATE)) == left


def test_every_dropout_site_is_applied_and_has_bits_of_its_own():
    config = tiny.config()
    batch = four_rows(tiny.examples(*LENGTHS))
    masks = dropout_masks(config, batch, STATE)
    everything = {site: np.ones(mask.shape, bool) for site, mask in masks.items()}
    without = logits(config, batch, everything)
    for site, mask in masks.items():
        assert np.abs(logits(config, batch, everything | {site: mask}) - without).max() > 1e-4, site
    assert len({np.asarray(mask).tobytes() for mask in masks.values()}) == len(masks)


def test_inverted_dropout_by_hand():
    x = tiny.draw("x", (4, 5), 1.0)
    mask = tiny.draw("mask", (4, 5), 1.0) > 0
    np.testing.assert_allclose(dropout.drop(x, mask, 0.25), np.where(mask, x / 0.75, 0), rtol=1e-7)
    assert dropout.drop(x, None, 0.25) is x


def equations(jaxpr):
    """Every equation of a jaxpr, those of inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_bfloat16_keeps_norms_softmax_and_logits_in_float32():
    config = tiny.config(dtype="bfloat16")
    params = tiny.params(config)
    batch = four_rows(tiny.examples(*LENGTHS))
    masks = dropout_masks(config, batch, STATE)
    model = Classifier(config)
    closed = jax.make_jaxpr(lambda params: model.apply({"params": params}, batch, masks))(params)
    found = {}
    for equation in equations(closed.jaxpr):
        for value in equation.invars[:1]:
            found.setdefault(equation.primitive.name, []).append(value.aval.dtype)
    assert set(found["exp"]) == {np.dtype("float32")}, "softmax"
    assert set(found["rsqrt"]) == {np.dtype("float32")}, "LayerNorm"
    assert len(found["rsqrt"]) == 5
    products = [dtype for dtype in found["dot_general"] if dtype == jnp.bfloat16]
    assert len(products) == 2 * 8 + 1, "all but the classifier's product"
    out = model.apply({"params": params}, batch, masks)
    assert out.dtype == jnp.float32
    exact = logits(tiny.config(), batch, masks)
    assert 0 < np.abs(out - exact).max() < 0.1


def test_bfloat16_trains_float32_leaves():
    config = tiny.config(dtype="bfloat16")
    flat = tiny.weights(config)
    flat["bert/encoder/layer/1/output/LayerNorm/scale"] = np.ones(12, np.float32)
    labels = tuple((path, "trainable" if "LayerNorm" in path else "frozen") for path in sorted(flat))
    recipe = step.Recipe(config, labels, ADAM)
    batch = four_rows(tiny.examples(*LENGTHS))
    values, frozen = rules.split(rules.unflatten(flat), recipe.label_tree)
    mask = tiny.whole_mask(rules.unflatten(dict.fromkeys(flat)))
    update = step.Update(jnp.float32(1e-4), jnp.float32(1e-4), jnp.int32(0))

    @tiny.jit
    def train(values):
        state = step.initial_state(recipe, values, mask)
        features = step.prefix(recipe, frozen, batch, {})
        return step.train_step(recipe, frozen, state, mask, features, batch, {}, update)[0]

    state = train(values)
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {np.dtype("float32")}
    scale = rules.flatten(state.values)["bert/encoder/layer/1/output/LayerNorm/scale"]
    # Near 1 a bfloat16 has steps of 1/256, and would not have moved by 1e-4.
    assert (np.abs(np.asarray(scale) - 1) > 5e-5).all()


def test_the_exact_gelu_and_the_norm_of_the_config():
    x = np.linspace(-4, 4, 81, dtype=np.float32)
    exact = x.astype(np.float64) * (1 + erf(x / np.sqrt(2))) / 2
    np.testing.assert_allclose(bert.ACTIVATIONS["gelu"](x), exact, rtol=0, atol=1e-6)
    config = dataclasses.replace(tiny.config(), layer_norm_eps=0.5)
    scale, bias = tiny.draw("scale", (12,), 1.0), tiny.draw("bias", (12,), 1.0)
    y = 100 + tiny.draw("y", (3, 12), 0.01)  # where the fast variance has lost all its digits
    ours = bert.norm(config).apply({"params": {"scale": scale, "bias": bias}}, y)
    centred = y - y.mean(-1, keepdims=True, dtype=np.float64)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.5) * scale + bias
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
