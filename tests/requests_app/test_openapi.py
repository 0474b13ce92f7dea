from __future__ import annotations

import pytest

from tests.factories import make_session, make_turn
from tests.records_api import RecordsClient, api

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.records_api")]


@pytest.fixture(scope="module")
def document():
    return api.get_openapi_schema(path_prefix="/v1/")


def schema_of(document, path, method="get"):
    operation = document["paths"][path][method]
    content = operation["responses"][200]["content"]["application/json"]
    return document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]


def test_every_operation_is_documented(document):
    operations = {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        # What makes responses is the proxy's, and is there once the whole API was loaded.
        if method != "post"
    }
    assert set(operations) == {
        ("get", "/v1/sessions"),
        ("get", "/v1/sessions/{session_id}"),
        ("delete", "/v1/sessions/{session_id}"),
        ("delete", "/v1/sessions/{session_id}/pin"),
        ("get", "/v1/sessions/{session_id}/requests"),
        ("get", "/v1/sessions/{session_id}/stats"),
        ("get", "/v1/requests"),
        ("get", "/v1/requests/{reference}"),
        ("get", "/v1/requests/{reference}/response"),
        ("get", "/v1/responses"),
        ("get", "/v1/responses/stats"),
        ("get", "/v1/responses/{reference}"),
        ("delete", "/v1/responses/{reference}"),
        ("get", "/v1/responses/{reference}/record"),
        ("get", "/v1/responses/{reference}/input_items"),
        ("get", "/v1/stats"),
    }
    assert all(operation["description"] for operation in operations.values())


def test_query_parameters_are_documented(document):
    parameters = document["paths"]["/v1/requests"]["get"]["parameters"]
    assert {parameter["name"] for parameter in parameters if parameter["in"] == "query"} == {
        *("limit", "offset", "cursor", "orderBy", "order"),
        *("session_id", "model", "stream", "start_date", "end_date", "status", "api_key"),
    }


@pytest.mark.parametrize(
    "path",
    [
        "/sessions",
        "/sessions/{session_id}",
        "/sessions/{session_id}/requests",
        "/sessions/{session_id}/stats",
        "/requests",
        "/requests/{reference}",
        "/requests/{reference}/response",
        "/responses",
        "/responses/stats",
    ],
)
def test_answers_have_the_documented_members(document, path):
    response_row = make_turn(make_session())
    url = path.format(session_id=response_row.session_id, reference=response_row.request_id)
    body = RecordsClient(response_row.api_key).get(url)
    schema = schema_of(document, f"/v1{path}")
    assert set(body) == set(schema["properties"])
    if "data" in body:
        name = schema["properties"]["data"]["items"]["$ref"].rpartition("/")[2]
        assert set(body["data"][0]) == set(document["components"]["schemas"][name]["properties"])
