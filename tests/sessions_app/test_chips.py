from __future__ import annotations

from datetime import timedelta

import pytest
from django.db.models import Q
from django.http import QueryDict

from sessions_app.chips import NOTHING, Chips, Filter, key_filter
from tests.factories import START_MS, make_api_key

COLOURS = {"red": "Red", "blue": "Blue"}


def make_filter(name="colour", **fields):
    defaults = {
        "label": name.capitalize(),
        "choices": lambda value: COLOURS.items(),
        "condition": lambda value: Q((name, value)),
    }
    return Filter(name, **{**defaults, **fields})


def read(query="", *filters, default_span="24h"):
    return Chips(QueryDict(query), filters or [make_filter()], default_span)


def shown(chips):
    return {chip.name: chip for chip in chips.shown}


def test_the_default_time_is_not_in_the_address():
    chips = read()
    assert chips.window.start == chips.now - timedelta(hours=24)
    assert (chips.window.span, chips.window.text, chips.parameters) == ("24h", "24 h", {})
    assert (chips.clear_url, shown(chips)["span"].remove_url) == ("", "")


@pytest.mark.parametrize(
    ("query", "span"),
    [
        ("span=1h", "1h"),
        ("span=all", "all"),
        ("span=nonsense", "24h"),
        ("span=", "24h"),
        ("from=x&to=", "24h"),
        ("from=99999999999999999999", "24h"),
        ("from=999999999999999", "24h"),
        ("from=-1", "24h"),
        ("from=٣", "24h"),
        ("span=7d&span=1h", "1h"),
    ],
)
def test_spans(query, span):
    assert read(query).window.span == span


def test_from_and_to_go_before_a_span():
    chips = read(f"span=7d&from={START_MS}&to={START_MS + 60_000}&colour=red")
    assert chips.window.end - chips.window.start == timedelta(minutes=1)
    assert chips.window.text == "2026-11-01 12:00 – 2026-11-01 12:01"
    assert "span" not in chips.parameters
    assert chips.span_url("1h") == "?colour=red&span=1h"
    assert chips.window.condition("at") == Q(at__gte=chips.window.start, at__lt=chips.window.end)


def test_values_are_conditions_and_links():
    chips = read("colour=red&span=7d&older=1~1&unheard=of&q=abc")
    assert chips.condition_of_all_time() == Q(colour="red")
    chip = shown(chips)["colour"]
    assert chip.text == "Red"
    assert [(choice.label, choice.url, choice.is_current) for choice in chip.choices] == [
        ("all", "?q=abc&span=7d", False),
        ("Red", "?q=abc&span=7d&colour=red", True),
        ("Blue", "?q=abc&span=7d&colour=blue", False),
    ]
    assert chip.remove_url == "?q=abc&span=7d"
    assert chips.hidden == [("span", "7d"), ("colour", "red")]
    assert chips.clear_url == "?"


def test_hostile_values_are_shown_as_they_are_and_match_nothing():
    chips = read("colour=%00%3Cscript%3E")
    assert chips.condition_of_all_time() == NOTHING
    assert shown(chips)["colour"].text == "\ufffd<script>"
    long = shown(read("colour=" + "x" * 5000))["colour"]
    assert len(long.text) == 60
    assert read("colour=%20%20").values == {}
    assert read("q=a%00b").search == ""


def test_a_search_and_narrow_filters_begin_with_all_time():
    assert read("q=req_1").window.span == "all"
    assert read("q=req_1&span=1h").parameters == {"q": "req_1", "span": "1h"}
    narrow = make_filter("session", is_narrow=True, is_only_linked=True)
    assert read("session=a", narrow).window.span == "all"
    assert read("session=a&span=24h", narrow).parameters == {"span": "24h", "session": "a"}
    # Its chip is there where it is set.
    assert "session" not in shown(read("", narrow))
    assert shown(read("session=a", narrow))["session"].choices == []


@pytest.mark.parametrize(
    ("query", "is_countable"),
    [
        ("", True),
        ("span=all", True),
        ("span=all&fast=1", True),
        ("span=all&fast=1&quick=1", False),
        ("fast=1&quick=1&colour=red", True),
        ("span=7d&colour=red", False),
        ("span=7d&colour=red&q=req_1", True),
        ("from=1&colour=red", False),
        ("to=1&colour=red", False),
        ("from=1&to=86400001&colour=red", True),
    ],
)
def test_what_is_counted(query, is_countable):
    fast, quick = (make_filter(name, is_indexed=True) for name in ("fast", "quick"))
    assert read(query, fast, quick, make_filter()).is_countable is is_countable


@pytest.mark.django_db
def test_keys_are_found_by_id_and_by_name(django_assert_num_queries):
    keys = [make_api_key(f"key {n:03}") for n in range(60)]
    first, last = keys[0], keys[-1]
    chip = shown(read(f"key={first.pk}", key_filter()))["key"]
    assert chip.text == "key 000"
    # All, and fifty of them, each once.
    labels = [choice.label for choice in chip.choices]
    assert labels == ["all", *(f"key {n:03}" for n in range(50))]
    assert chip.placeholder
    with django_assert_num_queries(1):
        chip = shown(read(f"key={last.pk}", key_filter()))["key"]
    assert chip.text == "key 059"
    assert key_filter().condition(str(last.pk)) == Q(api_key=last.pk)
    assert key_filter().condition("key 059") == Q(api_key__name="key 059")
    assert shown(read("key=999999999999999999", key_filter()))["key"].text == "9" * 18
