"""Downloads against a hub that is slow, cuts off, refuses, or is not there. Waits are written down, not waited."""

import logging
import re
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from lnflax import hub
from lnflax.errors import InputError
from lnflax.hub import Wanted
from tests.fake_hub import FakeHub

WEIGHTS = bytes(range(256)) * 1024
WANTED = Wanted(
    "model",
    "org/tiny",
    lambda names: {name: [name] for name in ("config.json", "vocab.txt", "weights") if name in names},
    ("config.json", "weights"),
)
WHERE = "model.name: 'org/tiny'"
AHEAD = "`python train.py --config=… --prepare` fetches it ahead, where there is a network"
LISTING, HEAD, GET = "GET /api/models/org/tiny", "HEAD .*/weights", "GET .*/weights"


def forget():
    """As a new process would."""
    hub.ANSWERS.clear()
    hub._warn.cache_clear()


@pytest.fixture
def waited(monkeypatch):
    """The seconds of every wait."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def server(tmp_path, monkeypatch, waited):
    """The fake hub, which this process takes for the hub, with an empty cache."""
    repository = tmp_path / "served" / "models" / "org" / "tiny"
    repository.mkdir(parents=True)
    for name, data in {"config.json": b"{}", "vocab.txt": b"a\n", "weights": WEIGHTS, "other.bin": b"never"}.items():
        (repository / name).write_bytes(data)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub, "TIMEOUT", 0.3)
    values = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False, "HF_HUB_DOWNLOAD_TIMEOUT": 0.3}
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    forget()
    huggingface_hub.close_session()
    with FakeHub(tmp_path / "served") as server:
        monkeypatch.setattr(hub, "_api", lambda: huggingface_hub.HfApi(endpoint=server.url, token=False))
        yield server
    huggingface_hub.close_session()
    forget()


def fetch(waits=hub.WAITS):
    forget()
    return hub.fetch(WHERE, WANTED, waits)


def error(waits=hub.WAITS):
    with pytest.raises(InputError) as caught:
        fetch(waits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(found):
    return {name: (found.folder / name).read_bytes() for name in found.files}


WHOLE = {"config.json": b"{}", "vocab.txt": b"a\n", "weights": WEIGHTS}


def test_the_first_use_fetches_what_is_wanted_and_says_so(server, caplog):
    caplog.set_level(logging.INFO, "lnflax")
    found = fetch()
    assert contents(found) == WHOLE
    assert (found.fetched, found.size) == (3, 2 + 2 + len(WEIGHTS))
    assert caplog.messages == [
        "fetching config.json of model org/tiny (0.0 kB)",
        "fetching vocab.txt of model org/tiny (0.0 kB)",
        "fetching weights of model org/tiny (262.1 kB)",
    ]
    assert not [line for line in server.asked if "other.bin" in line]


def test_a_second_use_asks_once_and_fetches_nothing(server):
    first = fetch()
    server.heal()
    again = fetch()
    assert again == first._replace(fetched=0)
    assert server.asked == [LISTING]


def test_one_process_asks_for_one_repository_once(server):
    fetch()
    server.heal()
    hub.fetch(WHERE, WANTED)
    assert server.asked == []


TRANSIENT = {
    "listing 503": (LISTING, {"status": 503}),
    "listing 500": (LISTING, {"status": 500}),
    "listing 429": (LISTING, {"status": 429}),
    "listing is slow": (LISTING, {"delay": 1.0}),
    "listing is cut": (LISTING, {"cut": 10}),
    "listing is cut before its first byte": (LISTING, {"cut": 0}),
    "listing is no JSON": (LISTING, {"status": 502, "body": b"<html>"}),
    "file's head 503": (HEAD, {"status": 503}),
    "file's head is slow": (HEAD, {"delay": 12.0}),
    "file 503": (GET, {"status": 503}),
    "file 500": (GET, {"status": 500}),
    "file 429": (GET, {"status": 429}),
    "file is slow": (GET, {"delay": 1.0}),
    "file is cut in the middle": (GET, {"cut": 100_000}),
    "file is cut at its first byte": (GET, {"cut": 1}),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_what_passes_is_tried_again(server, waited, monkeypatch, name):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    match, fault = TRANSIENT[name]
    if name == "file's head is slow":  # whose time-out is bound at import: a shorter one by hand
        plain = huggingface_hub.HfApi.hf_hub_download
        short = lambda self, *args, **kwargs: plain(self, *args, etag_timeout=0.3, **kwargs)  # noqa: E731
        monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", short)
        fault = {"delay": 1.0}
    server.fail(match, times=2, **fault)
    assert contents(fetch()) == WHOLE
    assert sum(1 for line in server.asked if re.search(match, line)) >= 3
    assert max(waited, default=0) <= 10


def test_a_file_that_was_cut_is_resumed_where_it_stopped(server, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what it keeps of a cut file are whole chunks
    server.fail(GET, times=1, cut=100_000)
    assert contents(fetch())["weights"] == WEIGHTS
    (place,) = server.ranges
    assert place[0].endswith("/weights") and place[1] == 100_000


def test_a_slow_file_that_keeps_coming_is_no_fault(server, waited):
    server.fail(GET, pause=0.1)  # eight pieces: longer in all than the time-out
    assert contents(fetch()) == WHOLE
    assert waited == []


def test_the_waits_are_those_given_and_then_it_ends(server, waited):
    server.fail(LISTING, status=503)
    assert error((1.0, 3.0)) == (
        f"{WHERE}: the hub says 503 Service Unavailable, 3 times; the cache does not have it; {AHEAD}"
    )
    assert waited == [1.0, 3.0]
    assert server.asked == [LISTING] * 3


def test_each_further_try_is_said(server, caplog):
    caplog.set_level(logging.INFO, "lnflax")
    server.fail(LISTING, times=1, status=503)
    fetch()
    assert caplog.messages[0] == "model org/tiny: the hub says 503 Service Unavailable; again in 1 s"


def test_retry_after_is_kept_to(server, waited):
    server.fail(LISTING, times=1, status=429, headers={"Retry-After": "7"})
    server.fail(LISTING, times=1, status=503, headers={"Retry-After": "2"})
    fetch()
    assert waited == [7.0, 3.0]  # the longer of what is asked and what is ours


def test_too_long_a_retry_after_is_told_at_once(server, waited):
    server.fail(LISTING, status=429, headers={"Retry-After": "3600"})
    assert error().startswith(f"{WHERE}: the hub says 429 Too Many Requests, and asks to wait 3600 s; the cache ")
    assert waited == []


def test_a_date_as_retry_after_is_not_waited_for(server, waited):
    server.fail(LISTING, times=1, status=429, headers={"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"})
    fetch()
    assert waited == [1.0]


REFUSED = {
    401: "the hub says 401: there is no model org/tiny, or it is not open to all and wants a token (`hf auth login`)",
    403: "the hub says 403: model org/tiny is not open to you: its page says how to get access, `hf auth login` takes "
    "your token",
    404: "the hub says 404: there is no model org/tiny",
}


@pytest.mark.parametrize("status", REFUSED)
@pytest.mark.parametrize("match", [LISTING, HEAD, GET])
def test_what_is_refused_is_told_at_once(server, waited, status, match):
    server.fail(match, status=status)
    told = error()
    if match == LISTING:
        assert told == f"{WHERE}: {REFUSED[status]}"
    else:
        assert told == f"{WHERE}: {REFUSED[status]}".replace("model org", "weights of model org")
    assert waited == []


def test_a_repository_that_is_not_there(server):
    with pytest.raises(InputError, match=r"^data\.path: 'org/none': the hub says 404: there is no data set org/none$"):
        hub.fetch("data.path: 'org/none'", WANTED._replace(kind="dataset", name="org/none"))


@pytest.mark.parametrize("name", ["not an id", "org/-", "a" * 200])
def test_what_is_no_id_is_not_asked_for(server, name):
    with pytest.raises(InputError, match=r"^here: that is no id of the hub: "):
        hub.fetch("here", WANTED._replace(name=name))
    assert server.asked == []


def test_a_repository_without_what_is_needed_fetches_nothing(server):
    (server.folder / "models" / "org" / "tiny" / "weights").unlink()
    assert error() == f"{WHERE}: the hub has no weights there"
    assert len(server.asked) == 1


def down(server, monkeypatch, how):
    """The hub is gone, in one of the ways."""
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "refuses connections":
        server.stop()
    elif how == "slow":
        server.fail("", delay=1.0)
    else:
        server.fail("", status=int(how))


DOWN = ["offline", "refuses connections", "slow", "500", "503", "429", "404", "403"]


@pytest.mark.parametrize("how", DOWN)
def test_a_whole_cached_copy_is_used_without_a_wait(server, waited, monkeypatch, caplog, how):
    first = fetch()
    down(server, monkeypatch, how)
    assert fetch() == first._replace(fetched=0)
    assert waited == []
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (how != "offline")
    assert all(text.startswith("model org/tiny: the hub ") and "is used" in text for text in warnings)


REASONS = {
    "offline": "HF_HUB_OFFLINE is set",
    "refuses connections": "the hub cannot be reached (",
    "slow": "the hub does not answer, 2 times",
    "503": "the hub says 503 Service Unavailable, 2 times",
}


@pytest.mark.parametrize("how", REASONS)
def test_nothing_cached_is_one_line_that_names_the_command(server, monkeypatch, how):
    down(server, monkeypatch, how)
    told = error((1.0,))
    assert told.startswith(f"{WHERE}: {REASONS[how]}")
    assert told.endswith(f"; the cache does not have it; {AHEAD}")


@pytest.mark.parametrize("how", ["offline", "503"])
def test_a_download_that_ended_half_way_is_not_taken_for_a_whole_one(server, monkeypatch, how):
    server.fail(GET, status=403)
    error()
    server.heal()
    down(server, monkeypatch, how)
    assert error((1.0,)).endswith(f"; the cache does not have it; {AHEAD}")


@pytest.mark.parametrize("how", ["offline", "503"])
def test_what_another_program_cached_in_part_is_not_taken_for_a_whole(server, monkeypatch, how):
    api = huggingface_hub.HfApi(endpoint=server.url, token=False)
    for name in ("config.json", "vocab.txt"):
        api.hf_hub_download("org/tiny", name)
    down(server, monkeypatch, how)
    assert error((1.0,)).endswith(f"; the cache has it without weights; {AHEAD}")


def test_the_rest_is_fetched_when_the_hub_is_back(server):
    server.fail(GET, status=403)
    error()
    server.heal()
    found = fetch()
    assert contents(found) == WHOLE and found.fetched == 1
    assert not [line for line in server.asked if "vocab.txt" in line]


def test_a_cached_file_that_was_lost_is_fetched_again_or_missed(server, monkeypatch):
    (fetch().folder / "weights").unlink()
    down(server, monkeypatch, "offline")
    assert "; the cache has it without weights; " in error()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert contents(fetch()) == WHOLE


def test_a_newer_commit_takes_the_place_of_the_cached_one_once_it_is_whole(server, monkeypatch):
    first = fetch()
    repository = server.folder / "models" / "org" / "tiny"
    (repository / "config.json").write_bytes(b"[]")
    (repository / "weights").write_bytes(WEIGHTS[::-1])
    server.fail(GET, status=503)
    assert fetch((1.0,)) == first._replace(fetched=0), "half of the new one must not hide the old one"
    server.heal()
    second = fetch()
    assert second.folder != first.folder
    assert contents(second) == {**WHOLE, "config.json": b"[]", "weights": WEIGHTS[::-1]}
    down(server, monkeypatch, "offline")
    assert fetch().folder == second.folder


PARTS = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]


@pytest.mark.parametrize(
    ("names", "lacks"),
    [
        (PARTS, ""),
        (PARTS[:1], "train"),
        (PARTS[1:], "train"),
        ([], "train"),
        (["train.txt"], ""),
        (["train-00000-of-00001.parquet"], ""),
        (["other-00000-of-00001.parquet"], "train"),
    ],
)
def test_all_parts_of_what_is_needed_must_be_there(names, lacks):
    wanted = Wanted("dataset", "org/data", lambda given: {"train": [n for n in given if "train" in n]}, ("train",))
    assert wanted.lacks(names) == lacks


def test_a_cache_that_cannot_be_written_is_told(server, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "/cache/blob")

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", full)
    assert error() == f"{WHERE}: the cache cannot be written: No space left on device: /cache/blob"


def test_sizes():
    assert (hub.megabytes(1500), hub.megabytes(2_345_678_901)) == ("1.5 kB", "2,345.7 MB")
