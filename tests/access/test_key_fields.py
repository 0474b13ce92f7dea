"""What a key's fields may hold, whoever sets them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from django.utils import timezone as django_timezone

from qwenproxy.access import key_fields
from qwenproxy.access.key_fields import InvalidKey
from qwenproxy.access.models import ApiKey, Limits

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOW_MS = 1_795_348_800_000


@pytest.fixture(autouse=True)
def _now(monkeypatch):
    monkeypatch.setattr(django_timezone, "now", lambda: NOW)


def made(**values):
    row = ApiKey(name="k", scopes="chat")
    key_fields.set_fields(row, values)
    return row


def refusal(**values):
    row = ApiKey(name="k", scopes="chat", tokens_per_day=5)
    with pytest.raises(InvalidKey) as caught:
        key_fields.set_fields(row, {"tokens_per_day": 7, **values})
    # All or nothing.
    assert row.tokens_per_day == 5
    return caught.value


def test_every_limit_of_the_model_can_be_set():
    assert set(key_fields.MAX_LIMITS) == set(Limits.__dataclass_fields__)


@pytest.mark.parametrize("name", key_fields.MAX_LIMITS)
@pytest.mark.parametrize("value", [None, 0, 1, 2**31 - 1])
def test_limits_are_whole_numbers_and_null_is_none(name, value):
    assert getattr(made(**{name: value}), name) == value


@pytest.mark.parametrize("name", key_fields.MAX_LIMITS)
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(-1, id="negative"),
        pytest.param(2**53, id="huge"),
        pytest.param(10**30, id="30 digits"),
        pytest.param(1.0, id="float"),
        pytest.param(True, id="bool"),
        pytest.param("60", id="text"),
        pytest.param([60], id="list"),
    ],
)
def test_other_limits_are_refused_by_name(name, value):
    error = refusal(**{name: value})
    assert error.field == name
    assert name in str(error)


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        pytest.param(NOW_MS + 1, NOW + timedelta(milliseconds=1), id="milliseconds"),
        pytest.param("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC), id="date"),
        pytest.param("2027-01-31T12:00", datetime(2027, 1, 31, 12, tzinfo=UTC), id="no zone"),
        pytest.param("2027-01-31T12:00:00Z", datetime(2027, 1, 31, 12, tzinfo=UTC), id="UTC"),
        pytest.param("2027-01-31T12:00:00+02:00", datetime(2027, 1, 31, 10, tzinfo=UTC), id="zone"),
        pytest.param("90m", NOW + timedelta(minutes=90), id="minutes"),
        pytest.param(" 30d ", NOW + timedelta(days=30), id="days"),
        pytest.param("2w", NOW + timedelta(weeks=2), id="weeks"),
        pytest.param(
            datetime(2027, 1, 1, tzinfo=timezone(timedelta(hours=1))),
            datetime(2026, 12, 31, 23, tzinfo=UTC),
            id="a form's",
        ),
        pytest.param(None, None, id="never"),
    ],
)
def test_expiry_is_read_in_each_of_its_forms(value, moment):
    assert made(expires_at=value).expires_at == moment


@pytest.mark.parametrize(
    ("value", "named"),
    [
        pytest.param(NOW_MS, "not in the future", id="now"),
        pytest.param(NOW_MS // 1000 + 999, "1970-01-21", id="seconds"),
        pytest.param("2026-11-22", "not in the future", id="today"),
        pytest.param("0d", "not in the future", id="no span"),
        pytest.param(-(10**30), "milliseconds", id="far past"),
        pytest.param(10**30, "milliseconds", id="far future"),
        pytest.param("9999999w", "milliseconds", id="beyond the calendar"),
        pytest.param("9999-12-31T23:00:00-05:00", "milliseconds", id="beyond it in UTC"),
        pytest.param("tomorrow", "milliseconds", id="words"),
        pytest.param("", "milliseconds", id="empty"),
        pytest.param(f"{NOW_MS}", "milliseconds", id="digits as text"),
        pytest.param(1e15, "milliseconds", id="float"),
        pytest.param(True, "milliseconds", id="bool"),
        pytest.param({}, "milliseconds", id="object"),
    ],
)
def test_other_expiries_are_refused(value, named):
    error = refusal(expires_at=value)
    assert error.field == "expires_at"
    assert named in str(error)


@pytest.mark.parametrize("name", key_fields.DAYS)
def test_days_are_whole_numbers_and_null_is_the_setting(name):
    for value in (None, 1, key_fields.MAX_DAYS):
        assert getattr(made(**{name: value}), name) == value
    for value in (0, -1, key_fields.MAX_DAYS + 1, 10**30, 1.0, True, "30", [30]):
        error = refusal(**{name: value})
        assert error.field == name
        assert name in str(error)


def test_models_are_kept_once_each_in_their_order():
    assert made(allowed_models=["qwen3-*", " qwq ", "qwen3-*"]).allowed_models == "qwen3-*\nqwq"
    assert made(allowed_models=None).allowed_models == made(allowed_models=[]).allowed_models == ""


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("qwen3-*", id="text"),
        pytest.param([1], id="number"),
        pytest.param([None], id="null"),
        pytest.param([["a"]], id="list"),
        pytest.param({"a": 1}, id="object"),
        pytest.param([""], id="empty"),
        pytest.param(["a\nb"], id="line break"),
        pytest.param(["a\u2028b"], id="line separator"),
        pytest.param(["a\x00"], id="NUL"),
        pytest.param(["\ud800"], id="lone surrogate"),
        pytest.param(["x" * 201], id="long"),
        pytest.param(["x"] * 101, id="many"),
    ],
)
def test_other_models_are_refused(value):
    assert refusal(allowed_models=value).field == "allowed_models"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("name", None, id="no name"),
        pytest.param("name", " ", id="blank name"),
        pytest.param("name", 5, id="number as name"),
        pytest.param("name", "a\ud800", id="lone surrogate in name"),
        pytest.param("scopes", None, id="no scopes"),
        pytest.param("scopes", "chat", id="scopes as text"),
        pytest.param("scopes", ["chat", 1], id="number as scope"),
        pytest.param("scopes", ["x" * 10_000], id="long scope"),
        pytest.param("recorded", None, id="recorded null"),
        pytest.param("recorded", "nothing", id="recorded unknown"),
        pytest.param("recorded", ["metadata"], id="recorded list"),
        pytest.param("id", 5, id="id"),
        pytest.param("secret_hash", "x", id="hash"),
        pytest.param("revoked_at", None, id="revocation"),
        pytest.param("limits", {}, id="unknown"),
    ],
)
def test_other_values_and_fields_are_refused_by_name(field, value):
    error = refusal(**{field: value})
    assert error.field == field
    assert len(str(error)) < 400


@pytest.mark.parametrize("text", ["", "5", "d", "-1d", "1.5d", "1y", "1d1h", "٣d", "99999999d"])
def test_a_span_has_one_number_and_one_unit(text):
    with pytest.raises(ValueError, match="24h"):
        key_fields.read_span(text)


def test_a_key_is_described_without_its_hashes():
    row = made(expires_at="1d", allowed_models=["a", "b"], tokens_per_day=0)
    row.secret_hash, row.previous_hash = "planted", "planted"
    row.created_at = row.previous_expires_at = NOW
    body = key_fields.describe(row)
    assert "planted" not in repr(body)
    assert body["state"] == "active"
    assert body["expires_at"] == NOW_MS + 86_400_000
    assert body["previous_expires_at"] is None
    assert body["allowed_models"] == ["a", "b"]
    assert (body["tokens_per_day"], body["tokens_per_month"]) == (0, None)


def test_the_state_of_a_key_changes_at_its_second():
    row = made(expires_at=NOW_MS + 1000)
    moments = [NOW, NOW + timedelta(milliseconds=999), NOW + timedelta(seconds=1)]
    assert [key_fields.state_of(row, moment) for moment in moments] == [
        "active",
        "active",
        "expired",
    ]
    row.revoked_at = NOW
    assert key_fields.state_of(row, NOW) == "revoked"
