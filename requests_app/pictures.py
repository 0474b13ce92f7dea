"""Images of messages for the transcript: bytes that a client sent, served so that they stay an image.

Only types that no browser runs, named as what they are; whoever may read the conversation sees them.
"""

from __future__ import annotations

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse

from qwenproxy.access import staff
from qwenproxy.wire import attachments, json
from qwenproxy.wire.json import JSONObject
from requests_app.models import MessageFile
from sessions_app.chips import row_id

# Not SVG: that is a document, with scripts.
_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Disposition": "inline",
    "Cache-Control": "private, max-age=3600",
}


def picture_url(message_id: int, facts: JSONObject) -> str:
    """Where the image of a reference is shown; empty: it is none."""
    if facts.get("type") not in _TYPES:
        return ""
    return reverse("admin:picture", args=[message_id, str(facts.get("digest"))])


@staff.gateway_view(staff.VIEW_SESSIONS)
def picture(request: HttpRequest, message_id: str, digest: str) -> HttpResponse:
    """The image of this digest in a message."""
    if not staff.may_read(request):
        raise PermissionDenied
    try:
        wanted = bytes.fromhex(digest)
    except ValueError as exc:
        raise Http404 from exc
    rows = MessageFile.objects.filter(message=row_id(message_id), blob__digest=wanted)
    body = rows.values_list("blob__body", flat=True).first()
    if body is None:
        raise Http404
    try:
        data = attachments.read_data(str(json.loads_text(body)))
    except ValueError as exc:
        raise Http404 from exc
    if data.media_type not in _TYPES:
        raise Http404
    return HttpResponse(data.content, content_type=data.media_type, headers=_HEADERS)
