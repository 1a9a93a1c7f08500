"""Where a server may lead: not from the network into this machine, or into the network behind it."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urljoin, urlsplit

import requests

from sdm.errors import LayerError


def is_local(url: str) -> bool:
    """Whether the host of an address is this machine, or one that only a network of its own can reach.

    Loopback, link-local (metadata services of clouds), private and other addresses that are not global, in any
    spelling; a name counts as what it stands for. One that stands for nothing is not local: asking it will fail.
    """
    try:
        host = (urlsplit(url).hostname or "").partition("%")[0]  # without the zone of a link-local address
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # UnicodeError, too
        return False
    return any(_is_own(str(address[0]).partition("%")[0]) for *_, address in found)


def _is_own(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global


def refuse_detour(start: str, end: str, shown: str) -> None:
    """Raise LayerError where an address on the network leads to a local one. A local address may: the user gave it.

    `shown`: `start` without secrets.
    """
    if is_local(end) and not is_local(start):
        host = urlsplit(end).hostname
        raise LayerError(f"{shown} leads to {host}, an address of this machine or its own network; refused.")


class GuardedSession(requests.Session):
    """A session that follows no such redirects."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """The address that a response redirects to, if it does. Raises LayerError."""
        target = super().get_redirect_target(resp)
        if target is not None:
            start = str(resp.url)
            refuse_detour(start, urljoin(start, target), start.partition("?")[0][:200])
        return target
