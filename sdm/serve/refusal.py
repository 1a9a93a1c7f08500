"""A server that answers a request whose headers never end, before it closes the connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, UnsatisfiableReadError

ANSWER = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
DRAIN_S = 5.0
"""Seconds for which the rest of such a request is read and dropped."""
_PIECE = 1 << 16


class RefusingServer(HTTPServer):
    """As of Tornado, which closes a connection with headers above `max_header_size` without a word."""

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Serve one connection."""
        close = stream.close
        draining: set[asyncio.Task] = set()

        def answer_and_close(exc_info: Any = False) -> None:
            if isinstance(exc_info, UnsatisfiableReadError) and not stream.closed():
                task = asyncio.get_running_loop().create_task(_refuse(stream.socket.dup()))
                draining.add(task)
                task.add_done_callback(draining.discard)
            close(exc_info)

        stream.close = answer_and_close  # type: ignore[method-assign]
        super().handle_stream(stream, address)


async def _refuse(connection: socket.socket) -> None:
    """Answer, and read on: a connection closed over unread bytes is reset, and the answer is lost with it."""
    with connection, contextlib.suppress(OSError, TimeoutError):
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DRAIN_S):
            await loop.sock_sendall(connection, ANSWER)
            connection.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(connection, _PIECE):
                pass
