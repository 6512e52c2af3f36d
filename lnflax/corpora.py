"""Sentences of tagged words: from column files, JSON lines, parquet or the hub, and NLTK's treebank sample."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from lnflax import hub, sources
from lnflax.errors import InputError

# The endings of a split's name in a folder: CoNLL-2003's own files are eng.train, eng.testa and eng.testb.
NAMES = {"train": ("train",), "validation": ("validation", "valid", "dev", "testa"), "test": ("test", "testb")}
SPAN_TAG = re.compile(r"O|[BI]-.+")
TREEBANK = "corpora/treebank"
GET_TREEBANK = "get it with `python -m nltk.downloader treebank`, or point NLTK_DATA at a folder that has it"


class Tagged(NamedTuple):
    """Sentences in data order; each has as many tags as words."""

    words: list[list[str]]
    tags: list[list[str]]

    @classmethod
    def of_pairs(cls, sentences: Iterable[Sequence[tuple[str, str]]]) -> Tagged:
        """Of sentences of `(word, tag)`."""
        own = list(sentences)
        return cls([[word for word, _ in pairs] for pairs in own], [[tag for _, tag in pairs] for pairs in own])

    @property
    def sha256(self) -> str:
        """Of a line `word TAB tag` a word, and an empty line after each sentence, UTF-8."""
        lines = (
            "".join(f"{word}\t{tag}\n" for word, tag in zip(*pair, strict=True)) + "\n"
            for pair in zip(self.words, self.tags, strict=True)
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def read(task: str, path: str, splits: Iterable[str], *, spans: bool) -> dict[str, Tagged]:
    """Those of `splits` that a corpus has.

    Args:
        task: its name, of a folder inside `path` if there is one, and of the hub's column of tags.
        path: `nltk` for its treebank; a folder; or a hub id.
        splits: their names. In a folder `SPLIT*.parquet`, `SPLIT.jsonl` (an object of `tokens` and `tags` a line), or
            any other text file whose name begins or ends with the split's name: columns, the word first, the tag last.
        spans: whether tags mark entities (IOB1 or IOB2, given back as IOB2), or each its own word.

    Raises:
        InputError: the corpus is not there, or not in one of these forms.
    """
    if path == "nltk":
        found = read_treebank()
        return {split: found[split] for split in splits if split in found}
    place = locate(task, path, splits)
    if isinstance(place, Path):
        inner = place / task
        folder = inner if inner.is_dir() else place
        found = _read_files(task, folder, folder.iterdir(), splits)
    else:
        files = [place.folder / name for name in place.files]
        found = _read_files(task, path, files, splits)
    if spans:
        return {split: _spans(split, tagged) for split, tagged in found.items()}
    return found


def locate(task: str, path: str, splits: Iterable[str]) -> Path | hub.Found:
    """The folder of a corpus, or the hub's files of it; the first two of `splits` must be there.

    A corpus on the hub lies in the folder of the task, else beside its README, else in `data`, else in the one folder
    that has any.

    Raises:
        InputError: it is not there, or the hub cannot be reached and the cache does not hold it whole.
    """
    if folder := sources.folder("data.path", path, "a hub id, a folder, nltk or synthetic"):
        return folder
    own = tuple(splits)
    wanted = hub.Wanted("dataset", path, lambda names: _choose(task, path, names, own), own[:2])
    return hub.fetch(f"data.path: {path!r}, {task}", wanted)


def _choose(task: str, path: str, names: Sequence[str], splits: tuple[str, ...]) -> dict[str, list[str]]:
    """The files of each split in one folder of a repository; where there is parquet, that alone."""
    files = [PurePosixPath(name) for name in names if not name.endswith(".md")]
    mine = {split: [file for file in files if _is_of(file.name, split)] for split in splits}
    folders = {str(file.parent) for file in mine[splits[0]]}
    chosen = next((folder for folder in (task, ".", "data") if folder in folders), None)
    if chosen is None and len(folders) > 1:
        some = ", ".join(sorted(folders)[:4])
        raise InputError(f"data.path: {path!r} has several corpora: {some}; download one, and give its folder")
    chosen = chosen or next(iter(folders), None)
    here = {split: [file for file in own if str(file.parent) == chosen] for split, own in mine.items()}
    parquet = {split: [file for file in own if _kind(file) == "parquet"] for split, own in here.items()}
    return {split: sorted(map(str, parquet[split] or own)) for split, own in here.items()}


def _read_files(task: str, where: Any, given: Iterable[Path], splits: Iterable[str]) -> dict[str, Tagged]:
    found, given = {}, [file for file in given if file.is_file()]
    for split in splits:
        files = sorted(file for file in given if _is_of(file.name, split))
        kinds = {_kind(file) for file in files}
        if len(kinds) > 1 or (len(files) > 1 and kinds != {"parquet"}):
            names = ", ".join(file.name for file in files)
            raise InputError(f"data.path: {where}: several files of {split}: {names}; leave one")
        if kinds == {"parquet"}:
            found[split] = _read_parquet(task, where, files, split)
        elif files:
            found[split] = (read_json_lines if kinds == {"jsonl"} else read_columns)(files[0])
    return found


def _is_of(name: str, split: str) -> bool:
    """Whether a file belongs to a split: one of its names is a whole word at the beginning or the end of the stem."""
    stem, _, ending = name.rpartition(".")
    parts = re.split(r"[._-]", stem or ending)
    return any(own in (parts[0], parts[-1], ending) for own in NAMES.get(split, (split,)))


def _kind(file: PurePath) -> str:
    return {".parquet": "parquet", ".jsonl": "jsonl", ".json": "jsonl"}.get(file.suffix, "columns")


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.path: {file}: cannot be read as UTF-8 text: {error}") from error


def _not_empty(where: Any, tagged: Tagged) -> Tagged:
    if not tagged.words:
        raise InputError(f"data.path: {where}: no sentences")
    return tagged


def read_columns(file: Path) -> Tagged:
    """A CoNLL file: a word a line, an empty line after each sentence; the word is the first column, the tag the last.

    Columns are parted by tabs if there are any, else by spaces. `-DOCSTART-` lines are skipped, and in files with
    tabs lines without one that begin with `#`, which are comments.

    Raises:
        InputError: no sentence, or a line of more or fewer columns than the first; the message has its number.
    """
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    text, columns = _text(file), 0
    tabs = "\t" in text
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r ")
        if not line:
            words.append([])
            tags.append([])
            continue
        if line.startswith("-DOCSTART-") or (tabs and "\t" not in line and line.startswith("#")):
            continue
        # Not at any white space: corpora have words with no-break spaces in them.
        cells = line.split("\t") if tabs else re.split(" +", line)
        columns = columns or len(cells)
        if len(cells) != columns or columns < 2:
            wanted = columns if columns > 1 else "at least 2"
            raise InputError(f"data.path: {file}, line {number}: {len(cells)} columns, not {wanted}: {line[:60]!r}")
        if not cells[-1]:
            raise InputError(f"data.path: {file}, line {number}: no tag: {line[:60]!r}")
        words[-1].append(cells[0])
        tags[-1].append(cells[-1])
    return _not_empty(file, Tagged([own for own in words if own], [own for own in tags if own]))


def read_json_lines(file: Path) -> Tagged:
    """An object of `tokens` and `tags`, lists of strings of one length, a line.

    Raises:
        InputError: no sentence, or a line that is not that; the message has its number.
    """
    words: list[list[str]] = []
    tags: list[list[str]] = []
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"data.path: {file}, line {number}: not JSON: {error}") from error
        own: list[Any] = [record.get(name) if isinstance(record, dict) else None for name in ("tokens", "tags")]
        if not all(isinstance(side, list) and all(isinstance(part, str) for part in side) for side in own):
            raise InputError(f"data.path: {file}, line {number}: not an object of tokens and tags, lists of strings")
        if len(own[0]) != len(own[1]):
            raise InputError(f"data.path: {file}, line {number}: {len(own[0])} tokens and {len(own[1])} tags")
        if own[0]:
            words.append(own[0])
            tags.append(own[1])
    return _not_empty(file, Tagged(words, tags))


def _read_parquet(task: str, where: Any, files: list[Path], split: str) -> Tagged:
    names = [str(file) for file in files]
    table = sources.load(str(where), lambda datasets: datasets.Dataset.from_parquet(names))
    return _of_table(task, where, split, table)


def _of_table(task: str, where: Any, split: str, table: Any) -> Tagged:
    """The column `tokens`, and `TASK_tags` or `tags`: strings, or numbers that the table has names for."""
    wanted = (f"{task}_tags", "tags")
    names = [name for name in wanted if name in table.column_names]
    if "tokens" not in table.column_names or not names:
        have = ", ".join(table.column_names)
        raise InputError(f"data.path: {where} {split}: no columns tokens and {' or '.join(wanted)}; it has {have}")
    words, tags = list(table["tokens"]), list(table[names[0]])
    inner: Any = getattr(table.features[names[0]], "feature", None)
    if hasattr(inner, "names"):
        tags = [[inner.names[tag] for tag in own] for own in tags]
    for number, (own, marks) in enumerate(zip(words, tags, strict=True)):
        if not all(isinstance(mark, str) for mark in marks):
            raise InputError(f"data.path: {where} {split}: tags of {names[0]} are neither strings nor named classes")
        if len(own) != len(marks):
            raise InputError(f"data.path: {where} {split}: row {number} has {len(own)} tokens and {len(marks)} tags")
    full = [number for number, own in enumerate(words) if own]
    return _not_empty(f"{where} {split}", Tagged([words[i] for i in full], [tags[i] for i in full]))


def _spans(split: str, tagged: Tagged) -> Tagged:
    """The same in IOB2."""
    for number, tags in enumerate(tagged.tags, 1):
        for tag in tags:
            if not SPAN_TAG.fullmatch(tag):
                raise InputError(
                    f"data.path: {split}, sentence {number}: tag {tag!r} is of an unknown scheme; known are IOB1 and"
                    " IOB2: O, B-TYPE, I-TYPE"
                )
    return Tagged(tagged.words, [to_iob2(tags) for tags in tagged.tags])


def to_iob2(tags: list[str]) -> list[str]:
    """IOB1 or IOB2 to IOB2: an `I-` that continues no entity of its type begins one (Tjong Kim Sang, 1999)."""
    kinds = [tag.partition("-")[2] for tag in tags]
    before = ["", *kinds][: len(kinds)]
    return [f"B-{own}" if own and own != last else tag for tag, own, last in zip(tags, kinds, before, strict=True)]


def read_treebank() -> dict[str, Tagged]:
    """NLTK's treebank sample without traces, in our own split (`treebank_split.json`, which states its rule).

    Raises:
        InputError: NLTK or its data is not there, or the data is another.
    """
    split = treebank_split()
    files = dict(_treebank_files())
    repeated = {(file, number) for file, number in split["repeated"]}
    found = {}
    for name, own in split["files"].items():
        if missing := sorted(set(own) - set(files)):
            raise InputError(f"data.path: NLTK's treebank has no {missing[0]}; {GET_TREEBANK}")
        numbered = ((file, number, pairs) for file in own for number, pairs in enumerate(files[file]))
        found[name] = Tagged.of_pairs(pairs for file, number, pairs in numbered if (file, number) not in repeated)
        if found[name].sha256 != split["sha256"][name]:
            raise InputError(f"data.path: the treebank that was found is not NLTK's sample; {GET_TREEBANK}")
    return found


def treebank_split() -> dict[str, Any]:
    """The published split: its rule, the files of each part, the sentences left out, the hash of each part."""
    return json.loads(resources.files("lnflax").joinpath("treebank_split.json").read_text("utf-8"))


def make_treebank_split() -> dict[str, Any]:
    """The split by its rule, from the data: what `treebank_split.json` holds."""
    files, seen = dict(_treebank_files()), set()
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for file in files:
        digit = file.removesuffix(".mrg")[-1]
        parts[{"8": "validation", "9": "test"}.get(digit, "train")].append(file)
    repeated: list[list[Any]] = []
    sha256 = {}
    for name, own in parts.items():
        kept = []
        for file in own:
            for number, pairs in enumerate(files[file]):
                words = tuple(word for word, _ in pairs)
                if words in seen:
                    repeated.append([file, number])
                else:
                    seen.add(words)
                    kept.append(pairs)
        sha256[name] = Tagged.of_pairs(kept).sha256
    rule = (
        "Files wsj_NNNN.mrg of NLTK's treebank by the last digit of their number: 8 validation, 9 test, else train. "
        "Words tagged -NONE- are dropped. A sentence whose words came before (train, then validation, then test, in "
        "file order) is left out: [file, number from 0]. sha256 of `word TAB tag NEWLINE`, NEWLINE after a sentence."
    )
    return {"format": 1, "rule": rule, "files": parts, "repeated": repeated, "sha256": sha256}


def _treebank_files() -> Iterator[tuple[str, list[list[tuple[str, str]]]]]:
    """Each file with its sentences of `(word, tag)`, without traces, in the order of their names."""
    try:
        import nltk
        from nltk.corpus.reader import BracketParseCorpusReader
    except ImportError as error:
        raise InputError("data.path: nltk needs the package: pip install 'lnflax[tagging]'") from error
    for place in (f"{TREEBANK}/combined", f"{TREEBANK}.zip/treebank/combined/"):
        try:
            root = nltk.data.find(place)
            break
        except LookupError:
            continue
    else:
        raise InputError(f"data.path: no NLTK data {TREEBANK} in {', '.join(nltk.data.path)}; {GET_TREEBANK}")
    reader = BracketParseCorpusReader(root, r"wsj_\d+\.mrg", tagset="wsj", encoding="ascii")
    for file in sorted(reader.fileids()):
        yield file, [[pair for pair in pairs if pair[1] != "-NONE-"] for pairs in reader.tagged_sents(file)]
