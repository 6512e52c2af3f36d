"""Generated sentences of tagged words, `pos` and `ner`: `data.path = "synthetic"`.

The words of train and of dev are disjoint but for the function words, and most can have two tags: `walk` is a noun
after `the` and a verb after `to`, `Madison` a person who speaks and a place to live in. Context decides, of which a
list of words sees nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from lnflax import streams
from lnflax.corpora import Tagged

SIZES = {"train": 1024, "validation": 256}

# By field: what train has, what dev has.
_WORDS = {
    "both": (  # noun or verb
        "walk talk visit answer plan cook judge guard guide load hope love",
        "dance laugh report offer promise drink dress guess rest work",
    ),
    "noun": (
        "farmer doctor teacher soldier driver student letter garden river",
        "nurse sailor actor engineer ticket bell",
    ),
    "adjective": ("old new red quiet honest narrow", "small green gentle wide sudden"),
    "adverb": ("slowly often gladly never", "quickly rarely openly always"),
    "place": ("Madison Lincoln Jackson Houston Austin", "Washington Florence Sydney Dallas Cleveland"),
    "first": ("John Mary Paul Sarah James", "Anna Peter Emma Henry Lucy"),
    "company": ("Harper Turner Morgan Fisher", "Warner Palmer Mercer Porter"),
    "people": ("French Greek Danish", "Polish Irish Dutch"),
}
# A shape is words with their tags; a word in braces is drawn from its field, another entry each time.
_SHAPES = {
    "pos": (
        "the/DT {adjective}/JJ {noun}/NN will/MD {both}/VB ./.",
        "the/DT {both}/NN was/VBD {adjective}/JJ ,/, but/CC we/PRP {both}/VBP {adverb}/RB ./.",
        "they/PRP want/VBP to/TO {both}/VB in/IN the/DT {noun}/NN 's/POS {noun}/NN ./.",
        "a/DT {both}/NN is/VBZ what/WP the/DT {noun}/NN needs/VBZ ./.",
        "did/VBD you/PRP {both}/VB after/IN the/DT {both}/NN ?/.",
        "{first}/NNP {last}/NNP can/MD {both}/VB her/PRP {both}/NN {adverb}/RB ./.",
        "that/DT {both}/NN shows/VBZ that/IN they/PRP {both}/VBP ./.",
        "her/PRP$ {both}/NN and/CC his/PRP$ {both}/NN were/VBD {adjective}/JJ ./.",
    ),
    "ner": (
        "{place}/B-PER said/O that/O the/O {noun}/O left/O {place}/B-LOC ./O",
        "{first}/B-PER {place}/I-PER lives/O in/O {place}/B-LOC ./O",
        "the/O {noun}/O of/O {company}/B-ORG Inc./I-ORG met/O {first}/B-PER {company}/I-PER ./O",
        "{company}/B-ORG &/I-ORG {company}/I-ORG sold/O its/O {noun}/O in/O {place}/B-LOC ./O",
        "the/O {people}/B-MISC {noun}/O {company}/B-PER went/O to/O {place}/B-LOC ,/O {place}/B-LOC ./O",
        "{company}/B-PER told/O the/O {noun}/O about/O the/O {people}/B-MISC {noun}/O ./O",
        "University/B-ORG of/I-ORG {place}/I-ORG hired/O {first}/B-PER {company}/I-PER ./O",
        "a/O {adjective}/O {noun}/O came/O by/O ./O",
    ),
}


def generate(task: str) -> dict[str, Tagged]:
    """The splits of `pos` or `ner`."""
    return {split: _sentences(task, split, size) for split, size in SIZES.items()}


def _sentences(task: str, split: str, size: int) -> Tagged:
    side = list(SIZES).index(split)
    fields = {name: words[side].split() for name, words in _WORDS.items()}
    fields["last"] = fields["place"]
    shapes = _SHAPES[task]
    return Tagged.of_pairs(
        _fill(shapes[number % len(shapes)], fields, streams.words(("tags", task, split, number), 16).tolist())
        for number in streams.permutation(("tags", task, split), size).tolist()
    )


def _fill(shape: str, fields: dict[str, list[str]], draws: Sequence[int]) -> list[tuple[str, str]]:
    """A shape's words and tags, each field's entries drawn without repeats."""
    left = {name: list(words) for name, words in fields.items()}
    pairs = []
    for part, draw in zip(shape.split(), draws, strict=False):
        word, _, tag = part.rpartition("/")
        if word.startswith("{"):
            own = left[word[1:-1]]
            word = own.pop(draw % len(own))
        pairs.append((word, tag))
    return pairs
