"""The playground: a page that calls the public API, as clients do, with a short-lived key of its user.

The key goes out in the answer to a POST alone and is kept in the page's memory. What is asked and answered
passes through `/v1/chat/completions` and nowhere else.
"""

from __future__ import annotations

import re
from typing import Any

from django.contrib import admin
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.views.decorators.http import require_POST

from qwenproxy.access import staff
from qwenproxy.access.keys import KeyNotInUse
from qwenproxy.access.playground_key import LIFE, lend_key
from qwenproxy.wire.anthropic_bodies import FieldError, to_chat
from qwenproxy.wire.json import JSONObject
from requests_app.models import Request
from requests_app.records import load_request
from requests_app.responses_api import as_chat
from requests_app.rollups import ERRORS

_ID = re.compile("[0-9]{1,18}")
# In the place of an id in addresses that the page fills in.
_ANY = "ID"


@staff.gateway_view(staff.USE_PLAYGROUND)
def playground(request: HttpRequest) -> HttpResponse:
    """The page; `?request=<pk>` fills in what a recorded request asked."""
    wanted = request.GET.get("request")
    source, body = (None, None) if wanted is None else _recorded(request, wanted)
    context = {
        **admin.site.each_context(request),
        "title": "Playground",
        "source": source,
        "is_filled": body is not None,
        "minutes": LIFE.total_seconds() // 60,
        "config": {
            "models": "/v1/models",
            "chat": "/v1/chat/completions",
            "key": reverse("admin:playground_key"),
            "login": f"{reverse('admin:login')}?next={reverse('admin:playground')}",
            "request": reverse("admin:playground_record", args=[_ANY]),
            "session": reverse("admin:sessions_app_session_change", args=[_ANY]),
            "any": _ANY,
            "body": body,
        },
    }
    return TemplateResponse(request, "admin/playground.html", context)


@staff.gateway_view(staff.USE_PLAYGROUND)
@require_POST
def playground_key(request: HttpRequest) -> HttpResponse:
    """A new secret for the user's key, which its page asks for before the last one ends."""
    # `admin_view` lets nobody else come here.
    assert request.user.is_authenticated
    try:
        api_key, secret = lend_key(request.user)
    except KeyNotInUse as exc:
        return JsonResponse({"error": f"{str(exc).capitalize()}."}, status=403)
    return JsonResponse(
        {"key": secret, "name": api_key.name, "expires_in_s": int(LIFE.total_seconds())}
    )


@staff.gateway_view(staff.USE_PLAYGROUND)
def playground_record(request: HttpRequest, request_id: str) -> HttpResponse:
    """To the page of the request that an answer's `x-request-id` names."""
    # PostgreSQL cannot even be asked for a NUL.
    rows = Request.objects.filter(request_id=request_id.replace("\0", "\ufffd"))
    pk = rows.values_list("pk", flat=True).first()
    if pk is None:
        raise Http404
    return HttpResponseRedirect(reverse("admin:requests_app_request_change", args=[pk]))


def _recorded(request: HttpRequest, wanted: str) -> tuple[Request, JSONObject | None]:
    """The recorded request and its body; without it where the user may not read it, or nothing is kept."""
    if not _ID.fullmatch(wanted):
        raise Http404
    rows = Request.objects.select_related("response").defer("parameters", "upstream_request")
    row = get_object_or_404(rows, pk=int(wanted))
    if not staff.may_read(request, has_failed=row.response.status in ERRORS):
        return row, None
    try:
        body: Any = load_request(row.pk)["openai_request"]
    except Request.DoesNotExist as exc:
        # Deleted in between.
        raise Http404 from exc
    if not isinstance(body, dict):
        return row, None
    try:
        if row.dialect == "anthropic":
            body = _as_chat(body)
        elif row.dialect == "responses":
            body = as_chat(row.pk, body)
    except FieldError:
        # What is left after messages were deleted, or redaction.
        return row, None
    except Request.DoesNotExist as exc:
        raise Http404 from exc
    staff.audit_view(request, row)
    if "messages" not in body:
        prompt = body.pop("prompt", "")
        text = prompt[0] if isinstance(prompt, list) and prompt else prompt
        body["messages"] = [{"role": "user", "content": text}]
    return row, body


def _as_chat(body: JSONObject) -> JSONObject:
    """A body of Anthropic's protocol in the one that the playground speaks."""
    chat = to_chat(body)
    shown: JSONObject = {"model": body.get("model"), "stream": body.get("stream", False)}
    shown |= chat.parameters
    shown["messages"] = [*chat.messages]
    if chat.tools:
        shown["tools"] = chat.tools
    return shown
