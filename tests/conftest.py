"""Every test runs on four simulated devices, offline, with its own cache folder."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="lnflax-datasets-")  # read once, at import

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

sys.path.insert(0, str(Path(__file__).parent.parent))
# A check in a file that tests share says its values too.
pytest.register_assert_rewrite("tests.exported", "tests.kills", "tests.studies")


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny checkpoint."""
    from tests import tiny

    return tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Token ids are cached apart from the user's."""
    monkeypatch.setenv("LNFLAX_CACHE", str(tmp_path_factory.getbasetemp() / "lnflax-cache"))


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """A compiled program has some ten memory mappings; at 65,530 Linux gives no more, and the compiler dies of it."""
    yield
    jax.clear_caches()
