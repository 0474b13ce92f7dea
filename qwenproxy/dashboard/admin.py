"""Registers what Django brings along, in our form: users, groups and the audit log."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, User

from qwenproxy.dashboard.audit import AuditAdmin
from qwenproxy.dashboard.users import StaffAdmin, StaffGroupAdmin

# Django's own are registered first: its apps are named before ours.
admin.site.unregister(User)
admin.site.unregister(Group)
admin.site.register(User, StaffAdmin)
admin.site.register(Group, StaffGroupAdmin)
admin.site.register(LogEntry, AuditAdmin)
