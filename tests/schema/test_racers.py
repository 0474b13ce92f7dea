"""Processes that start together migrate once, whoever dies of them; with nothing to do they do not meet."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest

from qwenproxy.schema import locking
from tests.schema.conftest import CREATE, Project
from tests.schema.test_killed import run_module

EIGHT = {"processes": 8, "rounds": 20}


def race(**task: object) -> dict:
    return run_module("tests.schema.racers", {**EIGHT, **task})


def test_processes_that_start_together_migrate_once():
    assert race(rounds=2) == {"ended": {"0": 16}, "wrong": [], "twice": False}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_times():
    assert race() == {"ended": {"0": 160}, "wrong": [], "twice": False}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_when_the_one_that_migrates_is_killed_another_does():
    seed = int.from_bytes(os.urandom(4), "big")
    assert race(kills=True, seed=seed) == {
        "ended": {"0": 140, "-9": 20},
        "wrong": [],
        "twice": False,
    }, seed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_plain_django_fails_at_it():
    assert race(plain=True, rounds=2)["ended"] != {"0": 16}


@contextmanager
def lock_held(project: Project) -> Iterator[None]:
    if project.is_postgresql:
        key = zlib.crc32(b'"$user", public')
        key -= 2**32 if key >= 2**31 else 0
        with psycopg.connect(project.environ["DATABASE_URL"]) as holder:
            holder.execute("SELECT pg_advisory_lock(%s, %s)", [locking._ADVISORY_CLASS, key])
            yield
    else:
        path = f"{project.database}.migrate.lock"
        with closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            yield


@pytest.mark.slow
def test_with_nothing_to_do_none_takes_the_lock(any_project):
    assert any_project.run("migrate", "-v0").returncode == 0
    with lock_held(any_project):
        waiting = [any_project.start("migrate", "-v0", "--lock-wait", "0") for _ in range(8)]
        ended = [process.communicate(timeout=100)[1] for process in waiting]
        assert [process.returncode for process in waiting] == [0] * 8, ended
        # It is the lock that they would take.
        any_project.add_migration("0001_step", CREATE.format(number=1))
        assert any_project.run("migrate", "-v0", "--lock-wait", "0").returncode == 8
