from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("requests_app", "0003_response_completed"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="request",
            options={"permissions": [("view_payload", "Can read and export what was said")]},
        ),
    ]
