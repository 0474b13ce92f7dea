"""Deletion of a session with everything that hangs on it: one explicit statement per table.

Django's own cascade would load every row first. Texts and files that requests and messages share
(`Blob`) go with their last reference. A turn that runs meanwhile finds its session gone and ends unrecorded. What the session's
answers count in the statistics stays.
"""

from __future__ import annotations

from collections.abc import Collection

from django.conf import settings
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from requests_app import erasure
from requests_app.rollups import keep_counts

# In an order in which no row is left that names a deleted one.
_DELETIONS = (
    "DELETE FROM requests_app_partial WHERE response_id IN"
    " (SELECT id FROM requests_app_response WHERE session_id = %s)",
    "DELETE FROM requests_app_response WHERE session_id = %s",
    "DELETE FROM requests_app_request WHERE session_id = %s",
    "DELETE FROM requests_app_messagefile WHERE message_id IN"
    " (SELECT id FROM sessions_app_message WHERE session_id = %s)",
    "DELETE FROM sessions_app_message WHERE session_id = %s",
    # A client that names sessions itself may go on with this one's chat in another session.
    "UPDATE sessions_app_message SET upstream_chat_id = NULL WHERE upstream_chat_id IN"
    " (SELECT id FROM sessions_app_upstreamchat WHERE session_id = %s)",
    "DELETE FROM sessions_app_upstreamchat WHERE session_id = %s",
    "DELETE FROM sessions_app_session WHERE id = %s",
)
_BLOBS = """
SELECT system_id, tools_id FROM requests_app_request WHERE session_id = %s
UNION ALL
SELECT f.blob_id, NULL FROM sessions_app_message m
JOIN requests_app_messagefile f ON f.message_id = m.id WHERE m.session_id = %s
"""
# How the length of a text is asked for, in bytes.
BYTES = {"sqlite": "LENGTH(CAST({} AS BLOB))", "postgresql": "OCTET_LENGTH({})"}
_UNUSED_BLOBS = """
FROM requests_app_blob WHERE id IN ({marks})
 AND NOT EXISTS (SELECT 1 FROM requests_app_request q WHERE q.system_id = requests_app_blob.id)
 AND NOT EXISTS (SELECT 1 FROM requests_app_request q WHERE q.tools_id = requests_app_blob.id)
 AND NOT EXISTS (SELECT 1 FROM requests_app_messagefile f WHERE f.blob_id = requests_app_blob.id)
"""
_BLOBS_PER_STATEMENT = 500


def delete_session_rows(session_id: str, api_key_id: int | None) -> bool:
    """Delete a session in a transaction of this thread's connection; false where there is none.

    A session of another key than `api_key_id` counts as none; null stands for any key. Blocks.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        is_deleted = delete_session(cursor, session_id, api_key_id)
        if is_deleted and settings.SECURE_DELETE:
            transaction.on_commit(erasure.empty_log)
        return is_deleted


def delete_session(cursor: CursorWrapper, session_id: str, api_key_id: int | None) -> bool:
    """Do the same within a transaction that runs already."""
    select = "SELECT api_key_id FROM sessions_app_session WHERE id = %s"
    if connection.features.has_select_for_update:
        select += " FOR UPDATE"
    cursor.execute(select, [session_id])
    row = cursor.fetchone()
    if row is None or api_key_id not in (None, row[0]):
        return False
    delete_session_with_all(cursor, session_id)
    return True


def delete_session_with_all(cursor: CursorWrapper, session_id: str) -> int:
    """Do the same with a session that this transaction has locked.

    Returns:
        The bytes of the texts and files that went with their last reference.
    """
    cursor.execute(_BLOBS, [session_id, session_id])
    blob_ids = {blob_id for row in cursor.fetchall() for blob_id in row if blob_id}
    keep_counts(cursor, session_id)
    for statement in _DELETIONS:
        cursor.execute(statement, [session_id])
    return delete_unused_blobs(cursor, blob_ids)


def delete_unused_blobs(cursor: CursorWrapper, blob_ids: Collection[int]) -> int:
    """Delete those of them that nothing names any more; return how many bytes their texts have."""
    ordered, freed = sorted(blob_ids), 0
    select = f"SELECT SUM({BYTES[connection.vendor].format('body')}) {_UNUSED_BLOBS}"
    for start in range(0, len(ordered), _BLOBS_PER_STATEMENT):
        part = ordered[start : start + _BLOBS_PER_STATEMENT]
        marks = ", ".join(["%s"] * len(part))
        cursor.execute(select.format(marks=marks), part)
        (found,) = cursor.fetchone()
        if found is None:
            continue
        # A request or message that names a blob now commits before this statement, and keeps it, or after, and
        # finds its foreign key broken: the recorder then writes blob and request again.
        cursor.execute(f"DELETE {_UNUSED_BLOBS.format(marks=marks)}", part)
        freed += found
    return freed
