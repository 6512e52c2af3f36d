"""lnflax: which few parameters of a pretrained transformer are worth tuning, as a grid in JAX/Flax."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_runs(workdir: Path | str) -> list[dict[str, Any]]:
    """Every run of a run folder as a flat record: `pandas.DataFrame(lnflax.read_runs(workdir))`."""
    # Imported here, so that importing lnflax stays cheap.
    from lnflax.analysis import runs

    return runs.read_runs(workdir)
