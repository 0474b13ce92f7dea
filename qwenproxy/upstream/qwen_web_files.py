"""Uploads of one account of the web upstream: from parts of messages to entries of a turn's `files`.

A file goes up once for each account and content while the address that the site gave it is valid; what
was uploaded is remembered in this process. Only files of messages that are sent with this turn are looked at.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import httpx

from qwenproxy.errors import (
    InvalidRequest,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
)
from qwenproxy.upstream import http
from qwenproxy.upstream.fetching import Fetcher, FetchError
from qwenproxy.wire import json, qwen_files
from qwenproxy.wire.attachments import Data, read_data
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.qwen_files import FilePart, Kind

_MB = 2**20
# The site's own limits: files of a turn (seven images were taken, though the page says five), bytes of each.
_LIMITS: dict[Kind, tuple[int, int]] = {
    "image": (7, 20 * _MB),
    "file": (5, 20 * _MB),
    "audio": (1, 100 * _MB),
    "video": (1, 500 * _MB),
}
# The address is valid for 300 s; the answer has to begin within that.
_VALID_S = 240.0
_MAX_REMEMBERED = 128
PARSE_TIMEOUT_S = 60.0
_PARSE_POLL_S = 0.5
_MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)
_ERROR_CODE = re.compile(rb"<Code>(\w{1,60})</Code>")


class Ask(Protocol):
    """`QwenWeb.ask`."""

    def __call__(self, method: str, path: str, *, content: bytes = b"") -> Awaitable[bytes]: ...


class _Grant(NamedTuple):
    """What the site lends for one upload."""

    access_key_id: str
    access_key_secret: str
    security_token: str
    file_url: str
    file_path: str
    file_id: str
    bucketname: str
    region: str
    endpoint: str


class Uploads:
    def __init__(
        self,
        client: httpx.AsyncClient,
        account_name: str,
        base_url: str,
        ask: Ask,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._name = account_name
        self._base_url = base_url
        self._ask = ask
        self._clock = clock
        # By content, kind and name: an entry and when its address ends.
        self._known: OrderedDict[tuple[bytes, str, str], tuple[JSONObject, float]] = OrderedDict()

    async def entries(self, parts: Sequence[FilePart]) -> list[JSONObject]:
        """Upload what is not there yet, and name all in the form of `files`.

        Raises:
            InvalidRequest: a part cannot be read, or is more than the site takes; it is named.
            UpstreamError: its family; the upload failed.
        """
        counts: Counter[Kind] = Counter()
        for part in parts:
            counts[part.kind] += 1
            if counts[part.kind] > (most := _LIMITS[part.kind][0]):
                raise _invalid(
                    part, f"the web upstream takes {most} of kind {part.kind} in one turn"
                )
        return [await self._entry(part) for part in parts]

    async def _entry(self, part: FilePart) -> JSONObject:
        data = await _load(part)
        key = sha256(data.content).digest(), part.kind, part.name
        entry, until = self._known.get(key, ({}, 0.0))
        if self._clock() < until:
            self._known.move_to_end(key)
            return entry
        began = self._clock()
        entry = await self._upload(part, data)
        self._known[key] = entry, began + _VALID_S
        self._known.move_to_end(key)
        if len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)
        return entry

    async def _upload(self, part: FilePart, data: Data) -> JSONObject:
        size = len(data.content)
        wanted = {"filename": part.name, "filesize": size, "filetype": part.kind}
        answer = await self._ask("POST", "/api/v2/files/getstsToken", content=json.dumps(wanted))
        grant = _read_grant(_data_of(answer), self._name)
        await self._put(grant, part, data)
        if part.kind == "file":
            await self._parse(grant.file_id, part)
        return qwen_files.file_entry(
            kind=part.kind,
            file_id=grant.file_id,
            user_id=grant.file_path.partition("/")[0],
            url=grant.file_url,
            name=part.name,
            size=size,
            media_type=data.media_type,
            timestamp_ms=int(time.time() * 1000),
            item_id=str(uuid.uuid4()),
            task_id=str(uuid.uuid4()),
        )

    async def _put(self, grant: _Grant, part: FilePart, data: Data) -> None:
        path = qwen_files.object_path(grant.bucketname, grant.file_path)
        url = _object_url(grant, path)
        if not _is_store(url, self._base_url):
            raise UpstreamProtocolError(
                f"Upstream account {self._name} gave a place for an upload that is not https.",
                body=url,
            )
        signed = {
            "content-type": data.media_type,
            "x-oss-content-sha256": qwen_files.UNSIGNED,
            "x-oss-date": datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
            "x-oss-security-token": grant.security_token,
        }
        authorization = qwen_files.authorization(
            path=path,
            headers=signed,
            access_key_id=grant.access_key_id,
            access_key_secret=grant.access_key_secret,
            region=grant.region.removeprefix("oss-"),
        )
        request = http.new_request(
            self._client,
            "PUT",
            url,
            headers=http.checked_headers(
                {**signed, "authorization": authorization}, account_name=self._name
            ),
            account_name=self._name,
            content=data.content,
        )
        async with http.open_response(self._client, request, account_name=self._name) as response:
            body = await http.read_body(response, max_bytes=http.MAX_ERROR_BODY_BYTES)
        if response.status_code != 200:
            code = found[1].decode() if (found := _ERROR_CODE.search(body)) else "no reason given"
            raise UpstreamError(
                f"Upstream account {self._name}: the store refused {part.path}"
                f" ({response.status_code}, {code}).",
                code="upload_failed",
                # Not all of it: it quotes what was signed, the lent token among it.
                body=code,
                upstream_status=response.status_code,
            )

    async def _parse(self, file_id: str, part: FilePart) -> None:
        """Let the site read a document, which it does before a turn can name it."""
        await self._ask("POST", "/api/v2/files/parse", content=json.dumps({"file_id": file_id}))
        try:
            async with asyncio.timeout(PARSE_TIMEOUT_S):
                while (status := await self._parse_status(file_id)) != "success":
                    if status == "failed":
                        raise UpstreamRefused(
                            f"The web upstream cannot read {part.path} ({part.name}).",
                            param=part.path,
                        )
                    await asyncio.sleep(_PARSE_POLL_S)
        except TimeoutError as exc:
            raise UpstreamTimeout(
                f"Upstream account {self._name} did not read {part.path} in time."
            ) from exc

    async def _parse_status(self, file_id: str) -> JSONValue:
        answer = await self._ask(
            "POST",
            "/api/v2/files/parse/status",
            content=json.dumps({"file_id_list": [file_id]}),
        )
        data = _data_of(answer)
        first = data[0] if isinstance(data, list) and data else None
        return first.get("status") if isinstance(first, dict) else None


async def _load(part: FilePart) -> Data:
    """The bytes of a part, and what they are.

    Raises:
        InvalidRequest: there are none, or too many.
    """
    if qwen_files.is_address(part.source):
        data = await _fetch(part)
    elif not part.source:
        raise _invalid(part, "it holds no file; files by id are not kept here")
    elif part.kind in ("image", "video") and part.source[:5].lower() != "data:":
        raise _invalid(part, "it must be a data URL or an http(s) address")
    else:
        try:
            data = read_data(part.source)
        except ValueError as exc:
            raise _invalid(part, str(exc)) from exc
    media_type = data.media_type or part.media_type
    if not _MEDIA_TYPE.fullmatch(media_type):
        media_type = "application/octet-stream"
    if part.kind in ("image", "video") and not media_type.startswith(f"{part.kind}/"):
        raise _invalid(part, f"it is {media_type}, not {part.kind}/*")
    size, most = len(data.content), _LIMITS[part.kind][1]
    if not 0 < size <= most:
        raise _invalid(part, f"it has {size:,} bytes; the web upstream takes 1 to {most:,}")
    return Data(media_type, data.content)


async def _fetch(part: FilePart) -> Data:
    if not http.may_fetch_urls():
        raise _invalid(
            part,
            "the web upstream needs the file itself, and the gateway fetches no addresses"
            " (QWENPROXY_FETCH_URLS); send a data URL",
        )
    try:
        fetched = await Fetcher().fetch(part.source)
    except FetchError as exc:
        raise _invalid(part, str(exc)) from exc
    return Data(fetched.media_type, fetched.content)


def _invalid(part: FilePart, said: str) -> InvalidRequest:
    return InvalidRequest(f"{part.path}: {said}.", param=part.path)


def _data_of(answer: bytes) -> JSONValue:
    try:
        parsed = json.loads(answer)
    except json.JSONError:
        return None
    return parsed.get("data") if isinstance(parsed, dict) else None


def _read_grant(data: JSONValue, account_name: str) -> _Grant:
    found = data if isinstance(data, dict) else {}
    values = [found.get(name) for name in _Grant._fields]
    if not all(isinstance(value, str) and value for value in values):
        raise UpstreamProtocolError(
            f"Upstream account {account_name} gave no place for an upload.",
            body=json.dumps_text(sorted(found)),
        )
    return _Grant(*map(str, values))


def _is_store(url: str, base_url: str) -> bool:
    """Whether a file may go to the address: the site names it, and must not lead into this network.

    What stands inside has no certificate for a name that the site could give. Only a site that itself
    is reached without TLS may have its store beside it.
    """
    place = urlsplit(url)
    return place.scheme == "https" or place[:2] == urlsplit(base_url)[:2]


def _object_url(grant: _Grant, path: str) -> str:
    """The bucket is part of the host; of the path where the host is an IP address, as OSS has it."""
    endpoint = grant.endpoint if "://" in grant.endpoint else f"https://{grant.endpoint}"
    parts = urlsplit(endpoint)
    try:
        ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        path = path.removeprefix(qwen_files.object_path(grant.bucketname, ""))
        return f"{parts.scheme}://{grant.bucketname}.{parts.netloc}/{path}"
    return f"{parts.scheme}://{parts.netloc}{path}"
