"""Exported models of tagged words in PyTorch, every setting; in a file of their own, for a process of their own."""

import pytest

from tests import exported

pytestmark = exported.MARKS


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The delta of each setting."""
    return exported.train(tmp_path_factory.mktemp("study") / "pos", "pos", exported.SETTINGS)


@pytest.mark.parametrize("setting", exported.SETTINGS)
def test_the_exported_folder_answers_as_ours(paths, tmp_path, setting):
    exported.check_the_folder(paths[setting], tmp_path)


@pytest.mark.parametrize("setting", exported.NORMS)
def test_the_adapter_answers_as_ours_and_comes_back_to_the_bit(paths, tmp_path, setting):
    exported.check_the_adapter(paths[setting], tmp_path)


@pytest.mark.parametrize("setting", exported.SETTINGS)
def test_applied_and_reverted_the_checkpoints_file_is_the_same(paths, tmp_path, setting):
    exported.check_the_way_back(paths[setting], tmp_path)
