"""Sessions whose content was removed, and those that are kept."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("sessions_app", "0002_session_user_id")]
    operations = [
        migrations.AddField(
            model_name="session",
            name="content_removed_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="session",
            name="pinned_at",
            field=models.DateTimeField(null=True),
        ),
    ]
