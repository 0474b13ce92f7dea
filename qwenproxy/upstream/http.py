"""HTTP to upstreams: the one client of the process, requests made by hand, one mapping of its errors.

httpx's interface on aiohttp's transport (its own costs 9 to 40 times as much under concurrency). The
client keeps no cookies and follows no redirects: an account sends exactly the headers it holds. What
went wrong below is read from the causes, because the transport's own mapping calls every connection
failure `ConnectTimeout`. Nothing is retried here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Literal, cast
from urllib.request import getproxies

import aiohttp
import httpx
from django.conf import settings
from httpx_aiohttp import AiohttpTransport

from qwenproxy.errors import (
    UpstreamAuthExpired,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from qwenproxy.wire.sse import SSEDecoder, SSEError

# Below the 5 s after which uvicorn (so vLLM, SGLang) closes an idle connection: a POST must not be
# written to a connection that its server is about to close.
KEEP_ALIVE_EXPIRY_S = 4.0
# Chinese titles in `Set-Cookie` and signed URLs pass aiohttp's 8,190 bytes.
MAX_HEADER_BYTES = 65_536
MAX_ERROR_BODY_BYTES = 65_536
MAX_JSON_BODY_BYTES = 64 * 2**20
# After an answer's end mark the response's own end comes at once, or its connection is given up.
DRAIN_TIMEOUT_S = 0.1
# After the model's end of an answer, its counts and the end mark come at once, or not at all.
TAIL_TIMEOUT_S = 2.0
# Model lists are small; a server that needs longer counts as down.
LIST_TIMEOUT_S = 15.0

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class _Client(httpx.AsyncClient):
    """httpx's client without what it does around its transport.

    Authentication, cookies, redirects, hooks and timing are not wanted here, and cost as much as all
    the rest of httpx. Proxies still apply: the transport is chosen by the URL.
    """

    async def send(self, request: httpx.Request, *args: object, **kwargs: object) -> httpx.Response:
        return await self._transport_for_url(request.url).handle_async_request(request)


def open_client() -> httpx.AsyncClient:
    """Make the process's client; call it once, on the running loop, and `aclose()` it at shutdown."""
    tls = httpx.create_ssl_context()

    def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # No limit: a turn holds its connection for minutes and must not wait for another's.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_EXPIRY_S, ssl=tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )

    def transport(proxy_url: str | None) -> AiohttpTransport:
        proxy = httpx.Proxy(proxy_url) if proxy_url else None
        return AiohttpTransport(verify=tls, proxy=proxy, client=open_session)

    return _Client(
        transport=transport(None),
        mounts={
            pattern: transport(proxy_url) if proxy_url else None
            for pattern, proxy_url in _proxy_routes(getproxies()).items()
        },
        # Connecting has its own limit within that of getting a connection at all (`pool`).
        timeout=httpx.Timeout(
            connect=settings.CONNECT_TIMEOUT_S,
            pool=settings.CONNECT_TIMEOUT_S,
            read=settings.UPSTREAM_IDLE_TIMEOUT_S,
            write=settings.UPSTREAM_IDLE_TIMEOUT_S,
        ),
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


def may_fetch_urls() -> bool:
    """Whether what clients name by address is fetched for upstreams that need it (`fetching`)."""
    return settings.FETCH_URLS


def _proxy_routes(proxies: Mapping[str, str]) -> dict[str, str | None]:
    """Mount patterns for the proxies of the environment; null goes direct, as loopback always does."""
    bypassed = [host.strip() for host in proxies.get("no", "").split(",") if host.strip()]
    routes: dict[str, str | None] = {
        f"{scheme}://": url if "://" in url else f"http://{url}"
        for scheme in ("http", "https", "all")
        if (url := proxies.get(scheme))
    }
    if not routes or "*" in bypassed:
        return {}
    for host in ("localhost", "127.0.0.1", "::1", *bypassed):
        routes[_direct_pattern(host)] = None
    return routes


def _direct_pattern(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # httpx: `*example.com` is the domain and all below it.
        return f"all://{host}" if host == "localhost" else f"all://*{host}"
    return f"all://[{address}]" if address.version == 6 else f"all://{address}"


def checked_headers(headers: Mapping[str, str], *, account_name: str) -> httpx.Headers:
    """Make headers that can be sent: ends stripped, empty ones left out, UTF-8, our own name.

    Raises:
        UpstreamAuthExpired: a name or value that no HTTP message can hold (a bad paste).
    """
    sent = {name: value.strip() for name, value in headers.items() if value.strip()}
    if not any(name.lower() == "user-agent" for name in sent):
        sent["user-agent"] = f"qwenproxy/{settings.VERSION}"
    for name, value in sent.items():
        if _CONTROL.search(value) or not _NAME.fullmatch(name):
            raise UpstreamAuthExpired(
                f"The header {name!r} of upstream account {account_name} cannot be sent:"
                " it holds a control character or line break. Paste it again."
            )
    checked = httpx.Headers(sent, encoding="utf-8")
    # What httpx decodes without optional packages; an undecoded body would look like garbage.
    checked["accept-encoding"] = "gzip, deflate"
    return checked


@lru_cache(maxsize=256)
def _parse_url(url: str) -> httpx.URL:
    return httpx.URL(url)


def new_request(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: httpx.Headers,
    account_name: str,
    content: bytes = b"",
    max_idle_s: float | None = None,
) -> httpx.Request:
    """Make a request without the client's merging of headers, cookies and parameters.

    `max_idle_s` shortens the client's longest time without a byte.

    Raises:
        UpstreamError: the URL cannot be used.
    """
    timeout = client.timeout.as_dict()
    if max_idle_s is not None:
        timeout["read"] = min(max_idle_s, timeout["read"] or max_idle_s)
    with map_httpx_errors(account_name):
        request = httpx.Request(
            method,
            _parse_url(url),
            # A stream, because httpx would add headers that aiohttp makes anyway.
            stream=httpx.ByteStream(content),
            extensions={"timeout": timeout},
        )
    request.read()
    # Not copied: a copy forgets its encoding, and httpx would then try encodings on all values each
    # time that one is read.
    request.headers = headers
    return request


@asynccontextmanager
async def open_response(
    client: httpx.AsyncClient, request: httpx.Request, *, account_name: str
) -> AsyncIterator[httpx.Response]:
    """Send a request and give its response with the body still to be read; closes it at the end.

    Raises:
        UpstreamError: its family, for everything that happens on the wire inside the block.
    """
    with map_httpx_errors(account_name):
        response = await client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()


async def read_body(response: httpx.Response, *, max_bytes: int) -> bytes:
    """Read the body up to a limit; what comes after it is not read."""
    async with aclosing(body_chunks(response)) as chunks:
        return await collect(b"", chunks, max_bytes=max_bytes)


def body_chunks(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Give the decoded body, one network read at a time."""
    # httpx's own way through its decoders and chunkers only where something is encoded.
    if coding := response.headers.get("content-encoding"):
        if "," in coding:
            # Nobody asked for that: a few bytes coded twice fill the memory.
            raise httpx.DecodingError("the body is coded more than once")
        chunks = response.aiter_bytes()
    else:
        assert isinstance(response.stream, AsyncIterable)
        chunks = aiter(response.stream)
    # Both are generator functions, though httpx does not type them so.
    return cast("AsyncGenerator[bytes, None]", chunks)


async def collect(first: bytes, chunks: AsyncIterator[bytes], *, max_bytes: int) -> bytes:
    """Join `first` and the chunks after it; reads no further once `max_bytes` is passed."""
    parts, size = [first], len(first)
    while size <= max_bytes:
        chunk = await anext(chunks, None)
        if chunk is None:
            break
        parts.append(chunk)
        size += len(chunk)
    return b"".join(parts)


async def sniff(chunks: AsyncIterator[bytes]) -> tuple[bytes, Literal["json", "html", "stream"]]:
    """Read up to the first byte that is not blank, and tell from it what the body is.

    Content types lie (`text/plain` for streams, JSON errors as streams); the first byte does not: no
    line of a stream begins with `{`, `[` or `<`.
    """
    first = b""
    async for chunk in chunks:
        first += chunk
        match first.lstrip()[:1]:
            case b"":
                continue
            case b"{" | b"[":
                return first, "json"
            case b"<":
                return first, "html"
        break
    return first, "stream"


async def payload_batches(
    first: bytes, chunks: AsyncIterator[bytes]
) -> AsyncGenerator[tuple[list[bytes], bool], None]:
    """Yield the payloads that each network read of an event stream completes; true with the last."""
    lines = SSEDecoder()
    chunk: bytes | None = first
    while chunk is not None:
        yield lines.feed(chunk), False
        chunk = await anext(chunks, None)
    yield lines.finish(), True


class Tail:
    """Reads what comes after the model has ended its answer, which nothing can take back.

    However the stream then goes on (silence, a broken connection), it is at its end.
    """

    def __init__(self) -> None:
        self._until_s: float | None = None

    async def read(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """Give the next chunk; null: that was all, or the time for the whole tail is over."""
        if self._until_s is None:
            self._until_s = asyncio.get_running_loop().time() + TAIL_TIMEOUT_S
        with suppress(httpx.HTTPError, aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout_at(self._until_s):
                return await anext(chunks, None)
        return None


async def drain(chunks: AsyncIterator[bytes]) -> None:
    """Take the response's end after the answer's end mark, so that its connection serves again."""
    with suppress(httpx.HTTPError, aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            await anext(chunks, None)


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Read `retry-after-ms` or `Retry-After` (seconds or a date); null where it says nothing usable."""
    for name, factor in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * factor
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, date.timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


@contextmanager
def map_httpx_errors(account_name: str) -> Iterator[None]:
    """Turn what HTTP and its event streams raise into the `UpstreamError` family.

    Messages are for clients and name neither hosts nor addresses; `body` keeps the full text.
    """
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, SSEError) as exc:
        raise _mapped(exc, f"Upstream account {account_name}") from exc


def _mapped(exc: Exception, who: str) -> UpstreamError:
    if isinstance(exc, httpx.UnsupportedProtocol | httpx.InvalidURL | aiohttp.InvalidURL):
        return UpstreamError(f"{who} has a base URL that cannot be used.", body=str(exc))
    if isinstance(exc, SSEError):
        return UpstreamProtocolError(f"{who} sent an endless line: {exc}.")
    # The transport's class is right for reads only; its cause says what happened.
    cause = exc.__cause__ if isinstance(exc, httpx.TransportError) else exc
    match cause:
        case aiohttp.SocketTimeoutError():
            return UpstreamTimeout(f"{who} sent nothing for too long.", body=str(cause))
        case aiohttp.ServerTimeoutError():
            return UpstreamTimeout(f"{who} did not accept a connection in time.", body=str(cause))
        case aiohttp.ClientConnectorError():
            return UpstreamError(
                f"{who} cannot be reached: {_plain_reason(cause)}.", body=str(cause)
            )
        case aiohttp.ClientConnectionError():
            return UpstreamError(f"{who} closed the connection without an answer.", body=str(cause))
        case aiohttp.ClientPayloadError():
            return UpstreamError(f"{who} broke off in the middle of its answer.", body=str(cause))
        case aiohttp.ClientHttpProxyError():
            return UpstreamError(f"{who}: the proxy refused with {cause.status}.", body=str(cause))
        case aiohttp.ClientResponseError() | httpx.DecodingError():
            return UpstreamProtocolError(f"{who} answered with broken HTTP.", body=str(cause))
    return UpstreamError(f"{who} failed: {type(cause or exc).__name__}.", body=str(exc))


def _plain_reason(exc: aiohttp.ClientConnectorError) -> str:
    match exc:
        case aiohttp.ClientConnectorDNSError():
            return "its host name is not known"
        case aiohttp.ClientSSLError():
            return "no TLS connection could be made"
        case aiohttp.ClientProxyConnectionError():
            return "the proxy cannot be reached"
    # Other texts of the system hold the address: "Connect call failed ('127.0.0.1', 9)".
    if isinstance(exc.os_error, ConnectionRefusedError):
        return "connection refused"
    return "no connection could be made"
