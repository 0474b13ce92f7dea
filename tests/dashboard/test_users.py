"""Users and groups in the browser: a new colleague gets a role in one form."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from qwenproxy.access import staff
from tests.access.test_staff import make_groups

pytestmark = pytest.mark.django_db

USERS, GROUPS = "/admin/auth/user/", "/admin/auth/group/"


def text_of(client, url):
    response = client.get(url)
    assert response.status_code == 200
    return response.content.decode()


@pytest.fixture(autouse=True)
def _groups():
    make_groups()


def test_a_new_user_is_staff_and_is_given_a_group_at_once(admin_client, client):
    page = text_of(admin_client, USERS + "add/")
    assert re.search(r'name="is_staff"[^>]*checked', page)
    assert "Auditor also reads" in page
    auditor = Group.objects.get(name="Auditor")
    assert f'name="groups" value="{auditor.pk}"' in page
    form = {"username": "anna", "password1": "pw-of-anna-1", "password2": "pw-of-anna-1"}
    form |= {"usable_password": "true", "is_staff": "on", "groups": [auditor.pk]}
    assert admin_client.post(USERS + "add/", form).status_code == 302
    anna = User.objects.get(username="anna")
    assert (anna.is_staff, anna.is_superuser) == (True, False)
    assert anna.has_perm(staff.VIEW_PAYLOAD)
    assert client.login(username="anna", password="pw-of-anna-1")


def test_no_password_comes_out_of_an_address(admin_client):
    page = text_of(admin_client, USERS + "add/?password1=planted&username=planted&is_superuser=on")
    assert "planted" not in page
    assert not re.search(r'name="is_superuser"[^>]*checked', page)


def test_the_list_tells_roles_with_the_same_queries_for_any_number(admin_client):
    def queries():
        with CaptureQueriesContext(connection) as captured:
            text_of(admin_client, USERS)
        return len(captured)

    User.objects.create_user("nobody")
    User.objects.create_user("alone", is_staff=True)
    few = queries()
    for name in ("Viewer", "Operator"):
        user = User.objects.create_user(f"of {name}", is_staff=True)
        user.groups.add(Group.objects.get(name=name))
    assert queries() == few
    page = text_of(admin_client, USERS)
    for role in ("superuser", "may not sign in here", "staff without a group", "Viewer"):
        assert f">{role}<" in page


def test_moments_are_no_fields(admin_client, admin_user):
    page = text_of(admin_client, f"{USERS}{admin_user.pk}/change/")
    assert "vDateField" not in page
    assert "Last login" in page


def test_users_and_groups_lead_to_each_other(admin_client):
    assert f'href="{GROUPS}"' in text_of(admin_client, USERS)
    assert f'href="{USERS}"' in text_of(admin_client, GROUPS)
    group = Group.objects.get(name="Viewer")
    assert "Auditor also reads" in text_of(admin_client, f"{GROUPS}{group.pk}/change/")


@pytest.mark.parametrize("number", [2**63, 2**64])
def test_a_permission_that_no_number_holds_is_refused(admin_client, number):
    form = {"name": "Readers", "permissions": [number]}
    answer = admin_client.post(f"{GROUPS}add/", form)
    assert answer.status_code == 200
    assert "Select a valid choice" in answer.content.decode()
