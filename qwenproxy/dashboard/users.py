"""Who may sign in here, and as what: Django's users and groups, with the choices that matter at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.forms import AdminUserCreationForm
from django.contrib.auth.models import Group, User
from django.core.exceptions import ValidationError
from django.db.models import Field, ManyToManyField, QuerySet
from django.forms import CheckboxSelectMultiple, Media, ModelMultipleChoiceField
from django.http import HttpRequest
from django.utils.safestring import SafeString

from qwenproxy import display
from qwenproxy.access.admin_keys import MEDIA

# Generic for the type checker alone.
if TYPE_CHECKING:
    UserModelAdmin = UserAdmin[User]
    UserCreationForm = AdminUserCreationForm[User]
    MultipleChoiceField = ModelMultipleChoiceField[Any]
else:
    UserModelAdmin, UserCreationForm = UserAdmin, AdminUserCreationForm
    MultipleChoiceField = ModelMultipleChoiceField

_ROLES = (
    "Viewer sees lists, counters and statistics, and nothing of what was said. Auditor also reads "
    "conversations and bodies, exports them, and reads the audit log. Operator also manages API keys and "
    "upstream accounts, and uses the playground. Users, groups and deletion are a superuser's."
)
_ACTIVE = ("is_active", "is_staff", "is_superuser", "groups")


class _Choices(MultipleChoiceField):
    """Refuses numbers that SQLite cannot hold as it refuses those that nothing has."""

    def clean(self, value: Any) -> Any:
        try:
            return super().clean(value)
        except OverflowError as exc:
            message = "Select a valid choice. One of them is not among the available choices."
            raise ValidationError(message, code="invalid_choice") from exc


class StaffCreationForm(UserCreationForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Django's script of the page does it as well; browsers complain of two.
        del self.fields["username"].widget.attrs["autofocus"]


class StaffAdmin(UserModelAdmin):
    add_form = StaffCreationForm
    list_display = ("username", "email", "role", "is_active", "last_sign_in")
    list_filter = ("is_active", "is_superuser", "groups")
    list_select_related = False
    ordering = ("username",)
    show_full_result_count = False
    # Boxes to tick instead: the two lists that Django makes of one have labels that screen readers may
    # not read.
    filter_horizontal = ()
    # As times of the past; two inputs for one moment would have one label.
    readonly_fields = ("last_login", "date_joined")
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("May", {"fields": _ACTIVE}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        ("Single permissions", {"fields": ("user_permissions",), "classes": ("collapse",)}),
        ("Times", {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = (
        (
            None,
            {
                "classes": ("wide",),
                "fields": ("username", "usable_password", "password1", "password2"),
            },
        ),
        ("May", {"classes": ("wide",), "fields": ("is_staff", "groups", "is_superuser")}),
    )

    change_list_template = "admin/access/users.html"

    @property
    def media(self) -> Media:
        return super().media + MEDIA

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        return super().get_queryset(request).prefetch_related("groups")

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        # Nobody else has anything to do here; and no password out of an address.
        return {"is_staff": True}

    def formfield_for_manytomany(
        self, db_field: ManyToManyField[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> Any:
        if db_field.name in ("groups", "user_permissions"):
            kwargs |= {"widget": CheckboxSelectMultiple(), "form_class": _Choices}
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def formfield_for_dbfield(
        self, db_field: Field[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if field is not None and db_field.name == "is_staff":
            field.label, field.help_text = "Staff", "May sign in to the admin."
        if field is not None and db_field.name == "groups":
            # Else Django tells how to select several in a list that is none.
            field.help_text = _ROLES
        return field

    @admin.display(description="role")
    def role(self, user: User) -> str:
        if user.is_superuser:
            return "superuser"
        if not user.is_staff:
            return "may not sign in here"
        return ", ".join(group.name for group in user.groups.all()) or "staff without a group"

    @admin.display(description="last sign-in", ordering="last_login")
    def last_sign_in(self, user: User) -> SafeString:
        return display.ago(user.last_login)


class StaffGroupAdmin(GroupAdmin):
    show_full_result_count = False
    filter_horizontal = ()
    change_list_template = "admin/access/users.html"

    @property
    def media(self) -> Media:
        return super().media + MEDIA

    def formfield_for_manytomany(
        self,
        db_field: ManyToManyField[Any, Any],
        request: HttpRequest | None = None,
        **kwargs: Any,
    ) -> Any:
        kwargs |= {"widget": CheckboxSelectMultiple(), "form_class": _Choices}
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def get_fieldsets(self, request: HttpRequest, obj: Group | None = None) -> Any:
        return [(None, {"fields": ("name", "permissions"), "description": _ROLES})]
