"""How long a key's sessions are kept."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("access", "0003_staff_permissions")]
    operations = [
        migrations.AddField(
            model_name="apikey",
            name="content_days",
            field=models.PositiveIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="apikey",
            name="record_days",
            field=models.PositiveIntegerField(blank=True, null=True),
        ),
    ]
