"""Labels and masks to an `optax.multi_transform`; the masking transform; the schedule."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lnflax import masks, rules

Tree = Any
EPSILON_FORMS = ("adam", "keras")
SCHEDULES = ("linear", "constant")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam's constants (paper, section 2.1); 0 turns `weight_decay`, `clip_norm` and `head_learning_rate` off."""

    eps: float
    epsilon_form: str
    b1: float
    b2: float
    weight_decay: float
    clip_norm: float
    head_learning_rate: float


def schedule(kind: str, steps: int, warmup_ratio: float) -> np.ndarray:
    """What the learning rate is multiplied by at each update, float64 `[steps]`.

    Update t = 0, 1, … uses t/W below W = ceil(warmup_ratio · T), then (T - t)/(T - W) (`linear`) or 1 (`constant`).
    """
    t = np.arange(steps, dtype=np.float64)
    warmup = int(np.ceil(warmup_ratio * steps))
    falling = (steps - t) / max(steps - warmup, 1) if kind == "linear" else np.ones(steps)
    return np.where(t < warmup, t / max(warmup, 1), falling)


def keep(mask: Tree) -> optax.GradientTransformation:
    """Zero where the mask is False. Whole leaves (mask None) pass."""

    def update(updates: Tree, state: Any, params: Tree = None) -> tuple[Tree, Any]:
        del params
        zeros = jax.tree.map(jnp.zeros_like, updates)
        return masks.select(mask, updates, zeros), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(
    config: OptimizerConfig, labels: Tree, mask: Tree, *, rate: Any, head_rate: Any, step: Any
) -> optax.GradientTransformation:
    """The optimizer of one update, built inside the trace: rates and step are its arguments, not its state.

    Params and gradients are full trees with None at frozen leaves. The mask acts on gradients first, so that no
    masked gradient reaches clipping or moments, and on updates last, so that weight decay moves no masked scalar.
    Clipping is by the norm of all trained scalars together.

    Args:
        config: Adam's constants.
        labels: the full tree of labels.
        mask: a full tree of bool arrays at masked leaves, None elsewhere.
        rate: the learning rate of this update, for the body.
        head_rate: the same for `classifier/`.
        step: t = 0, 1, …; read by `epsilon_form=keras` (eps divided by sqrt(1 - b2^(t+1))).
    """
    eps: Any = config.eps
    if config.epsilon_form == "keras":
        eps = config.eps / jnp.sqrt(1.0 - config.b2 ** (jnp.asarray(step, jnp.float32) + 1.0))

    def adam(learning_rate: Any) -> optax.GradientTransformation:
        parts = [optax.scale_by_adam(config.b1, config.b2, eps)]
        if config.weight_decay:
            parts.append(optax.add_decayed_weights(config.weight_decay))
        return optax.chain(*parts, optax.scale(-learning_rate))

    groups = {
        "head": adam(head_rate),
        "trainable": adam(rate),
        "masked": adam(rate),
        "frozen": optax.set_to_zero(),
    }
    parts = [keep(mask)]
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    return optax.chain(*parts, optax.multi_transform(groups, group_labels(labels)), keep(mask))


def group_labels(labels: Tree) -> Tree:
    """Labels with the classifier's leaves in a group of their own, for its own learning rate."""
    flat = rules.flatten(labels)
    return rules.unflatten({path: "head" if path.startswith("classifier/") else label for path, label in flat.items()})
