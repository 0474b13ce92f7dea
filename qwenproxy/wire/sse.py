"""Server-sent events, both ways: bytes of a stream to `data:` payloads, and a body to one event.

Decoding is line by line: these upstreams put one whole JSON text on one `data:` line, and some leave
out the blank line between events. Only LF, CR and CRLF end a line. Encoding writes the characters that
careless clients take for line ends (U+0085, U+2028, U+2029) as JSON escapes.
"""

from __future__ import annotations

from qwenproxy.wire import json

MAX_LINE_BYTES = 16 * 1024 * 1024
DONE = b"data: [DONE]\n\n"
# A comment, which no client shows.
KEEP_ALIVE = b": keep-alive\n\n"

_BOM = b"\xef\xbb\xbf"


class SSEError(ValueError):
    """A line is longer than any honest upstream sends."""


class SSEDecoder:
    """Cuts a byte stream into the payloads of its `data:` lines.

    Comments, `event:`, `id:` and `retry:` lines, blank lines and empty payloads are left out. White
    space around a payload is removed: JSON does not need it, and `[DONE]` can be compared as it is.
    """

    def __init__(self, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        # The unfinished line in pieces: joining at every read is quadratic for a long line.
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._at_start = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the payloads that this chunk completes.

        Raises:
            SSEError: a line passed the limit; the stream cannot be read on.
        """
        # A CR may be half of a CRLF whose LF comes next: that LF then ends an empty line, which is
        # left out anyway.
        if b"\n" not in chunk and b"\r" not in chunk:
            self._keep(chunk)
            return []
        if self._pieces:
            self._pieces.append(chunk)
            chunk = b"".join(self._pieces)
            self._pieces = []
            self._pieces_bytes = 0
        lines = chunk.splitlines()
        if chunk[-1] not in b"\r\n":
            self._keep(lines.pop())
        return self._payloads(lines)

    def finish(self) -> list[bytes]:
        """Return the payload of a last line without a line end."""
        line = b"".join(self._pieces)
        self._pieces = []
        self._pieces_bytes = 0
        return self._payloads([line]) if line else []

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        self._pieces.append(piece)
        self._pieces_bytes += len(piece)
        if self._pieces_bytes > self._max_line_bytes:
            raise SSEError(f"a line is longer than {self._max_line_bytes} bytes")

    def _payloads(self, lines: list[bytes]) -> list[bytes]:
        if self._at_start:
            self._at_start = False
            lines[0] = lines[0].removeprefix(_BOM)
        return [
            payload for line in lines if line.startswith(b"data:") if (payload := line[5:].strip())
        ]


def encode_data(body: object) -> bytes:
    """Write one event: `data: {...}` and the blank line that ends it."""
    return b"data: " + escape_line_ends(json.dumps(body)) + b"\n\n"


def escape_line_ends(data: bytes) -> bytes:
    """Escape the Unicode line ends in JSON bytes; they can stand in JSON strings only."""
    if data.isascii():
        return data
    return (
        data.replace(b"\xe2\x80\xa8", b"\\u2028")
        .replace(b"\xe2\x80\xa9", b"\\u2029")
        .replace(b"\xc2\x85", b"\\u0085")
    )
