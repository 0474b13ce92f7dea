"""The guard of addresses that clients name, with a real server on loopback that must not be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from qwenproxy.upstream.fetching import Fetched, Fetcher, FetchError, is_public, resolve
from tests.doubles.server import Exchange, Recorded, Reply, ScriptedServer, serve_in_thread

PUBLIC = "93.184.215.14"
OTHER = "93.184.215.15"


class Pictures(ScriptedServer):
    """Answers by path: what is scripted for it, else a picture."""

    async def answer(self, request: Recorded, exchange: Exchange) -> None:
        reply = self.next_reply(request.path) or picture()
        await self.send_simple(exchange, reply)


def picture(**fields):
    headers = {"content-type": "image/png; x=y"}
    return Reply(body=b"picture", headers=headers, **fields)


class Mapped(httpx.AsyncHTTPTransport):
    """Connects to the double in the place of one public address, and nowhere else."""

    def __init__(self, url: str, seen: list[httpx.Request]) -> None:
        super().__init__()
        self._url = httpx.URL(url)
        self._seen = seen

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._seen.append(httpx.Request("GET", request.url, extensions=request.extensions))
        assert request.url.host == PUBLIC, "a connection to somewhere else"
        request.url = request.url.copy_with(scheme="http", host=self._url.host, port=self._url.port)
        return await super().handle_async_request(request)


class Names:
    """A resolver with answers of its own; the last one of a name repeats."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {"pictures.example": [[PUBLIC]], **answers}
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        if host not in self.answers:
            # As the system does for numbers and `localhost`.
            return list(await resolve(host, port))
        found = self.answers[host]
        return found.pop(0) if len(found) > 1 else found[0]


class Web:
    def __init__(self, double: Pictures, url: str) -> None:
        self.double, self.url = double, url
        self.connections: list[httpx.Request] = []

    def fetch(self, url: str, names: Names | None = None, **limits: float) -> Fetched:
        fetcher = Fetcher(
            resolver=names or Names(),
            open_transport=lambda: Mapped(self.url, self.connections),
            **limits,
        )
        return asyncio.run(fetcher.fetch(url))


@pytest.fixture
def web() -> Iterator[Web]:
    double = Pictures()
    with serve_in_thread(double) as url:
        yield Web(double, url)


def redirect(to: str) -> Reply:
    return Reply(body=b"moved", status=302, headers={"location": to})


def test_a_public_address_is_fetched_as_its_name(web):
    assert web.fetch("http://Pictures.example/a.png?x=1#y") == Fetched("image/png", b"picture")
    (request,) = web.double.requests
    assert (request.path, request.query) == ("/a.png", {"x": "1"})
    assert request.headers["host"] == "pictures.example"
    assert "cookie" not in request.headers
    assert "authorization" not in request.headers


def test_the_certificate_is_asked_of_the_name(web):
    web.fetch("https://pictures.example/a.png")
    (connection,) = web.connections
    assert connection.url.host == PUBLIC
    assert connection.extensions["sni_hostname"] == "pictures.example"


def test_a_name_that_changes_its_mind_is_reached_where_it_was_checked(web):
    names = Names(**{"pictures.example": [[PUBLIC], ["127.0.0.1"]]})
    web.fetch("http://pictures.example/a.png", names)
    assert names.asked == [("pictures.example", 80)]
    with pytest.raises(FetchError, match="no public address"):
        web.fetch("http://pictures.example/a.png", names)
    assert len(web.connections) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.0.0.1/",
        "http://0/",
        "http://localhost/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/",
        "http://100.100.100.200/",
        "http://168.63.129.16/",
        "http://10.0.0.1/",
        "http://[fe80::1]/",
    ],
)
def test_what_is_inside_is_not_reached(web, url):
    for named in (url, url.replace("http:", "https:")):
        with pytest.raises(FetchError, match=r"no public address|not known"):
            web.fetch(named)
    assert web.connections == web.double.requests == []


@pytest.mark.parametrize(
    "to", ["http://127.0.0.1/", "//localhost/x", "http://[::1]/", "/\\localhost/"]
)
def test_a_redirect_inside_is_not_followed(web, to):
    web.double.enqueue(redirect(to), path="/a.png")
    web.double.enqueue(redirect("http://127.0.0.1/"), path="/\\localhost/")
    with pytest.raises(FetchError):
        web.fetch("http://pictures.example/a.png")
    assert all(request.url.host == PUBLIC for request in web.connections)


def test_a_redirect_to_a_name_that_leads_inside_is_not_followed(web):
    names = Names(**{"inside.example": [[PUBLIC, "10.0.0.1"]]})
    web.double.enqueue(redirect("http://inside.example/"), path="/a.png")
    with pytest.raises(FetchError, match="no public address"):
        web.fetch("http://pictures.example/a.png", names)
    assert len(web.double.requests) == 1


def test_a_redirect_to_another_port_is_not_followed(web):
    web.double.enqueue(redirect("http://pictures.example:8301/"), path="/a.png")
    with pytest.raises(FetchError, match="ports 80 and 443"):
        web.fetch("http://pictures.example/a.png")


def test_redirects_outside_are_followed_a_few_times(web):
    web.double.enqueue(*[redirect("/a.png")] * 3, path="/a.png")
    assert web.fetch("http://pictures.example/a.png").content == b"picture"
    web.double.enqueue(*[redirect("/a.png")] * 4, path="/a.png")
    with pytest.raises(FetchError, match="more than 3 times"):
        web.fetch("http://pictures.example/a.png")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://pictures.example/a", "only http and https"),
        ("file:///etc/passwd", "only http and https"),
        ("http:///a", "only http and https"),
        ("http://user:pw@pictures.example/", "credentials"),
        ("http://pictures.example:22/", "ports 80 and 443"),
        ("http://pictures.example:99999/", "ports 80 and 443"),
        ("http://\ud800/", "cannot be fetched"),
        ("http://nowhere.invalid/", "not known"),
    ],
)
def test_addresses_that_are_none(web, url, said):
    with pytest.raises(FetchError, match=said):
        web.fetch(url)
    assert web.connections == []


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(body=b"no", status=404), "answered 404"),
        (picture(status=206), "answered 206"),
        (Reply(body=bytes(2000)), "larger"),
        (Reply(refused=True), "cannot be fetched"),
        (Reply(body=b"x", headers={"content-encoding": "gzip"}), "compressed"),
        (Reply(body=b"moved", status=302), "answered 302"),
    ],
    ids=["missing", "a part", "too large", "no answer", "compressed", "nowhere"],
)
def test_answers_that_are_none(web, reply, said):
    web.double.enqueue(reply, path="/a.png")
    with pytest.raises(FetchError, match=said):
        web.fetch("http://pictures.example/a.png", max_bytes=1999)


def test_an_answer_that_takes_too_long(web):
    web.double.enqueue(Reply(silent=True), path="/a.png")
    with pytest.raises(FetchError, match=r"did not arrive within 0.2 seconds"):
        web.fetch("http://pictures.example/a.png", timeout_s=0.2)


@pytest.mark.parametrize(
    "address",
    ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.255",
        "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1",
        "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
        "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1",
        "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808",
        "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1",
        "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "", "localhost",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)
