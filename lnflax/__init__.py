"""lnflax: which few parameters of a pretrained transformer are worth tuning, as a grid in JAX/Flax.

model = lnflax.load_model("google-bert/bert-base-uncased", "runs/w/rte/layernorms/deltas/seed0-lr0.005.safetensors")
for answer in lnflax.predict(model, [("Two men are running.", "People run.")]):
    print(answer["label"], answer["probabilities"])
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Rooms are imported where they are used, so that importing lnflax stays cheap.
if TYPE_CHECKING:
    from lnflax.tuned import Model

MAX_LENGTH = 128  # tokens of an example: the protocol's


def read_runs(workdir: Path | str) -> list[dict[str, Any]]:
    """Every run of a run folder as a flat record: `pandas.DataFrame(lnflax.read_runs(workdir))`."""
    from lnflax.analysis import runs

    return runs.read_runs(workdir)


def load_model(name: str, delta: Path | str | None = None) -> Model:
    """A checkpoint, tuned by a delta or as it is.

    Args:
        name: a folder or a hub id.
        delta: the file of a run's delta; without one the checkpoint's own head answers, or a fresh one.

    Raises:
        InputError: either is not there, is not whole, or the delta is of another checkpoint.
    """
    from lnflax import tuned

    base = tuned.open_base(str(name))
    return tuned.load(base) if delta is None else tuned.apply(base, delta)


def apply_delta(model: Model, delta: Path | str) -> Model:
    """The model's base with the values of a delta. The model stays as it is, and both share what the delta leaves.

    Raises:
        InputError: no such file, or the delta is of another checkpoint.
    """
    from lnflax import tuned

    return tuned.apply(model.base, delta)


def predict(
    model: Model | Mapping[str, Model], examples: Iterable[Any], *, max_length: int = MAX_LENGTH
) -> Iterator[dict[str, Any]]:
    """An answer an example, in order, as they come: see `serving.predict`."""
    from lnflax.serving import predict as answers

    models = model if isinstance(model, Mapping) else {"": model}
    return answers(models, examples, max_length=max_length)
