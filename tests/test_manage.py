"""What holds for every command."""

from __future__ import annotations

import os

import django.core.management

import manage


def test_what_a_command_makes_is_its_user_s_alone(monkeypatch):
    masks = []
    before = os.umask(0o022)
    try:
        monkeypatch.setattr(
            django.core.management,
            "execute_from_command_line",
            lambda argv: masks.append(os.umask(0o022)),
        )
        manage.main()
    finally:
        os.umask(before)
    assert masks == [0o077]
