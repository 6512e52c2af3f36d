"""The promises of the grid on a real checkpoint: MiniLM, every setting of the contract, two steps."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import demo
from lnflax import cells, config, evaluation, rules, trainer
from tests import grids
from tests.real import GLUE

SETTINGS = (
    *("full", "frozen", "mha", "ffn", "layernorms", "ln_a", "ln_f", "bitfit", "random"),
    *("single_norm_1", "single_norm_6", "outliers_16", "random_norms_16"),
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The model and a cell for each setting, on a generated task, two steps of the last epoch."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LNFLAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    try:
        given = demo.get_config()
    except ValueError as error:
        pytest.skip(str(error))
    given.update(
        tasks=("cola",), settings=SETTINGS, seeds=(0,), learning_rates=(1e-3,), epochs=1, max_train_examples=48
    )
    study = config.parse(given)
    todo = cells.prepare(study, device_count=1)
    yield study, todo[0].data.model, {cell.setting.name: cell for cell in todo}
    patch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_minilm_keeps_every_scalar_that_the_setting_does_not_name(prepared, setting):
    study, model, by_name = prepared
    cell = by_name[setting]
    seed_masks = cells.seed_masks(cell.setting, cell.recipe, model, study.seeds)
    own = trainer_of(cell, cell.recipe, model, study)
    states, losses = grids.train(own)
    assert losses.shape == (3, 1, 1) and np.isfinite(losses).all()
    chosen, trained = rules.flatten(seed_masks[0]), 0
    for path, values in grids.final(own, states).items():
        label, now = dict(own.recipe.labels)[path], values[0, 0]
        if not path.startswith("bert/"):
            continue
        inside = np.full(now.shape, label == "trainable") if chosen[path] is None else chosen[path]
        trained += int(inside.sum())
        assert now[~inside].tobytes() == model.body[path][~inside].tobytes(), path
        if label == "trainable":
            assert (now != model.body[path]).any(), path
    assert trained == cell.report["trained"]
    assert trainer.unmoved(own, states) == []
    jax.clear_caches()


def trainer_of(cell, recipe, model, study):
    """The trainer of a cell, with another recipe."""
    return trainer.make_trainer(
        study,
        recipe,
        cell.parts[0].plan,
        cell.parts[0].chunks,
        task="cola",
        train=cell.data.train,
        rows=cell.parts[0].rows,
        epochs=1,
        body=model.body,
        seed_masks=cells.seed_masks(cell.setting, recipe, model, study.seeds),
    )


@pytest.mark.slow
def test_minilm_with_gathered_scalars_trains_as_with_whole_leaves(prepared):
    """Three updates with dropout on, the second and third of rates above 0."""
    study, model, by_name = prepared
    cell, ends = by_name["random"], []
    for gathered in (cell.recipe.gathered, ()):
        own = trainer_of(cell, dataclasses.replace(cell.recipe, gathered=gathered), model, study)
        states, losses = grids.train(own)
        ends.append((losses, grids.final(own, states)))
    (losses, final), (whole_losses, whole) = ends
    np.testing.assert_allclose(losses, whole_losses, rtol=1e-6)
    encoder = [path for path in final if path.startswith("bert/encoder/")]  # 47 % of the body: so many of 9,216
    moved = sum(int((final[path][0, 0] != model.body[path]).sum()) for path in encoder)
    assert moved == pytest.approx(0.47 * 9_216, rel=0.05)
    for path, leaf in final.items():
        np.testing.assert_allclose(leaf, whole[path], rtol=0, atol=1e-6, err_msg=path)
    jax.clear_caches()


def test_minilm_counts(prepared):
    _, _, by_name = prepared
    counts = {name: cell.report["trained"] for name, cell in by_name.items()}
    assert counts == {
        "full": 22_565_376,
        "frozen": 0,
        "mha": 6 * 4 * (384 * 384 + 384),
        "ffn": 6 * (2 * 384 * 1536 + 1536 + 384),
        "layernorms": 9_216,
        "ln_a": 4_608,
        "ln_f": 4_608,
        "bitfit": 6 * (4 * 384 + 1536 + 384 + 2 * 384),
        "random": 9_216,
        "single_norm_1": 1_536,
        "single_norm_6": 1_536,
        "outliers_16": 192,
        "random_norms_16": 192,
    }
    assert dataclasses.asdict(by_name["random"].setting.mask)["size"] == 9_216


@pytest.mark.slow
@pytest.mark.skipif(not GLUE.is_dir(), reason="real GLUE is not beside the project")
def test_bfloat16_products_end_within_a_point_of_float32_on_a_real_task(tmp_path, monkeypatch):
    """stsb, LayerNorms, 150 updates at 5e-3: near 1 a bfloat16 scale would not move by what an update adds."""
    monkeypatch.setenv("LNFLAX_CACHE", str(tmp_path / "cache"))
    scores, moved = {}, {}
    for dtype in ("float32", "bfloat16"):
        given = demo.get_config()
        given.update(tasks=("stsb",), settings=("layernorms",), seeds=(0,), learning_rates=(5e-3,), epochs=1)
        given.update(max_train_examples=2400)
        given.model.dtype, given.data.path = dtype, str(GLUE)
        study = config.parse(given)
        (cell,) = cells.prepare(study, device_count=1)
        own, evals = cells.make_trainer(cell, cell.parts[0])
        states, losses = grids.train(own)
        assert losses.shape == (150, 1, 1)
        moved[dtype] = trainer.unmoved(own, states)
        kinds = {leaf.dtype for leaf in jax.tree.leaves(states) if leaf.dtype != np.int32}
        assert kinds == {np.dtype(np.float32)}
        (part,) = (
            evaluation.evaluate(own.recipe, own.plan, own.chunks, own.frozen, states.values, own.masks.chosen, e)
            for e in evals.values()
        )
        scores[dtype] = np.corrcoef(part[0][0, 0], cell.data.evals["validation"].labels)[0, 1]
    assert moved == {"float32": [], "bfloat16": []}
    assert scores["float32"] > 0.7
    assert abs(scores["bfloat16"] - scores["float32"]) < 0.01
