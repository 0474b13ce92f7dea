"""Filters of our pages: `qwenproxy.display` in templates."""

from __future__ import annotations

from django import template

from qwenproxy import display

register = template.Library()

for _filter in (
    display.ago,
    display.duration,
    display.local,
    display.number,
    display.percent,
    display.short,
    display.size,
):
    register.filter(_filter.__name__, _filter)
