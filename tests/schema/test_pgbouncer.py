"""Behind a real PgBouncer that changes servers between transactions nothing migrates or serves."""

from __future__ import annotations

from tests.doubles.servers import pgbouncer
from tests.schema.conftest import CREATE, Project


def recorded(project: Project) -> list[tuple]:
    return project.query("SELECT name FROM django_migrations WHERE app = 'shop'")


def test_it_is_refused_whether_the_pool_is_busy_or_not(postgresql_project):
    project = postgresql_project
    assert project.run("migrate", "-v0").returncode == 0
    project.add_migration("0001_step", CREATE.format(number=1))
    direct = project.environ["DATABASE_URL"]
    with pgbouncer(direct, "transaction") as pooled:
        ended = project.run("migrate", DATABASE_URL=pooled)
        assert ended.returncode == 9, ended.stderr
        assert "QWENPROXY_MIGRATE_DATABASE_URL" in ended.stderr
        assert recorded(project) == []
        ended = project.run("migrate", DATABASE_URL=pooled, QWENPROXY_MIGRATE_DATABASE_URL=direct)
        assert ended.returncode == 0, ended.stderr
        # Nothing is left to be changed: what serves needs a lock of its own.
        ended = project.run("serve", DATABASE_URL=pooled, QWENPROXY_MIGRATE_DATABASE_URL=direct)
        assert ended.returncode == 9, ended.stderr
        assert "pool_mode = session" in ended.stderr
    assert recorded(project) == [("0001_step",)]


def test_a_pool_that_keeps_a_session_whole_is_none(postgresql_project):
    project = postgresql_project
    project.add_migration("0001_step", CREATE.format(number=1))
    with pgbouncer(project.environ["DATABASE_URL"], "session") as pooled:
        ended = project.run("migrate", "-v0", DATABASE_URL=pooled)
    assert ended.returncode == 0, ended.stderr
    assert recorded(project) == [("0001_step",)]
