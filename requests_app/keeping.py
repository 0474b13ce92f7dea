"""What is stored of a turn: everything, what the redaction rules leave, or no content at all.

Decided when the turn opens, by its key (`access.models.Recorded`) and the settings, and applied by the
recorder before anything reaches the database. Digests are always those of the true messages, so that
a conversation goes on, upstream too, whatever is kept of it. What a client or an upstream reads is
never changed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from django.conf import settings

from qwenproxy.access.models import Recorded
from qwenproxy.wire import attachments, history, json
from qwenproxy.wire.attachments import Data, File
from qwenproxy.wire.events import Event, Sent
from qwenproxy.wire.history import Node
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.redaction import (
    RedactedStream,
    Redaction,
    code_of,
    redact_event,
    without_content,
)

if TYPE_CHECKING:
    # They hold a `Keep` each.
    from requests_app.writes import BlobText, Closing, Opening

Feed = Callable[[Sequence[Event]], Sequence[Event]]


class Keep:
    """Everything, as it is."""

    recorded = Recorded.EVERYTHING.value

    def opening(self, opening: Opening) -> Opening:
        return opening

    def message(self, node: Node) -> tuple[str, Sequence[File]]:
        """A message as it is stored, and the files that are stored apart from it."""
        message, files = attachments.take_out(node.message)
        return history.encode_content(message), files

    def blob(self, blob: BlobText) -> str:
        return blob.body

    def closing(self, closing: Closing) -> Closing:
        return closing

    def cause(self, cause: str) -> str:
        """An attempt's cause, where it is stored outside the turn's own rows."""
        return cause

    def feed(self) -> Feed:
        """Make what turns the events of one running answer into those that may be stored."""
        return lambda events: events


class KeepRedacted(Keep):
    """Everything but what the rules match."""

    # System texts and tools come with every request, and few are different.
    _MEMO_BLOBS = 64
    _MEMO_CHARS = 2**18

    def __init__(self, redaction: Redaction, secret: str) -> None:
        self._redaction = redaction
        self._secret = secret.encode()
        self._bodies: OrderedDict[bytes, str] = OrderedDict()

    def opening(self, opening: Opening) -> Opening:
        text = self._redaction.text
        return replace(
            opening,
            user_id=self._identity(opening.user_id),
            external_id=self._identity(opening.external_id),
            user_agent=text(opening.user_agent),
            title=text(opening.title),
            parameters=self._json(opening.parameters),
            headers=self._json(opening.headers),
        )

    def message(self, node: Node) -> tuple[str, Sequence[File]]:
        message, files = attachments.take_out(node.message)
        if not files:
            return history.encode_content(self._redaction.object(message)), ()
        return history.encode_content(
            attachments.change_texts(message, self._redaction.text)
        ), files

    def blob(self, blob: BlobText) -> str:
        if blob.kind == "file":
            return self._file(blob.body)
        if len(blob.body) > self._MEMO_CHARS:
            return self._json(blob.body)
        body = self._bodies.pop(blob.digest, None)
        body = self._json(blob.body) if body is None else body
        self._bodies[blob.digest] = body
        if len(self._bodies) > self._MEMO_BLOBS:
            self._bodies.popitem(last=False)
        return body

    def closing(self, closing: Closing) -> Closing:
        error = closing.error_message
        reply, sent = closing.reply, closing.sent
        return replace(
            closing,
            reply=reply and Node(reply.digest, self._redaction.object(reply.message)),
            reasoning=self._redaction.text(closing.reasoning),
            error_message=None if error is None else self._redaction.text(error),
            upstream_response=self._json(_without(closing.upstream_response, "logprobs")),
            attempts=self._json(closing.attempts),
            sent=sent and self._sent(sent),
        )

    def cause(self, cause: str) -> str:
        code, separator, message = cause.partition(": ")
        return code + separator + self._redaction.text(message)

    def feed(self) -> Feed:
        return RedactedStream(self._redaction).feed

    def _sent(self, sent: Sent) -> Sent:
        kept = redact_event(self._redaction, sent)
        assert isinstance(kept, Sent)
        return kept

    def _json(self, text: str) -> str:
        return json.dumps_text(self._redaction.value(json.loads_text(text))) if text else text

    def _file(self, body: str) -> str:
        """Texts inside files are looked at as well; what is no text could only be broken."""
        text = str(json.loads_text(body))
        try:
            data = attachments.read_data(text)
        except ValueError:
            return self._json(body)
        try:
            written = data.content.decode()
        except UnicodeDecodeError:
            return body
        redacted = self._redaction.text(written)
        if redacted == written:
            return body
        return json.dumps_text(attachments.write_data(Data(data.media_type, redacted.encode())))

    def _identity(self, text: str | None) -> str | None:
        """Two users, or conversations, must stay two: what identifies them is replaced by a digest."""
        if text is None or self._redaction.text(text) == text:
            return text
        digest = hmac.digest(self._secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return f"redacted-{digest.hex()[:32]}"


class KeepMetadata(Keep):
    """Digests, counts, ids and times: no text of either side; `keep` has its say in what is left."""

    recorded = Recorded.METADATA.value

    def __init__(self, keep: Keep) -> None:
        self._keep = keep

    def opening(self, opening: Opening) -> Opening:
        return replace(
            self._keep.opening(opening),
            title="",
            parameters=bare_parameters(opening.parameters),
            system=None,
            tools=None,
        )

    def message(self, node: Node) -> tuple[str, Sequence[File]]:
        message: JSONObject = {"role": node.role}
        if files := attachments.take_out(node.message)[1]:
            message[attachments.FILES] = [file.facts for file in files]
        return history.encode_content(message), ()

    def closing(self, closing: Closing) -> Closing:
        reply, sent = closing.reply, closing.sent
        return replace(
            closing,
            reply=reply and Node(reply.digest, {"role": reply.role}),
            reasoning="",
            error_message=closing.error_code,
            upstream_response=bare_upstream_response(closing.upstream_response),
            attempts=bare_attempts(closing.attempts),
            sent=sent and _bare(sent),
        )

    def cause(self, cause: str) -> str:
        return cause.partition(":")[0]

    def feed(self) -> Feed:
        return _without_content


# The columns of a turn without content, from those with it. Of bare ones they change nothing.


def bare_parameters(parameters: str) -> str:
    """Members that are numbers, true or false: `temperature`, `max_tokens`, `stream`."""
    found = json.loads_text(parameters)
    assert isinstance(found, dict)
    return json.dumps_text(
        {name: value for name, value in found.items() if isinstance(value, int | float)}
    )


def bare_attempts(attempts: str) -> str:
    found = json.loads_text(attempts)
    assert isinstance(found, list)
    kept: list[JSONValue] = [
        {**attempt, "cause": code_of(attempt.get("cause"))}
        for attempt in found
        if isinstance(attempt, dict)
    ]
    return json.dumps_text(kept)


def bare_upstream_response(upstream_response: str) -> str:
    return _without(upstream_response, "raw_text", "refused", "logprobs", "error_body")


def bare_upstream_request(upstream_request: str) -> str:
    if not upstream_request:
        return upstream_request
    found = json.loads_text(upstream_request)
    assert isinstance(found, dict)
    request = found["request"]
    assert isinstance(request, dict)
    kept: JSONObject = {"model": request.get("model")}
    return json.dumps_text({"request": kept, "first_message": found["first_message"]})


def bare_content(role: str, content: str) -> str:
    """Of a stored message: nothing but what its files are."""
    message = history.decode_content(role, content)
    if is_bare(message):
        return content
    files: list[JSONValue] = list(attachments.references(message.get("content")))
    bare: JSONObject = {"role": role}
    if files:
        bare[attachments.FILES] = files
    return history.encode_content(bare)


def _without(upstream_response: str, *names: str) -> str:
    """What the upstream said without these members; log probabilities spell its text, token by token."""
    found = json.loads_text(upstream_response or "{}")
    assert isinstance(found, dict)
    kept: JSONObject = {name: value for name, value in found.items() if name not in names}
    return json.dumps_text(kept) if kept else ""


def is_bare(message: JSONObject) -> bool:
    """Whether it is what is kept of a message without its content."""
    return message.keys() <= {"role", attachments.FILES}


def _bare(sent: Sent) -> Sent:
    kept = without_content(sent)
    assert isinstance(kept, Sent)
    return kept


def _without_content(events: Iterable[Event]) -> list[Event]:
    return [kept for event in events if (kept := without_content(event)) is not None]


KEEP = Keep()


# Of one gateway there is one: it remembers what it has redacted.
@lru_cache(maxsize=4)
def _keep_redacted(redaction: Redaction, secret: str) -> Keep:
    return KeepRedacted(redaction, secret)


def choose_keep(recorded: str, redaction: Redaction) -> Keep:
    """What is kept of a turn whose key has this setting."""
    keep = _keep_redacted(redaction, settings.SECRET_KEY) if redaction else KEEP
    return keep if recorded == Recorded.EVERYTHING.value else KeepMetadata(keep)
