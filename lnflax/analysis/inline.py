"""An SVG of matplotlib's as a part of a page: it takes the page's font, ink and paper, and its ids are its own."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from lnflax.analysis.figures import INK
from lnflax.errors import InputError

# Of no use in a page, or not to be let into one.
DROPPED = ("metadata", "style", "script", "foreignObject")
LEAST = 560  # CSS pixels that a wide figure keeps on a phone, where it scrolls
_COORDINATES = ("d", "x", "y", "transform", "points", "width", "height", "cx", "cy", "r")
_NAME, _LINK = re.compile(r"\{.*\}"), re.compile(r"url\(#([^)]+)\)")


def inline(text: str, name: str, title: str, caption: str) -> str:
    """The `<svg>` element with a title, described by the element with the id `caption`.

    What matplotlib needs to draw stays; ids that nothing refers to go, others begin with `name`; coordinates keep two
    decimals, of a 72nd of an inch.

    Raises:
        InputError: the text is no SVG, or it has a source outside of itself.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{name}.svg is not an SVG ({error})") from error
    used = {own for element in root.iter() for own in _references(element)}
    _tidy(root, name, used)
    width = float(root.get("viewBox", "0 0 486 0").split()[2]) * 1.55
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-describedby": caption}
    root.set("style", f"max-width:{width:.0f}px;min-width:min({width:.0f}px,{LEAST}px)")
    head = ElementTree.Element("title")
    head.text = title
    root.insert(0, head)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _references(element: ElementTree.Element) -> list[str]:
    """The ids that an element refers to."""
    found = [own for value in element.attrib.values() for own in _LINK.findall(value)]
    return found + [value[1:] for key, value in element.items() if key.endswith("href") and value.startswith("#")]


def _tidy(element: ElementTree.Element, name: str, used: set[str]) -> None:
    element.tag = _NAME.sub("", element.tag)
    element.attrib = {_NAME.sub("", key): value for key, value in element.items()}
    if element.get("id") not in used:
        element.attrib.pop("id", None)
    for key, value in element.items():
        element.set(key, _attribute(key, value, name))
    element.text, element.tail = ((text or "").strip() or None for text in (element.text, element.tail))
    for child in list(element):
        if not isinstance(child.tag, str) or _NAME.sub("", child.tag) in DROPPED:
            element.remove(child)
        else:
            _tidy(child, name, used)


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        if not value.startswith(("#", "data:image/")):
            raise InputError(f"{name}.svg has a source outside of itself: {value}")
        return f"#{name}-{value[1:]}" if value.startswith("#") else value
    if key in _COORDINATES:
        value = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
        value = re.sub(r"\s+", " ", re.sub(r"rotate\(-?0 [^)]*\)", "", value)).strip()
    if key == "style":
        value = re.sub(r"font-family: [^;]*;? ?|font: [^;]*?([\d.]+px)[^;]*", _font_size, value)
        value = value.replace(INK, "currentColor").replace("#ffffff", "var(--paper)").replace("; ", ";")
    return _LINK.sub(rf"url(#{name}-\1)", value.replace(": ", ":") if key == "style" else value)


def _font_size(found: re.Match[str]) -> str:
    return f"font-size: {found[1]}" if found[1] else ""
