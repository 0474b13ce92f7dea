"""What every page of the admin has: a content security policy, times in the reporting zone, and a page to
try again where the database does not answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from django.conf import settings
from django.db import DataError, OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.http.response import HttpResponseBase
from django.template import loader
from django.utils import timezone

logger = logging.getLogger(__name__)

# No exceptions: scripts and styles are files of this host, data comes in JSON elements.
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# The pages of API documentation come from django-ninja, whose scripts are inline.
_ELSEWHERE = ("/v1/", "/api/")


class AdminPages:
    """Middleware; `/v1` and `/api` have their own handler and do not come here, but for the documentation."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path.startswith(_ELSEWHERE):
            return self._get_response(request)
        with timezone.override(settings.REPORTING_ZONE):
            response = self._get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    def process_exception(
        self, request: HttpRequest, exception: Exception
    ) -> HttpResponseBase | None:
        """Tell of a database that is busy or away, or asked for what it cannot hold: no fault of the page."""
        if request.path.startswith(_ELSEWHERE):
            return None
        if isinstance(exception, DataError):
            # PostgreSQL has no NUL in texts, and refuses to compare with one.
            logger.warning("%s: the database refused what was asked: %s", request.path, exception)
            return HttpResponseBadRequest(loader.get_template("400.html").render())
        if not isinstance(exception, OperationalError):
            return None
        logger.error("%s: the database failed: %s", request.path, exception)
        return HttpResponse(
            loader.get_template("503.html").render(), status=503, headers={"Retry-After": "5"}
        )
