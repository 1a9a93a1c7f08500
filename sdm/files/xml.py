"""XML documents from anywhere, looked through before they are parsed: none takes all memory or names another file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

MAX_BYTES = 4 << 20
MAX_DEPTH = 200
"""Elements inside each other: deeper ones take a kilobyte each, and no document of a kind that is read has them."""
MOST_SMALL = 200_000
"""Elements of a document that is kept whole."""
LONGEST_TAG = 1 << 20
"""Bytes of a tag with its attributes, about: the parser begins it anew with each piece of the file."""
PIECE = 1 << 18


class RefusedXML(ValueError):
    """A document that is not read; the message says why, without its name: "is nested more than 200 deep"."""


class BrokenXML(RefusedXML):
    """A document that is no XML."""


def parse_small(content: bytes) -> Element:
    """The root of a document.

    Raises
    ------
    RefusedXML : for more than `MAX_BYTES`, and as `refuse_costly`.
    BrokenXML : for what is no XML.
    """
    if len(content) > MAX_BYTES:
        raise RefusedXML(f"holds more than {MAX_BYTES >> 20} MiB of XML")
    refuse_costly((content[k : k + PIECE] for k in range(0, len(content), PIECE)), {"": MOST_SMALL})
    return ElementTree.fromstring(content)


def refuse_costly(pieces: Iterable[bytes], most: Mapping[str, int]) -> None:
    """Look through a document, in pieces, and raise RefusedXML for one that could not be parsed in seconds.

    That is one with entities or a document type, nested deeper than `MAX_DEPTH`, with a tag longer than `LONGEST_TAG`,
    or of more elements than `most` says under the name of the outermost one, or else under "".
    Raises BrokenXML for what is no XML.
    """
    from xml.parsers import expat

    depth = elements = read = 0
    limit = most[""]

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements, limit
        if not elements:
            limit = most.get(name.rpartition(":")[2], limit)
        depth, elements = depth + 1, elements + 1
        if depth > MAX_DEPTH:
            raise RefusedXML(f"is nested more than {MAX_DEPTH} deep")
        if elements > limit:
            raise RefusedXML(f"holds more than {limit:,} elements")

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def doctype(*_: object) -> None:
        raise RefusedXML("declares entities or a document type")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = doctype
    try:
        for piece in pieces:
            parser.Parse(piece)
            read += len(piece)
            if read - parser.CurrentByteIndex > LONGEST_TAG:
                raise RefusedXML(f"has a tag of more than {LONGEST_TAG >> 20} MiB")
        parser.Parse(b"", True)
    except (expat.ExpatError, LookupError, UnicodeError) as error:
        raise BrokenXML(f"is not valid XML ({error})") from None
