import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("access", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="Session",
            fields=[
                ("id", models.CharField(max_length=36, primary_key=True, serialize=False)),
                (
                    "api_key",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="access.apikey",
                    ),
                ),
                ("external_id", models.TextField(null=True)),
                ("title", models.CharField(max_length=200)),
                ("message_count", models.IntegerField(default=0)),
                ("request_count", models.IntegerField(default=0)),
                ("context_digest", models.BinaryField(max_length=32)),
                ("created_at", models.DateTimeField()),
                ("last_accessed", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
            ],
            options={
                "indexes": [
                    models.Index(fields=["created_at", "id"], name="session_created"),
                    models.Index(fields=["last_accessed", "id"], name="session_accessed"),
                    models.Index(
                        fields=["api_key", "created_at", "id"], name="session_key_created"
                    ),
                    models.Index(
                        fields=["api_key", "last_accessed", "id"], name="session_key_accessed"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="UpstreamChat",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("chat_id", models.CharField(max_length=100)),
                (
                    "session",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, to="sessions_app.session"
                    ),
                ),
                (
                    "account",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="access.upstreamaccount",
                    ),
                ),
                ("model", models.CharField(max_length=200)),
                ("context_digest", models.BinaryField(max_length=32)),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("account", "chat_id"), name="upstream_chat_unique"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Message",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "session",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="sessions_app.session",
                    ),
                ),
                (
                    "parent",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="children",
                        to="sessions_app.message",
                    ),
                ),
                ("digest", models.BinaryField(max_length=32)),
                ("role", models.CharField(max_length=20)),
                ("dialect", models.CharField(max_length=12)),
                ("position", models.IntegerField()),
                ("given", models.BooleanField(default=False)),
                (
                    "upstream_chat",
                    models.ForeignKey(
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        to="sessions_app.upstreamchat",
                    ),
                ),
                ("upstream_id", models.CharField(max_length=100, null=True)),
                ("upstream_parent_id", models.CharField(max_length=100, null=True)),
                ("created_at", models.DateTimeField()),
                ("content", models.TextField()),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("role", "user")),
                        fields=["session", "id"],
                        name="message_user",
                    ),
                    models.Index(
                        condition=models.Q(("given", True)),
                        fields=["digest", "id"],
                        name="message_given",
                    ),
                    models.Index(
                        condition=models.Q(("upstream_chat__isnull", False)),
                        fields=["upstream_chat"],
                        name="message_chat",
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(fields=("session", "digest"), name="message_unique")
                ],
            },
        ),
        migrations.AddField(
            model_name="session",
            name="last_reply",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="sessions_app.message",
            ),
        ),
    ]
