"""The promises of the grid on a real checkpoint: MiniLM, every setting of the contract, two steps."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import demo
from lnflax import cells, config, masks, rules, trainer
from tests import grids

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
    model, todo = cells.prepare(study, device_count=1)
    yield study, model, {cell.setting.name: cell for cell in todo}
    patch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_minilm_keeps_every_scalar_that_the_setting_does_not_name(prepared, setting):
    study, model, by_name = prepared
    cell = by_name[setting]
    seed_masks = cells.seed_masks(cell.setting, cell.recipe, model, study.seeds)
    own = trainer.make_trainer(
        study,
        cell.recipe,
        cell.parts[0].plan,
        cell.parts[0].chunks,
        task="cola",
        train=cell.data.train,
        rows=cell.rows,
        epochs=1,
        body=model.body,
        seed_masks=masks.gather(seed_masks),
    )
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
