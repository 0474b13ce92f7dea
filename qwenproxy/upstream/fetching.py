"""Fetching what a client names by address, without becoming its way into this network (SSRF).

Each address of a URL, and of each redirect, is resolved here; all that its name resolves to must be
public, and the connection goes to one of the addresses that were checked: a name that resolves
differently the next moment changes nothing. Ports 80 and 443, no credentials, no proxy, bounded in size,
time and redirects. Error texts do not tell what answers inside.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import httpx

MAX_BYTES = 20 * 2**20
TIMEOUT_S = 20.0
_MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_HEADERS = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "qwenproxy"}

# IPv4 that Python calls global, and that leads to protocols or hosts of this side all the same: protocol
# assignments, 6to4 relays, Azure's metadata.
_NOT_PUBLIC = tuple(
    map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"))
)
_UNICAST = ipaddress.IPv6Network("2000::/3")
# Within it: protocol assignments and Teredo, documentation, 6to4.
_NOT_PUBLIC_6 = tuple(
    map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20", "2002::/16"))
)
# IPv4 in other clothes: mapped, and NAT64 (RFC 6052).
_HOLDS_IPV4 = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]


class FetchError(Exception):
    """A URL that is not fetched, or could not be; the text is for the client."""


class Fetched(NamedTuple):
    # Lower case, without parameters; empty: the server did not say.
    media_type: str
    content: bytes


async def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a name, as the system knows them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def is_public(address: str) -> bool:
    """Whether an address leads out of this network, to one host."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        # With a zone (`fe80::1%eth0`), or no address.
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _HOLDS_IPV4):
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        else:
            return ip in _UNICAST and not any(ip in network for network in _NOT_PUBLIC_6)
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in _NOT_PUBLIC)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _open_transport() -> httpx.AsyncBaseTransport:
    # One for each connection: none is kept, and none is another host's.
    return httpx.AsyncHTTPTransport(verify=_tls())


class Fetcher:
    """Tests give a resolver and a transport of their own."""

    def __init__(
        self,
        *,
        resolver: Resolver = resolve,
        open_transport: Callable[[], httpx.AsyncBaseTransport] = _open_transport,
        timeout_s: float = TIMEOUT_S,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._resolve = resolver
        self._open_transport = open_transport
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes

    async def fetch(self, url: str) -> Fetched:
        """Fetch a URL.

        Raises:
            FetchError: it may not be fetched, or could not be.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(url)
        except TimeoutError as exc:
            raise FetchError(f"it did not arrive within {self._timeout_s:g} seconds") from exc
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as exc:
            raise FetchError(f"it cannot be fetched ({type(exc).__name__})") from exc

    async def _follow(self, url: str) -> Fetched:
        for _ in range(_MAX_REDIRECTS + 1):
            found = await self._ask(httpx.URL(url))
            if isinstance(found, Fetched):
                return found
            url = str(httpx.URL(url).join(found))
        raise FetchError(f"it redirects more than {_MAX_REDIRECTS} times")

    async def _ask(self, url: httpx.URL) -> Fetched | str:
        """The content, or where it is."""
        host, port = _checked(url)
        address = await self._address_of(host, port)
        request = httpx.Request(
            "GET",
            url.copy_with(host=address, port=port),
            headers={**_HEADERS, "host": url.netloc.decode("ascii")},
            # The certificate must be the name's.
            extensions={
                "sni_hostname": host,
                "timeout": httpx.Timeout(self._timeout_s).as_dict(),
            },
        )
        async with self._open_transport() as transport:
            response = await transport.handle_async_request(request)
            try:
                if response.is_redirect and "location" in response.headers:
                    return response.headers["location"]
                return await self._read(response)
            finally:
                await response.aclose()

    async def _address_of(self, host: str, port: int) -> str:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as exc:
            raise FetchError("its host name is not known") from exc
        # One among them that is not public is an attempt, or somebody else's network.
        if not addresses or not all(map(is_public, addresses)):
            raise FetchError("its host has no public address")
        return addresses[0]

    async def _read(self, response: httpx.Response) -> Fetched:
        if response.status_code != 200:
            raise FetchError(f"its server answered {response.status_code}")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise FetchError("its server sent it compressed, unasked")
        content = bytearray()
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for chunk in response.stream:
            content += chunk
            if len(content) > self._max_bytes:
                raise FetchError(f"it is larger than {self._max_bytes // 2**20} MB")
        media_type = response.headers.get("content-type", "").partition(";")[0]
        return Fetched(media_type.strip().lower(), bytes(content))


def _checked(url: httpx.URL) -> tuple[str, int]:
    """Host and port.

    Raises:
        FetchError: it is not one that is fetched.
    """
    if url.scheme not in _PORTS or not url.host:
        raise FetchError("only http and https addresses are fetched")
    if url.userinfo:
        raise FetchError("addresses with credentials are not fetched")
    port = url.port or _PORTS[url.scheme]
    if port not in _PORTS.values():
        raise FetchError("only ports 80 and 443 are fetched from")
    return url.raw_host.decode("ascii"), port
