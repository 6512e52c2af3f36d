"""Generated GLUE-shaped tasks of our own words: `data.path = "synthetic"`.

Each task has GLUE's columns, labels and splits, and is generated in minimal sets: one example a class, all from the
same words wherever English allows it. Word order, negation and agreement decide, which a bag of words does not see.
The content words of train, of dev and of mnli's mismatched dev are three disjoint lexicons, so that only what the
model brings can carry over; the function words are shared.
"""

from __future__ import annotations

import itertools

from lnflax import streams
from lnflax.synthetic_words import DEV, MISMATCHED, SHARED, TRAIN, Lexicon

TRAIN_SIZE = 1536  # both sizes hold whole minimal sets: of two classes, of mnli's three, of stsb's six edits
DEV_SIZE = 384

Rows = list[tuple]  # of one or two sentences and the label

# The field that a shape's slots are filled from, each with another entry. Slots are named after what could stand
# there, so that a shape reads as English.
_SLOTS = {
    "persons": "a b c d",  # by name, or as the king
    "people": "king cook",
    "verbs": "see/saw/seen take/took/taken",
    "acts": "sing/sang/sung wake/woke/woken",
    "comparatives": "taller/shorter",
    "gifts": "give/gave/given",
    "things": "key lamp",
    "looks": "old",
    "moods": "tired",
    "aspects": "film plot",
    "good": "good",
    "bad": "bad",
} | {slot: slot for slot in SHARED}

# The shapes, in groups by what decides. A line is one minimal set: class 0 | class 1 of a single sentence; for a
# pair, the first sentence | class 0's second | class 1's second | .... After a bar, a line may go on in the next.

_COLA = """
# attraction
the {lamp} {near} the {key}s {are} {old} | the {key}s {near} the {lamp} {are} {old}
the {lamp}s {near} the {key} {is} {old} | the {key} {near} the {lamp}s {is} {old}
# relative clause
the {cook}s who {see}s the {king} is {tired} | the {king} who {see}s the {cook}s is {tired}
the {cook} who {see} the {king}s are {tired} | the {king}s who {see} the {cook} are {tired}
the {cook}s who the {king} {see} is {tired} | the {king} who the {cook}s {see} is {tired}
the {cook} who the {king}s {see}s are {tired} | the {king}s who the {cook} {see}s are {tired}
# determiner
{this} {key}s {are} {near} {these} {lamp} | {these} {key}s {are} {near} {this} {lamp}
{these} {key} {is} {near} {this} {lamp}s | {this} {key} {is} {near} {these} {lamp}s
# auxiliary
{a} {will} {seen} {b} and has {take} {c} | {a} has {seen} {b} and {will} {take} {c}
{a} has {see} {b} and {will} {taken} {c} | {a} {will} {see} {b} and has {taken} {c}
# word order
the {king} {tired} {will} {see} the {cook} | the {tired} {king} {will} {see} the {cook}
the {tired} {king} {see} {will} the {cook} | the {tired} {king} {will} {see} the {cook}
the {tired} {king} {will} the {see} {cook} | the {tired} {king} {will} {see} the {cook}
the {tired} {king} {will} {see} {cook} the | the {tired} {king} {will} {see} the {cook}
"""

# The main clause decides, what follows `but`, and what is so now.
_SST2 = """
# plain
the {film} {is} {bad} | the {film} {is} {good}
the {film} {is} {really} {bad} | the {film} {is} {really} {good}
the {film} {is} not {good} | the {film} {is} not {bad}
the {film} {is} not {really} {good} | the {film} {is} not {really} {bad}
# concession
though the {plot} {is} {good} , the {film} {is} {bad} | though the {plot} {is} {bad} , the {film} {is} {good}
the {film} {is} {bad} , though the {plot} {is} {good} | the {film} {is} {good} , though the {plot} {is} {bad}
the {plot} {is} {good} , but the {film} {is} {bad} | the {plot} {is} {bad} , but the {film} {is} {good}
# contrast
the {film} {is} not {good} but {bad} | the {film} {is} not {bad} but {good}
the {film} {is} {bad} and not {good} | the {film} {is} {good} and not {bad}
the {film} {is} {bad} and never {good} | the {film} {is} {good} and never {bad}
# turn
i expected the {film} to be {good} , but it was {bad} | i expected the {film} to be {bad} , but it was {good}
i found the {film} {good} at first , but now {bad} | i found the {film} {bad} at first , but now {good}
the {film} used to be {good} , but now it is {bad} | the {film} used to be {bad} , but now it is {good}
the {film} is {bad} now , though it was {good} | the {film} is {good} now , though it was {bad}
"""

_MRPC = """
# voice
{a} {saw} {b} | {a} was {seen} by {b} | {b} was {seen} by {a}
{a} was {seen} by {b} | {a} {saw} {b} | {b} {saw} {a}
{a} did not {see} {b} | {a} was not {seen} by {b} | {b} was not {seen} by {a}
{a} was not {seen} by {b} | {a} did not {see} {b} | {b} did not {see} {a}
# gift
{a} {gave} {b} the {key} | {b} {gave} the {key} to {a} | {a} {gave} the {key} to {b}
{a} {gave} the {key} to {b} | {b} {gave} {a} the {key} | {a} {gave} {b} the {key}
# time
{a} {sang} before {b} {woke} | before {a} {sang} , {b} {woke} | before {b} {woke} , {a} {sang}
{a} {sang} after {b} {woke} | after {a} {sang} , {b} {woke} | after {b} {woke} , {a} {sang}
{a} {sang} before {b} {woke} | {a} {sang} after {b} {woke} | {b} {woke} after {a} {sang}
{a} {sang} after {b} {woke} | {a} {sang} before {b} {woke} | {b} {woke} before {a} {sang}
# comparison
{a} {is} {taller} than {b} | {a} {is} {shorter} than {b} | {b} {is} {shorter} than {a}
{a} {is} not {taller} than {b} | {a} {is} not {shorter} than {b} | {b} {is} not {shorter} than {a}
# correction
{a} {saw} {b} , not {c} | it was {c} , not {b} , that {a} {saw} | it was {b} , not {c} , that {a} {saw}
it was {b} , not {c} , that {a} {saw} | {a} {saw} {c} , not {b} | {a} {saw} {b} , not {c}
"""

_QQP = """
# voice
did {a} {see} {b} ? | was {a} {seen} by {b} ? | was {b} {seen} by {a} ?
was {a} {seen} by {b} ? | did {a} {see} {b} ? | did {b} {see} {a} ?
{why} {will} {a} {see} {b} ? | {why} {will} {a} be {seen} by {b} ? | {why} {will} {b} be {seen} by {a} ?
# who
who did {a} {see} ? | who was {a} {seen} by ? | who was {seen} by {a} ?
who {saw} {a} ? | who was {seen} by {a} ? | who was {a} {seen} by ?
# gift
{why} did {a} {give} {b} the {key} ? |
    {why} did {b} {give} the {key} to {a} ? | {why} did {a} {give} the {key} to {b} ?
{why} did {a} {give} the {key} to {b} ? |
    {why} did {b} {give} {a} the {key} ? | {why} did {a} {give} {b} the {key} ?
# time
is it true that {a} {sang} before {b} {woke} ? |
    is it true that {a} {sang} after {b} {woke} ? | is it true that {b} {woke} after {a} {sang} ?
is it true that {a} {sang} after {b} {woke} ? |
    is it true that {a} {sang} before {b} {woke} ? | is it true that {b} {woke} before {a} {sang} ?
# comparison
{is} {a} {taller} than {b} ? | {is} {a} {shorter} than {b} ? | {is} {b} {shorter} than {a} ?
# correction
why did {a} {see} {b} and not {c} ? |
    why was {c} and not {b} {seen} by {a} ? | why was {b} and not {c} {seen} by {a} ?
why was {b} and not {c} {seen} by {a} ? |
    why did {a} {see} {c} and not {b} ? | why did {a} {see} {b} and not {c} ?
"""

# Does the sentence answer the question? Class 0: it does.
_QNLI = """
# voice
who {saw} {b} ? | {a} {saw} {b} | {b} {saw} {a}
who {saw} {b} ? | {b} was {seen} by {a} | {a} was {seen} by {b}
who did {b} {see} ? | {b} {saw} {a} | {a} {saw} {b}
who did {b} {see} ? | {a} was {seen} by {b} | {b} was {seen} by {a}
# gift
who {gave} {b} the {key} ? | {a} {gave} the {key} to {b} | {b} {gave} the {key} to {a}
who did {b} {give} the {key} to ? | {b} {gave} {a} the {key} | {a} {gave} {b} the {key}
# time
who {sang} before {b} {woke} ? | before {b} {woke} , {a} {sang} | before {a} {woke} , {b} {sang}
who {sang} before {b} {woke} ? | {b} {woke} after {a} {sang} | {a} {woke} after {b} {sang}
who {sang} after {b} {woke} ? | after {b} {woke} , {a} {sang} | after {a} {woke} , {b} {sang}
who {sang} after {b} {woke} ? | {b} {woke} before {a} {sang} | {a} {woke} before {b} {sang}
# comparison
who {is} {taller} than {b} ? | {a} {is} {taller} than {b} | {b} {is} {taller} than {a}
who {is} {taller} than {b} ? | {b} {is} {shorter} than {a} | {a} {is} {shorter} than {b}
# correction
who {saw} {b} ? | {a} , not {c} , {saw} {b} | {a} {saw} {c} , not {b}
who did {b} {see} ? | {b} {saw} {a} , not {c} | {c} , not {b} , {saw} {a}
who did {b} not {see} ? | {b} {saw} {a} , not {c} | {c} {saw} {a} , not {b}
# conjunct
who has {sung} ? | {a} has {sung} but {b} has not {woken} | {a} has {woken} but {b} has not {sung}
who has not {sung} ? | {a} has {woken} but {b} has not {sung} | {a} has {sung} but {b} has not {woken}
"""

# Class 0: the second sentence follows from the first.
_RTE = """
# relative clause
the {king} who {saw} the {cook} {is} {tired} | the {king} {is} {tired} | the {cook} {is} {tired}
the {king} who the {cook} {saw} {is} {tired} | the {king} {is} {tired} | the {cook} {is} {tired}
the {king} {saw} the {cook} who {is} {tired} | the {cook} {is} {tired} | the {king} {is} {tired}
# voice
{a} {saw} {b} | {b} was {seen} by {a} | {a} was {seen} by {b}
{a} was {seen} by {b} | {b} {saw} {a} | {a} {saw} {b}
{a} did not {see} {b} | {b} was not {seen} by {a} | {a} was not {seen} by {b}
{a} was not {seen} by {b} | {b} did not {see} {a} | {a} did not {see} {b}
# conjunct
{a} has {sung} but {b} has not {woken} | {a} has {sung} | {b} has {sung}
{a} has {sung} but {b} has not {woken} | {b} has not {woken} | {a} has not {woken}
{b} has not {woken} but {a} has {sung} | {a} has {sung} | {b} has {sung}
{b} has not {woken} but {a} has {sung} | {b} has not {woken} | {a} has not {woken}
# implication
{a} {managed} to {see} {b} | {b} was {seen} by {a} | {b} was not {seen} by {a}
{a} {failed} to {see} {b} | {b} was not {seen} by {a} | {b} was {seen} by {a}
{a} did not {see} {b} but {managed} to {take} {c} | {a} {took} {c} | {a} {took} {b}
{a} {saw} {b} but {failed} to {take} {c} | {a} {saw} {b} | {a} {saw} {c}
# time
{a} {sang} before {b} {woke} | {b} {woke} after {a} {sang} | {a} {sang} after {b} {woke}
{a} {sang} after {b} {woke} | {b} {woke} before {a} {sang} | {a} {sang} before {b} {woke}
# correction
{a} {saw} {b} , not {c} | {b} was {seen} by {a} | {c} was {seen} by {a}
{a} {saw} {b} , not {c} | {c} was not {seen} by {a} | {b} was not {seen} by {a}
"""

# Entailed, neutral, contradicted. Who sees need not be seen: swapped roles are neutral.
_MNLI = """
# voice
{a} {saw} {b} | {b} was {seen} by {a} | {a} was {seen} by {b} | {b} was not {seen} by {a}
{a} {saw} {b} | {b} was {seen} by {a} | {a} was not {seen} by {b} | {b} was not {seen} by {a}
{a} did not {see} {b} | {b} was not {seen} by {a} | {a} was {seen} by {b} | {b} was {seen} by {a}
{a} did not {see} {b} | {b} was not {seen} by {a} | {a} was not {seen} by {b} | {b} was {seen} by {a}
# correction
{a} {saw} {b} , not {c} | {b} was {seen} by {a} | {a} was {seen} by {b} | {c} was {seen} by {a}
{a} {saw} {b} , not {c} | {c} was not {seen} by {a} | {a} was not {seen} by {c} | {b} was not {seen} by {a}
{b} , not {c} , was {seen} by {a} | {a} {saw} {b} | {b} {saw} {a} | {a} {saw} {c}
{b} , not {c} , was {seen} by {a} | {a} did not {see} {c} | {c} did not {see} {a} | {a} did not {see} {b}
# conjunct
{a} has {sung} but {b} has not {woken} | {a} has {sung} | {b} has {sung} | {b} has {woken}
{a} has {sung} but {b} has not {woken} | {b} has not {woken} | {a} has not {woken} | {a} has not {sung}
{b} has not {woken} but {a} has {sung} | {a} has {sung} | {b} has {sung} | {b} has {woken}
{b} has not {woken} but {a} has {sung} | {b} has not {woken} | {a} has not {woken} | {a} has not {sung}
# implication
{a} {managed} to {see} {b} | {b} was {seen} by {a} | {a} was {seen} by {b} | {b} was not {seen} by {a}
{a} {managed} to {see} {b} | {b} was {seen} by {a} | {a} was not {seen} by {b} | {b} was not {seen} by {a}
{a} {failed} to {see} {b} | {b} was not {seen} by {a} | {a} was {seen} by {b} | {b} was {seen} by {a}
{a} {failed} to {see} {b} | {b} was not {seen} by {a} | {a} was not {seen} by {b} | {b} was {seen} by {a}
# quantifier
every {king} has {sung} but no {cook} has {woken} |
    some {king} has {sung} | some {king} has {woken} | some {cook} has {woken}
every {king} has {sung} but no {cook} has {woken} |
    no {cook} has {woken} | no {cook} has {sung} | no {king} has {sung}
no {cook} has {woken} but every {king} has {sung} |
    not every {cook} has {woken} | not every {cook} has {sung} | not every {king} has {sung}
no {cook} has {woken} but every {king} has {sung} |
    every {king} has {sung} | every {king} has {woken} | every {cook} has {woken}
# comparison
{a} {is} {taller} than {b} and {c} | {a} {is} {taller} than {b} | {b} {is} {taller} than {c} |
    {c} {is} {taller} than {a}
{a} {is} {taller} than {b} and {c} | {c} {is} {shorter} than {a} | {c} {is} {shorter} than {b} |
    {a} {is} {shorter} than {b}
"""

# The score, then the two sentences. 5: the same, in the other voice; 4: one is not sure; 3: another person is in it;
# 2: roles are swapped; 1: one denies it; 0: nothing in common.
_STSB = """
# same
5 | {a} {saw} {b} | {b} was {seen} by {a}
5 | {b} was not {seen} by {a} | {a} did not {see} {b}
5 | {a} may have {seen} {b} | {b} may have been {seen} by {a}
# unsure
4 | {a} {saw} {b} | {b} may have been {seen} by {a}
4 | {b} was {seen} by {a} | {a} may have {seen} {b}
4 | {b} may have been {seen} by {a} | {a} {saw} {b}
# another
3 | {a} {saw} {b} | {c} was {seen} by {a}
3 | {b} was not {seen} by {a} | {c} did not {see} {b}
3 | {a} may have {seen} {b} | {b} may have been {seen} by {c}
# swapped
2 | {a} {saw} {b} | {a} was {seen} by {b}
2 | {b} was not {seen} by {a} | {b} did not {see} {a}
2 | {a} may have {seen} {b} | {a} may have been {seen} by {b}
# denied
1 | {a} {saw} {b} | {b} was not {seen} by {a}
1 | {b} was not {seen} by {a} | {a} {saw} {b}
1 | {a} did not {see} {b} | {b} was {seen} by {a}
# unrelated
0 | {a} {saw} {b} | {c} was {taken} by {d}
0 | {b} was not {seen} by {a} | {d} did not {take} {c}
0 | {a} may have {seen} {b} | {c} may have been {taken} by {d}
"""

# A task's columns, and its shapes.
_TASKS = {
    "cola": (("sentence",), _COLA),
    "sst2": (("sentence",), _SST2),
    "mrpc": (("sentence1", "sentence2"), _MRPC),
    "stsb": (("sentence1", "sentence2"), _STSB),
    "qqp": (("question1", "question2"), _QQP),
    "mnli": (("premise", "hypothesis"), _MNLI),
    "qnli": (("question", "sentence"), _QNLI),
    "rte": (("sentence1", "sentence2"), _RTE),
}


def generate(task: str) -> dict[str, dict[str, list]]:
    """A task's splits: split, column, values. The same on every machine, and every row appears once.

    Labels are GLUE's: classes, balanced, as int, and stsb's score from 0 to 5 as float.
    """
    columns, shapes = _TASKS[task]
    lexicons = {"train": TRAIN, "validation": DEV}
    if task == "mnli":
        lexicons = {"train": TRAIN, "validation_matched": DEV, "validation_mismatched": MISMATCHED}
    splits = {}
    for split, lexicon in lexicons.items():
        name, size = ("synthetic", task, split), TRAIN_SIZE if split == "train" else DEV_SIZE
        rows = _rows(name, size, _groups(task, shapes), lexicon)
        order = streams.permutation((*name, "order"), size)
        values = zip(*(rows[i] for i in order), strict=True)
        splits[split] = {column: list(cells) for column, cells in zip((*columns, "label"), values, strict=True)}
    return splits


def _groups(task: str, shapes: str) -> list[list[Rows]]:
    """Groups of lines; a line is a shape and a label for each row of its minimal set."""
    groups = []
    for group in shapes.split("#")[1:]:
        _title, *lines = group.strip().replace("|\n", "|").splitlines()
        groups.append([_line(task, [cell.strip() for cell in line.split("|")]) for line in lines])
    return groups


def _line(task: str, cells: list[str]) -> Rows:
    if task == "stsb":
        score, *pair = cells
        return [(*pair, float(score))]
    if task in ("cola", "sst2"):
        return [(sentence, label) for label, sentence in enumerate(cells)]
    first, *seconds = cells
    return [(first, second, label) for label, second in enumerate(seconds)]


def _rows(name: streams.Name, size: int, groups: list[list[Rows]], lexicon: Lexicon) -> Rows:
    """`size` different rows; the groups take turns with a minimal set."""
    rows: dict[tuple, None] = {}
    turns = itertools.cycle(groups)
    lines = next(turns)
    for attempt in itertools.count():
        drawn = _draw((*name, attempt), lines, lexicon)
        # All of a set or none of it, and a group keeps its turn until it has a new one: the labels stay balanced.
        if rows.keys().isdisjoint(drawn):
            rows.update(dict.fromkeys(drawn))
            lines = next(turns)
        if len(rows) >= size:
            break
    return list(rows)[:size]


def _draw(name: streams.Name, lines: list[Rows], lexicon: Lexicon) -> Rows:
    """One line, its slots filled."""
    pick, *draws = streams.words(name, 64).tolist()
    slots = _fill(lexicon, draws)
    line = lines[pick % len(lines)]
    return [(*(shape.format_map(slots) for shape in texts), label) for *texts, label in line]


def _fill(lexicon: Lexicon, draws: list[int]) -> dict[str, str]:
    """An entry for every slot that the lexicon has words for."""
    slots: dict[str, str] = {}
    draw = iter(draws)
    for field, names in _SLOTS.items():
        left = list(lexicon.get(field, ()))
        for name in names.split() if left else ():
            entry = left.pop(next(draw) % len(left))
            slots |= zip(name.split("/"), entry.split("/"), strict=True)
    return slots
