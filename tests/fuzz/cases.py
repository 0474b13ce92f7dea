"""Requests as bytes: case `index` of a seed is the same whenever it is made.

What is only known while the gateway runs (ids, keys, the fields of the admin's forms) is in `Known`; the
rest of a case depends on seed and index alone. Cases of areas that may remove things draw from ids made
for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from urllib.parse import quote, urlencode

from tests.fuzz import bodies, hostile

_ID_TEXTS = (
    "0",
    "-1",
    "abc",
    "9" * 40,
    "%00",
    "%ff%fe",
    "a%2Fb",
    "..%2f..",
    "%ED%A0%80",
    "x" * 3000,
    "🙂",
)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW")


@dataclass
class Known:
    """What the running gateway has: keys, models by upstream, ids, pages and forms of its admin."""

    key: str = ""
    chat_key: str = ""
    cookies: str = ""
    csrf: str = ""
    models: dict[str, str] = field(default_factory=dict)
    # By the name of the place that takes them; lists grow while cases run.
    ids: dict[str, list[str]] = field(default_factory=dict)
    # Paths of the admin and the parameters of its links; paths of forms and their fields.
    pages: list[tuple[str, list[str]]] = field(default_factory=list)
    forms: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    # Path templates of the API with method and names of query parameters.
    operations: list[tuple[str, str, list[str]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Case:
    area: str
    # The whole request; the connection is closed for writing where `is_cut`.
    data: bytes
    path: str
    method: str
    is_cut: bool = False


def _request(
    method: str, path: str, body: bytes = b"", headers: dict[str, str | bytes] | None = None
) -> bytes:
    lines: list[tuple[str, str | bytes]] = [("Host", "127.0.0.1"), ("Connection", "close")]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(("Content-Length", str(len(body))))
    given = headers or {}
    lines = [(name, text) for name, text in lines if name not in given] + list(given.items())
    head = f"{method} {path} HTTP/1.1\r\n".encode("utf-8", "surrogatepass")
    for name, text in lines:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        head += name.encode() + b": " + raw + b"\r\n"
    return head + b"\r\n" + body


def _auth(rng: Random, known: Known) -> dict[str, str | bytes]:
    kind = rng.random()
    if kind < 0.92:
        return {"Authorization": f"Bearer {known.key}"}
    if kind < 0.95:
        return {"x-api-key": known.chat_key}
    if kind < 0.97:
        return {}
    bad: list[str | bytes] = [
        "Bearer",
        "Basic OTo=",
        b"Bearer \xff",
        "Bearer " + "x" * 600,
        "bearer  a b",
    ]
    return {"Authorization": rng.choice(bad)}


def _json_headers(rng: Random, known: Known) -> dict[str, str | bytes]:
    kinds = ("application/json",) * 12 + (
        "",
        "text/plain",
        "application/json; charset=utf-16",
        "multipart/form-data",
    )
    return _auth(rng, known) | {"Content-Type": rng.choice(kinds)}


def _body_case(area: str, rng: Random, known: Known) -> Case:
    path, document = bodies.valid(rng, area, known.models.get("openai", ""))
    document = hostile.bend(rng, document, rng.choice((1, 1, 2, 4)))
    body = hostile.encode(rng, document)
    return Case(area, _request("POST", path, body, _json_headers(rng, known)), path, "POST")


def _upstream_case(area: str, rng: Random, known: Known) -> Case:
    """A valid question with the word that makes the double answer otherwise."""
    kind = area.partition(" ")[2]
    choices = ["chat", "chat", "completions", "responses", "messages"]
    shape = rng.choice([*choices, "embeddings"] if kind == "openai" else choices)
    path, document = bodies.plain(
        rng, shape, known.models.get(kind, ""), f"fuzz-{rng.getrandbits(60):x}-"
    )
    body = bodies.dump(document)
    headers = {"Authorization": f"Bearer {known.key}", "Content-Type": "application/json"}
    return Case(area, _request("POST", path, body, headers), path, "POST")


def _query(rng: Random, names: list[str]) -> str:
    valid = {
        "limit": ("1", "5", "100"),
        "order": ("asc", "desc"),
        "orderBy": ("created_at", "id", "updated_at"),
        "status": ("completed", "failed", "in_progress"),
        "stream": ("true", "false"),
        "range": ("1h", "24h", "7d"),
        "group": ("model", "key", "account"),
        "interval": ("hour", "day"),
    }
    pairs = []
    for name in rng.sample(names, min(len(names), rng.randrange(1, 4))):
        if name in valid and rng.random() < 0.4:
            pairs.append((name, rng.choice(valid[name])))
        else:
            pairs.append((name, str(hostile.value(rng))[:2000]))
    if rng.random() < 0.2:
        pairs += [(hostile.text(rng)[:100], hostile.text(rng)[:100]), *pairs[:1]]
    if rng.random() < 0.1:
        return rng.choice(("%", "&&&=", "=%zz&a[]=1", "a" * 7000, ";;", "?" * 50, "%ff=%ff"))
    return urlencode(pairs, errors="surrogatepass")


def _fill(rng: Random, known: Known, template: str, *, hostile_share: float) -> str:
    """The path of a template: `{session_id}` becomes an id of that kind, or something else."""
    head, brace, rest = template.partition("{")
    while brace:
        name, _, rest = rest.partition("}")
        ids = known.ids.get(name, [])
        if ids and rng.random() >= hostile_share:
            chosen = ids[rng.randrange(1_000_000) % len(ids)]
        else:
            chosen = rng.choice(
                (*_ID_TEXTS, quote(hostile.text(rng)[:200], errors="surrogatepass"))
            )
        between, brace, rest = rest.partition("{")
        head += chosen + between
    return head


def _records_case(area: str, rng: Random, known: Known) -> Case:
    method, template, names = rng.choice(known.operations)
    path = _fill(rng, known, template, hostile_share=0.4)
    if names and rng.random() < 0.85:
        path += "?" + _query(rng, names)
    body = b""
    headers = _auth(rng, known)
    if method in ("POST", "PATCH", "PUT"):
        body = hostile.encode(
            rng, hostile.bend(rng, bodies.of_operation(rng, template), rng.choice((0, 1, 2)))
        )
        headers["Content-Type"] = "application/json"
    if rng.random() < 0.05:
        method = rng.choice(_METHODS)
    return Case(area, _request(method, path, body, headers), path, method)


def _header_case(area: str, rng: Random, known: Known) -> Case:
    path, document = bodies.plain(rng, "chat", known.models.get("openai", ""), "Hello")
    if rng.random() < 0.5:
        path, document = (
            rng.choice(("/v1/models", "/v1/requests", "/healthz", "/admin/", "/metrics")),
            None,
        )
    method = "GET" if document is None else "POST"
    headers = _auth(rng, known) | {"Content-Type": "application/json"}
    names = (
        "Host", "Authorization", "Content-Type", "Accept", "Accept-Encoding", "Cookie", "Origin", "Referer", "User-Agent",
        "X-Session-Id", "X-Request-Id", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Range", "Expect",
        "If-None-Match", "If-Modified-Since", "Idempotency-Key", "Access-Control-Request-Method", "Content-Encoding",
        "OpenAI-Organization", "anthropic-version", "anthropic-beta", "Accept-Language", "Upgrade", "X-HTTP-Method-Override", "Last-Event-ID", "Forwarded",
    )  # fmt: skip
    for name in rng.sample(names, rng.randrange(1, 5)):
        clean = str(hostile.value(rng)).replace("\r", "").replace("\n", "").replace("\0", "")
        headers[name] = (
            clean[:6000].encode("utf-8", "surrogatepass")
            if rng.random() < 0.8
            else rng.randbytes(9).replace(b"\n", b"").replace(b"\r", b"").replace(b"\0", b"")
        )
    body = b"" if document is None else bodies.dump(document)
    return Case(area, _request(method, path, body, headers), path, method)


def _raw_case(area: str, rng: Random, known: Known) -> Case:
    """Bytes that are not, or not quite, HTTP/1.1."""
    path, document = bodies.plain(
        rng, rng.choice(("chat", "messages", "responses")), known.models.get("openai", ""), "Hi"
    )
    body = bodies.dump(document)
    headers = {"Authorization": f"Bearer {known.key}", "Content-Type": "application/json"}
    whole = _request("POST", path, body, headers)
    how = rng.randrange(9)
    if how < 3:
        end = whole.index(b"\r\n\r\n") + 4
        data = hostile.spoil(rng, whole[:end]) + whole[end:]
    elif how == 3:
        length = rng.choice(
            (
                "0",
                "-1",
                "+5",
                "1e3",
                "9" * 30,
                str(len(body) + 7),
                str(len(body) // 2),
                "",
                "0x10",
                "5, 5",
            )
        )
        data = _request("POST", path, body, {**headers, "Content-Length": length})
    elif how == 4:
        chunks = rng.choice(
            (
                b"ZZ\r\n",
                b"-1\r\n\r\n",
                b"ffffffffffffffffff\r\n",
                b"5;x=" + b"y" * 9000 + b"\r\nhello\r\n0\r\n\r\n",
                b"3\r\nabcdef\r\n0\r\n\r\n",
                b"%x\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(body), body),
            )
        )
        both: dict[str, str | bytes] = {
            **headers,
            "Transfer-Encoding": rng.choice(
                ("chunked", "gzip, chunked", "chunked, chunked", "xchunked")
            ),
        }
        data = (
            _request("POST", path, b"", both).replace(
                b"Content-Length: 0\r\n", b"" if rng.random() < 0.7 else b"Content-Length: 3\r\n"
            )
            + chunks
        )
    elif how == 5:
        data = whole[: rng.randrange(1, len(whole))]
    elif how == 6:
        target = rng.choice(
            (
                b"*",
                b"http://evil.example/v1/models",
                b"//v1//models",
                b"/v1/../admin/",
                b"/%2e%2e/",
                b"/\xff",
                b"/v1/models#x",
                b"a",
                b"/" * 9000,
                b"/v1/models?" + b"a" * 70_000,
            )
        )
        data = b"GET " + target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    elif how == 7:
        data = rng.choice(
            (
                b"\x16\x03\x01\x02\x00",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"\r\n" * 500,
                b"GET /healthz\r\n\r\n",
                b"GET /healthz HTTP/1.0\r\n\r\n",
                b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 3000 + b"\r\n",
                rng.randbytes(200),
            )
        )
    else:
        data = whole.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\n ")), rng.randrange(1, 9))
    return Case(area, data, "", "", is_cut=True)


def _admin_case(area: str, rng: Random, known: Known) -> Case:
    template, names = rng.choice(known.pages)
    path = _fill(rng, known, template, hostile_share=0.5)
    if rng.random() < 0.7:
        path += "?" + _query(
            rng, [*names, "q", "o", "p", "e", "_facets", "_popup", "after", "before"]
        )
    headers: dict[str, str | bytes] = {"Cookie": known.cookies}
    if rng.random() < 0.2:
        headers["Cookie"] += f"; qp={quote(hostile.text(rng)[:200], errors='surrogatepass')}"
    method = "GET" if rng.random() < 0.95 else rng.choice(("HEAD", "OPTIONS", "PUT", "DELETE"))
    headers["X-CSRFToken"] = known.csrf
    return Case(area, _request(method, path, b"", headers), path, method)


def _form_case(area: str, rng: Random, known: Known) -> Case:
    path, fields = rng.choice(known.forms)
    fields = dict(fields)
    for name in rng.sample(sorted(fields), min(len(fields), rng.randrange(4))):
        if rng.random() < 0.15:
            del fields[name]
        else:
            fields[name] = str(hostile.value(rng))
    if rng.random() < 0.1:
        fields[hostile.text(rng)[:100]] = hostile.text(rng)[:100]
    headers: dict[str, str | bytes] = {"Cookie": known.cookies, "X-CSRFToken": known.csrf}
    if rng.random() < 0.75:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        body = urlencode(fields, errors="surrogatepass").encode()
    else:
        headers["Content-Type"] = "multipart/form-data; boundary=b"
        body = b"".join(
            b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
            % (n.encode("utf-8", "surrogatepass"), b'; filename="\xff"' if rng.random() < 0.1 else b"", v.encode("utf-8", "surrogatepass"))
            for n, v in fields.items()
        ) + b"--b--\r\n"  # fmt: skip
    if rng.random() < 0.15:
        body = hostile.spoil(rng, body)
    return Case(area, _request("POST", path, body, headers), path, "POST")


# With the share of each among a hundred.
AREAS: dict[str, tuple[int, Callable[[str, Random, Known], Case]]] = {
    "chat": (11, _body_case),
    "completions": (5, _body_case),
    "responses": (9, _body_case),
    "messages": (9, _body_case),
    "count_tokens": (3, _body_case),
    "embeddings": (4, _body_case),
    "records": (16, _records_case),
    "headers": (5, _header_case),
    "raw": (8, _raw_case),
    "admin pages": (9, _admin_case),
    "admin forms": (6, _form_case),
    "upstream openai": (6, _upstream_case),
    "upstream dashscope": (4, _upstream_case),
    "upstream web": (5, _upstream_case),
}


def area_of(seed: int, index: int) -> str:
    names = list(AREAS)
    return Random(f"{seed}:{index}:area").choices(names, [share for share, _ in AREAS.values()])[0]


def make(seed: int, index: int, known: Known) -> Case:
    area = area_of(seed, index)
    return AREAS[area][1](area, Random(f"{seed}:{index}"), known)
