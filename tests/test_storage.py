import errno
import os

import pytest

from lnflax import storage
from lnflax.errors import InputError
from lnflax.storage import Damaged, StorageError

SUM = {
    b"one\n": "2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806",
    b"two\n": "27dd8ed44a83ff94d557f9fd0412ed5a8cbca69ea04922d88c01184a07300a5a",
}


def test_the_sums_name_the_file_that_lies_there_and_the_one_that_comes(tmp_path):
    for data in SUM:
        storage.write(tmp_path / "a", data)
    assert storage.read_sums(tmp_path) == {"a": list(SUM.values())}
    for data in SUM:  # a crash leaves one of them
        (tmp_path / "a").write_bytes(data)
        assert storage.read(tmp_path / "a") == data
    storage.settle(tmp_path)
    two = SUM[b"two\n"]
    assert (tmp_path / "SHA256SUMS").read_text() == f"{two}  a\n"


def test_another_file_is_not_believed_and_one_without_a_sum_is(tmp_path):
    storage.write(tmp_path / "a", b"one\n")
    (tmp_path / "a").write_bytes(b"One\n")
    with pytest.raises(Damaged, match="a is not what was written: its sum is not that of SHA256SUMS") as caught:
        storage.read(tmp_path / "a")
    assert caught.value.path == tmp_path / "a"
    (tmp_path / "SHA256SUMS").unlink()
    assert storage.read(tmp_path / "a") == b"One\n"


def test_the_same_file_is_not_written_twice(tmp_path):
    storage.write(tmp_path / "a", b"one\n")
    before = (tmp_path / "a").stat().st_ino, (tmp_path / "SHA256SUMS").stat().st_ino
    storage.write(tmp_path / "a", b"one\n")
    assert before == ((tmp_path / "a").stat().st_ino, (tmp_path / "SHA256SUMS").stat().st_ino)


def test_lines_of_sums_that_are_none_are_passed_over(tmp_path):
    (tmp_path / "SHA256SUMS").write_bytes(b"\xff\xfe\n" + b"0" * 64 + b"  a\nshort  b\n")
    assert storage.read_sums(tmp_path) == {"a": ["0" * 64]}


def test_files_are_set_aside_one_beside_the_other(tmp_path):
    names = []
    for data in (b"1", b"2", b"3"):
        (tmp_path / "a.json").write_bytes(data)
        names.append(storage.set_aside(tmp_path / "a.json", tmp_path).name)
    assert names == ["a.json.damaged", "a.json.damaged-2", "a.json.damaged-3"]
    assert (tmp_path / "a.json.damaged-2").read_bytes() == b"2" and not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device; free some space, give the same command again"),
        (errno.EDQUOT, "Disk quota exceeded; free some space of your quota, give the same command again"),
        (errno.EROFS, "Read-only file system; make the file system writable, give the same command again"),
        (errno.EACCES, "Permission denied; allow this user to write there, give the same command again"),
        (errno.EIO, "Input/output error; does the disk, or the mount, still answer? Then give the same command again"),
    ],
)
def test_a_disk_that_fails_is_one_line_that_says_what_to_do(tmp_path, monkeypatch, number, advice):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage.os, "write", refuse)
    with pytest.raises(StorageError) as caught:
        storage.durable_write(tmp_path / "a", b"one\n")
    monkeypatch.undo()
    assert str(caught.value) == f"{tmp_path / 'a'} cannot be written: {advice}: what is finished is kept"
    assert caught.value.errno == number and list(tmp_path.iterdir()) == []


def test_a_write_in_pieces_is_whole(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(storage.os, "write", lambda file, data: write(file, data[:3]))
    storage.durable_write(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_what_is_in_the_way(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be a folder: a file is in its place"):
            storage.make_folder(folder)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder is a folder where a file should be"):
        storage.durable_write(tmp_path / "folder", b"")
    with pytest.raises(InputError, match="none is not there"):
        storage.read(tmp_path / "none")
