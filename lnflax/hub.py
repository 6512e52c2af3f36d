"""Files of a model or a data set on the hub: fetched once, with retries, into huggingface_hub's own cache.

The only room that knows huggingface_hub. Who asks says which files are wanted; what the hub's listing says of them is
believed while it can be asked, and else what the cache holds, if that is whole.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lnflax.errors import InputError

PREPARE = "`python train.py --config=… --prepare` fetches it ahead, where there is a network"
WAITS = (1.0, 3.0, 9.0)  # seconds before each further try; a hub that says Retry-After is given what it asks
LONGEST = 120.0  # seconds that it may ask for; beyond, the user decides
TIMEOUT = 10.0  # seconds without an answer
WORDS = {"model": "model", "dataset": "data set"}
REFUSED = {
    401: "there is no {}, or it is not open to all and wants a token (`hf auth login`)",
    403: "{} is not open to you: its page says how to get access, `hf auth login` takes your token",
    404: "there is no {}",
}
PASSING = (408, 425, 429, 500, 502, 503, 504)
PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.\w+)")

log = logging.getLogger(__name__)
T = TypeVar("T")


class Wanted(NamedTuple):
    """What is wanted of a repository.

    `choose` sorts the names of its files into named groups, and leaves out what is not wanted. The groups in `needed`
    must be there, and their files be all parts of what they are parts of (`train-00000-of-00002.parquet`).
    """

    kind: str  # model | dataset
    name: str
    choose: Callable[[Sequence[str]], Mapping[str, Sequence[str]]]
    needed: tuple[str, ...]

    def files(self, names: Sequence[str]) -> list[str]:
        """The wanted ones of these files, each once."""
        return list(dict.fromkeys(name for own in self.choose(names).values() for name in own))

    def lacks(self, names: Sequence[str]) -> str:
        """The first needed group that these files do not hold whole, or nothing."""
        groups = self.choose(names)
        return next((group for group in self.needed if not _all_parts(groups.get(group, ()))), "")


class Found(NamedTuple):
    """A folder that has what was wanted: which files, their bytes, and how many of them were fetched just now."""

    folder: Path
    files: tuple[str, ...]
    size: int
    fetched: int


class Listing(NamedTuple):
    """What the hub has of a repository now: a commit, and the size of each file."""

    commit: str
    sizes: dict[str, int | None]


class Failure(Exception):
    """Why there is nothing, in words; whether that may pass, or cannot but by the user; seconds it asked to wait."""

    def __init__(self, reason: str, *, passing: bool = False, final: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.passing, self.final, self.wait = passing, final, wait


ANSWERS: dict[tuple[str, str], Listing | Failure] = {}  # tasks of one data set ask once, and wait once


def fetch(where: str, wanted: Wanted, waits: tuple[float, ...] = WAITS) -> Found:
    """The wanted files: from the cache, after those that it lacks were fetched.

    Where the hub cannot be asked, a whole cached copy is used, and `waits` are spared.

    Raises:
        InputError: the hub does not have it, or cannot be reached, and the cache does not hold it whole; the message
            begins with `where`.
    """
    cached = _cached(wanted)
    lacked = wanted.lacks(cached.files) if cached else ""
    whole = cached is not None and not lacked
    listing = _ask(wanted.kind, wanted.name, () if whole else waits)
    if isinstance(listing, Listing):
        if lack := wanted.lacks(list(listing.sizes)):
            raise InputError(f"{where}: the hub has no {lack} there")
        try:
            return _download(wanted, listing, waits)
        except Failure as failure:
            listing = failure
    if whole and cached is not None:
        if not _is_offline():
            _warn(f"{WORDS[wanted.kind]} {wanted.name}: {listing}; what is cached is used")
        return cached
    has = f"the cache has it without {lacked}" if lacked else "the cache does not have it"
    raise InputError(f"{where}: {listing}" + ("" if listing.final else f"; {has}; {PREPARE}"))


def _all_parts(names: Sequence[str]) -> bool:
    parts = [match for name in names if (match := PART.fullmatch(name))]
    have = {(part["stem"], part["ending"], part["count"], int(part["number"])) for part in parts}
    wanted = {(*own[:3], number) for own in have for number in range(int(own[2]))}
    return bool(names) and have == wanted


def _library() -> Any:
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors  # which it does not show by itself

    for name in ("huggingface_hub", "httpx", "httpx2"):  # which log each request, and each try of their own
        logging.getLogger(name).setLevel(logging.ERROR)
    return huggingface_hub


def _api() -> Any:
    return _library().HfApi()


def _is_offline() -> bool:
    return _library().constants.HF_HUB_OFFLINE


def _cached(wanted: Wanted) -> Found | None:
    """What the cache holds of it, whole or not, at the commit that was last fetched whole."""
    errors = _library().errors
    try:
        path = _api().snapshot_download(wanted.name, repo_type=wanted.kind, local_files_only=True)
    except errors.LocalEntryNotFoundError as error:
        # Newer ones refuse a snapshot that lacks any file, wanted or not.
        path = getattr(error, "snapshot_path", None)
    except (errors.HFValidationError, OSError):
        path = None
    if path is None:
        return None
    names = sorted(file.relative_to(path).as_posix() for file in Path(path).rglob("*") if file.is_file())
    return _found(wanted, Path(path), names, 0)


def _found(wanted: Wanted, folder: Path, names: Sequence[str], fetched: int) -> Found:
    files = tuple(wanted.files(names))
    return Found(folder, files, sum((folder / name).stat().st_size for name in files), fetched)


def _ask(kind: str, name: str, waits: tuple[float, ...]) -> Listing | Failure:
    """Asked once a process; and again where it failed, if there is patience."""

    def ask() -> Listing:
        about = _api().repo_info(name, repo_type=kind, files_metadata=True, timeout=TIMEOUT)
        return Listing(about.sha, {file.rfilename: file.size for file in about.siblings or ()})

    known = ANSWERS.get((kind, name))
    if known is None or (isinstance(known, Failure) and waits):
        try:
            known = _persist(f"{WORDS[kind]} {name}", ask, waits)
        except Failure as failure:
            known = failure
        ANSWERS[kind, name] = known
    return known


def _download(wanted: Wanted, listing: Listing, waits: tuple[float, ...]) -> Found:
    """Every wanted file at the listed commit; `main` in the cache names that commit once all of them are there.

    So a download that was cut short is never taken for a whole one, nor does it take the place of one.
    """
    own = {"repo_id": wanted.name, "repo_type": wanted.kind}
    known = functools.partial(_library().try_to_load_from_cache, **own)
    api, fetched, path = _api(), 0, ""
    names = wanted.files(list(listing.sizes))
    for name in names:
        about = f"{name} of {WORDS[wanted.kind]} {wanted.name}"
        path = known(filename=name, revision=listing.commit)
        if not isinstance(path, str):
            log.info(f"fetching {about}{_size(listing.sizes[name])}")
            get = functools.partial(api.hf_hub_download, **own, filename=name, revision=listing.commit)
            path = _persist(about, get, waits)
            fetched += 1

    def remember() -> None:
        if api.hf_hub_download(**own, filename=names[-1]) != path:
            raise Failure("it changed on the hub while it was fetched", passing=True)

    if known(filename=names[-1]) != path:
        _persist(f"{WORDS[wanted.kind]} {wanted.name}", remember, waits)
    folder = Path(path).parents[names[-1].count("/")]
    return _found(wanted, folder, names, fetched)


def _size(size: int | None) -> str:
    return f" ({megabytes(size)})" if size else ""


def megabytes(size: int) -> str:
    """`1.5 MB`, or `kB` below one."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def _persist(about: str, call: Callable[[], T], waits: tuple[float, ...]) -> T:
    """What `call` gives, tried again after each of `waits` while it fails in a way that may pass.

    Raises:
        Failure: the last one, or the first that does not pass, or that asks for too long a wait.
    """
    for wait in (*waits, None):
        try:
            return call()
        except Exception as error:  # huggingface_hub raises its own, its network library's, and the system's
            failure = _judge(error, about)
        longer = failure.wait > LONGEST
        if wait is None or longer or not failure.passing:
            tries = f", {len(waits) + 1} times" if waits and wait is None and failure.passing else ""
            asked = f", and asks to wait {failure.wait:.0f} s" if longer else ""
            failure.args = (f"{failure}{tries}{asked}",)
            raise failure
        log.info(f"{about}: {failure}; again in {max(wait, failure.wait):g} s")
        time.sleep(max(wait, failure.wait))
    raise AssertionError("the last try returns or raises")


def _judge(error: BaseException, about: str) -> Failure:
    """An exception, or what it was raised from, in words."""
    if isinstance(error, Failure):
        return error
    names = {own.__name__ for own in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "OfflineModeIsEnabled" in names:
        return Failure("HF_HUB_OFFLINE is set")
    if isinstance(status, int):
        return _of_status(error, status, about)
    if "HFValidationError" in names:
        return Failure(f"that is no id of the hub: {text}", final=True)
    if "LocalEntryNotFoundError" in names and error.__cause__:
        return _judge(error.__cause__, about)  # which says why the file could not be asked for
    if "TransportError" in names or isinstance(error, ConnectionError | TimeoutError):
        slow = "Timeout" in type(error).__name__
        return Failure("the hub does not answer" if slow else f"the hub cannot be reached ({text})", passing=True)
    if isinstance(error, OSError) and error.errno is not None:
        place = f": {error.filename}" if error.filename else ""
        return Failure(f"the cache cannot be written: {error.strerror}{place}", final=True)
    # What is left of OSError is a file of a wrong size; RuntimeError is the other transport's.
    return Failure(f"the hub's answer is of no use: {text}", passing=isinstance(error, OSError | RuntimeError))


def _of_status(error: Any, status: int, about: str) -> Failure:
    if status in REFUSED:
        return Failure(f"the hub says {status}: {REFUSED[status].format(about)}", final=True)
    given = str(error.response.headers.get("Retry-After", ""))
    wait = float(given) if re.fullmatch(r"\d+(\.\d+)?", given) else 0.0  # or a date, which is not waited for
    phrase = getattr(error.response, "reason_phrase", "")
    return Failure(f"the hub says {status} {phrase}".rstrip(), passing=status in PASSING, wait=wait)


@functools.cache
def _warn(text: str) -> None:
    """Once, however many tasks are of one data set."""
    log.warning(text)
