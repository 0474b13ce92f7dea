"""A TCP proxy before PostgreSQL that cuts connections at COMMIT: before the server got it, or after it did."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

# The end of a simple query's message, and of the server's confirmation.
_COMMIT = b"COMMIT\x00"


class Cutting:
    """Passes everything on; every so many COMMITs the connection is cut, by turns before and after it.

    `every` 0 cuts nothing. `before` and `after` count the cuts.
    """

    def __init__(self, database_url: str) -> None:
        self._target = urlsplit(database_url)
        self.every = 0
        self.before = 0
        self.after = 0
        self.url = ""
        self._commits = 0
        self._open = set[asyncio.StreamWriter]()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        # Encrypted, a COMMIT could not be seen.
        self.url = self._target._replace(
            netloc=f"{self._target.username}@127.0.0.1:{port}", query="sslmode=disable"
        ).geturl()
        try:
            yield
        finally:
            server.close()
            for writer in self._open:
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.hostname, self._target.port
        from_server, to_server = await asyncio.open_connection(host, port)
        self._open |= {writer, to_server}
        confirmed = asyncio.Event()
        back = asyncio.create_task(self._pass_back(from_server, writer, confirmed))
        try:
            while data := await reader.read(65536):
                if not self._is_to_be_cut(data):
                    to_server.write(data)
                elif self.before > self.after:
                    self.after += 1
                    confirmed.clear()
                    # From here on the client hears nothing.
                    self._open.discard(writer)
                    to_server.write(data)
                    await confirmed.wait()
                    break
                else:
                    self.before += 1
                    break
        except ConnectionError:
            pass
        finally:
            for one in (writer, to_server):
                self._open.discard(one)
                one.close()
            back.cancel()

    async def _pass_back(
        self,
        from_server: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        confirmed: asyncio.Event,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await from_server.read(65536):
                if writer in self._open:
                    writer.write(data)
                elif _COMMIT in data:
                    confirmed.set()
        confirmed.set()
        writer.close()

    def _is_to_be_cut(self, data: bytes) -> bool:
        if not self.every or not data.endswith(_COMMIT):
            return False
        self._commits += 1
        return self._commits % self.every == 0
