"""Short XML documents from anywhere, parsed so that none of them can take all memory or name another file."""

from __future__ import annotations

import io
from xml.etree.ElementTree import Element

MAX_BYTES = 4 << 20
MAX_DEPTH = 200
"""Elements inside each other: deeper ones take a kilobyte each, and no document of a kind that is read has them."""


class RefusedXML(ValueError):
    """A document that is not read; the message says why, without its name: "is nested more than 200 deep"."""


class BrokenXML(RefusedXML):
    """A document that is no XML."""


def parse_small(content: bytes) -> Element:
    """The root of a document.

    Raises
    ------
    RefusedXML : for more than `MAX_BYTES`, elements nested deeper than `MAX_DEPTH`, entities or a document type.
    BrokenXML : for what is no XML.
    """
    import defusedxml
    import defusedxml.ElementTree

    if len(content) > MAX_BYTES:
        raise RefusedXML(f"holds more than {MAX_BYTES >> 20} MiB of XML")
    depth = 0
    try:
        events = defusedxml.ElementTree.iterparse(io.BytesIO(content), ("start", "end"), forbid_dtd=True)
        for event, _ in events:
            depth += 1 if event == "start" else -1
            if depth > MAX_DEPTH:
                raise RefusedXML(f"is nested more than {MAX_DEPTH} deep")
    except defusedxml.DefusedXmlException:
        raise RefusedXML("declares entities or a document type") from None
    except (SyntaxError, LookupError, UnicodeError) as error:  # the parser's own errors are SyntaxErrors
        raise BrokenXML(f"is not valid XML ({error})") from None
    root: Element = events.root
    return root
