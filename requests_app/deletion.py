"""Deletion of a session with everything that hangs on it: one explicit statement per table.

Django's own cascade would load every row first. Texts and files that requests and messages share
(`Blob`) go with their last reference. A turn that runs meanwhile finds its session gone and ends unrecorded. What the session's
answers count in the statistics stays.
"""

from __future__ import annotations

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

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
_BLOB_DELETION = """
DELETE FROM requests_app_blob WHERE id IN ({marks})
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
        return delete_session(cursor, session_id, api_key_id)


def delete_session(cursor: CursorWrapper, session_id: str, api_key_id: int | None) -> bool:
    """Do the same within a transaction that runs already."""
    select = "SELECT api_key_id FROM sessions_app_session WHERE id = %s"
    if connection.features.has_select_for_update:
        select += " FOR UPDATE"
    cursor.execute(select, [session_id])
    row = cursor.fetchone()
    if row is None or api_key_id not in (None, row[0]):
        return False
    cursor.execute(_BLOBS, [session_id, session_id])
    blob_ids = sorted({blob_id for row in cursor.fetchall() for blob_id in row if blob_id})
    keep_counts(cursor, session_id)
    for statement in _DELETIONS:
        cursor.execute(statement, [session_id])
    for start in range(0, len(blob_ids), _BLOBS_PER_STATEMENT):
        part = blob_ids[start : start + _BLOBS_PER_STATEMENT]
        # A request or message that names a blob now commits before this statement, and keeps it, or after, and
        # finds its foreign key broken: the recorder then writes blob and request again.
        cursor.execute(_BLOB_DELETION.format(marks=", ".join(["%s"] * len(part))), part)
    return True
