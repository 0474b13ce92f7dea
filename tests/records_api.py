"""The records API by itself: its routers with an authentication that believes every client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from ninja import NinjaAPI
from ninja.security import APIKeyHeader

# It adds operations to these routers, which takes place before they serve any API.
import qwenproxy.api  # noqa: F401
from qwenproxy.access.auth import KeyInfo
from qwenproxy.access.models import ApiKey
from qwenproxy.errors import GatewayError, to_openai_error
from requests_app.api import router as requests_router
from sessions_app.api import router as sessions_router


class _BelievingAuth(APIKeyHeader):
    param_name = "X-Key"

    def authenticate(self, request: HttpRequest, key: str | None) -> KeyInfo | None:
        key_id, _, scopes = (key or "").partition(" ")
        return KeyInfo(int(key_id), "tests", frozenset(scopes.split()))


api = NinjaAPI(urls_namespace="records-tests", auth=_BelievingAuth())
api.add_router("", sessions_router)
api.add_router("", requests_router)


@api.exception_handler(GatewayError)
def _answer_error(request: HttpRequest, error: GatewayError) -> HttpResponse:
    return api.create_response(request, to_openai_error(error), status=error.http_status)


urlpatterns = [path("v1/", api.urls)]


async def _run_in_test_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return await sync_to_async(function)(*args, **kwargs)


class RecordsClient:
    """Calls the API as one key, on the test's own connection and inside its transaction."""

    def __init__(self, api_key: ApiKey, *scopes: str) -> None:
        self._client = Client(
            headers={"x-key": " ".join([str(api_key.pk), *(scopes or ["records"])])}
        )

    def get(self, url: str, **query: Any) -> Any:
        """Get and expect 200; return the body."""
        response = self._call("get", url, query)
        assert response.status_code == 200, response.content
        return response.json()

    def error(self, url: str, **query: Any) -> tuple[int, str | None]:
        """Get and expect an error in OpenAI's form; return status and code."""
        response = self._call("get", url, query)
        body = response.json()["error"]
        assert body["message"]
        expected = "not_found_error" if response.status_code == 404 else "invalid_request_error"
        assert body["type"] == expected
        return response.status_code, body["code"]

    def post(self, url: str) -> Any:
        return self._call("post", url, {})

    def delete(self, url: str) -> Any:
        return self._call("delete", url, {})

    def _call(self, method: str, url: str, query: dict[str, Any]) -> Any:
        with (
            patch("sessions_app.paging.read_in_db", _run_in_test_thread),
            patch("requests_app.api.read_in_db", _run_in_test_thread),
            patch("requests_app.api.report", _run_in_test_thread),
            patch("requests_app.api.run_in_db", _run_in_test_thread),
        ):
            return getattr(self._client, method)(f"/v1{url}", query or None)
