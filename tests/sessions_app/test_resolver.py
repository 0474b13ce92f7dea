"""Which session a history belongs to, and what is stored for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from requests_app.deletion import delete_session_rows
from requests_app.models import Request, Response
from requests_app.writes import ChatRow
from sessions_app.models import Message, Session, UpstreamChat
from sessions_app.resolver import explicit_session_id
from tests.factories import make_account, make_api_key
from tests.turns import (
    assistant,
    close_all,
    make_closing,
    make_opening,
    make_worker,
    open_all,
    take_turn,
    user,
)

pytestmark = pytest.mark.django_db(transaction=True)

SYSTEM = {"role": "system", "content": "be brief"}
HI, HELLO = user("hi"), assistant("hello")


@pytest.fixture(autouse=True)
def _worker(transactional_db):
    make_worker()


@pytest.fixture
def key():
    return make_api_key()


def matches():
    return list(Request.objects.order_by("id").values_list("match", flat=True))


def test_a_history_without_answers_is_new_each_time(key):
    first, second = (take_turn(key, HI, answer="hello") for _ in range(2))
    assert first.match == second.match == "new"
    assert first.session_id != second.session_id


def test_our_answer_in_the_history_continues_its_session(key):
    first = take_turn(key, SYSTEM, HI, answer="hello")
    second = take_turn(key, SYSTEM, HI, HELLO, user("more"), answer="well")
    assert (second.match, second.session_id) == ("continued", first.session_id)
    assert [m.content for m in Message.objects.order_by("position")] == [
        '"hi"', '"hello"', '"more"', '"well"',
    ]  # fmt: skip
    session = Session.objects.get()
    assert (session.message_count, session.request_count) == (4, 2)
    assert session.last_reply.content == '"well"'


def test_regenerating_gives_the_question_a_second_answer_in_the_same_session(key):
    take_turn(key, HI, answer="hello")
    turns = [take_turn(key, HI, HELLO, user("more"), answer=text) for text in ("a", "b")]
    assert [turn.match for turn in turns] == ["continued", "forked"]
    assert len({turn.session_id for turn in turns}) == 1
    more = Message.objects.get(content='"more"')
    assert sorted(more.children.values_list("content", flat=True)) == ['"a"', '"b"']


def test_the_same_answer_regenerated_is_stored_once_and_answers_both(key):
    take_turn(key, HI, answer="hello")
    for _ in range(2):
        take_turn(key, HI, HELLO, user("more"), answer="same")
    assert Message.objects.count() == 4
    assert Response.objects.filter(reply__content='"same"').count() == 2


def test_an_edit_below_an_answer_forks_and_one_above_starts_anew(key):
    first = take_turn(key, HI, answer="hello")
    take_turn(key, HI, HELLO, user("more"), answer="well")
    below = take_turn(key, HI, HELLO, user("edited"), answer="then")
    above = take_turn(key, user("hi, edited"), HELLO, user("more"), answer="x")
    assert (below.match, below.session_id) == ("forked", first.session_id)
    assert above.match == "imported"
    assert above.session_id != first.session_id


def test_each_branch_goes_on_from_its_own_answer(key):
    take_turn(key, HI, answer="hello")
    for text in ("a", "b"):
        take_turn(key, HI, HELLO, user(text), answer=f"re {text}")
    for text in ("a", "b"):
        turn = take_turn(
            key, HI, HELLO, user(text), assistant(f"re {text}"), user("on"), answer="ok"
        )
        assert turn.match == "continued"
        leaf = Request.objects.latest("id").prompt
        assert leaf.parent.content == f'"re {text}"'
    assert Session.objects.count() == 1


def test_only_answers_that_were_given_identify_a_conversation(key):
    few_shot = [user("2+2"), assistant("4")]
    first = take_turn(key, *few_shot, user("3+3"), answer="6")
    second = take_turn(key, *few_shot, user("4+4"), answer="8")
    assert first.match == second.match == "imported"
    assert first.session_id != second.session_id
    third = take_turn(key, *few_shot, user("3+3"), assistant("6"), user("5+5"), answer="10")
    assert (third.match, third.session_id) == ("continued", first.session_id)


def test_a_deeper_invented_answer_does_not_hide_ours(key):
    first = take_turn(key, HI, answer="hello")
    history = [HI, HELLO, user("a"), assistant("invented"), user("b"), assistant("too")]
    turn = take_turn(key, *history, user("c"), answer="ok")
    assert turn.session_id == first.session_id
    assert (turn.resolution.answer, turn.resolution.stored) == (1, 2)
    # From now on the invented ones are known as well, yet not as ours.
    assert Message.objects.filter(given=True).count() == 2


def test_a_history_that_was_cut_at_the_front_is_another_line(key):
    take_turn(key, HI, answer="hello")
    take_turn(key, HI, HELLO, user("more"), answer="well")
    assert take_turn(key, user("more"), assistant("well"), user("x")).match == "imported"


def test_two_keys_with_the_same_texts_never_meet(key):
    other = make_api_key()
    first = take_turn(key, HI, answer="hello")
    second = take_turn(other, HI, HELLO, user("more"))
    assert second.match == "imported"
    assert second.session_id != first.session_id
    digests = [bytes(digest) for digest in Message.objects.values_list("digest", flat=True)]
    assert len(set(digests)) == len(digests) == 6


def test_two_users_of_one_key_never_meet(key):
    first = take_turn(key, HI, answer="hello", user_id="ann")
    for other in ("bob", None):
        turn = take_turn(key, HI, HELLO, user("more"), user_id=other)
        assert turn.match == "imported"
        assert turn.session_id != first.session_id
    own = take_turn(key, HI, HELLO, user("more"), user_id="ann")
    assert own.session_id == first.session_id


def test_two_users_who_name_the_same_session_never_meet(key):
    turns = [take_turn(key, HI, external_id="default", user_id=name) for name in ("ann", "bob")]
    assert turns[0].session_id != turns[1].session_id
    again = take_turn(key, HI, external_id="default", user_id="ann")
    assert again.session_id == turns[0].session_id
    # Nor by an id of ours that one of them got hold of.
    stolen = take_turn(key, HI, external_id=turns[0].session_id, user_id="bob")
    assert stolen.session_id != turns[0].session_id


def test_two_keys_that_name_the_same_session_never_meet(key):
    other = make_api_key()
    named = [take_turn(k, HI, external_id="default") for k in (key, other)]
    assert named[0].session_id != named[1].session_id
    stolen = take_turn(other, HI, external_id=named[0].session_id)
    assert stolen.session_id not in {turn.session_id for turn in named}


def test_our_own_session_id_may_be_handed_back(key):
    first = take_turn(key, HI, answer="hello")
    again = take_turn(key, user("unrelated"), external_id=first.session_id)
    assert (again.match, again.session_id) == ("explicit", first.session_id)
    session = Session.objects.get()
    assert session.external_id is None
    assert session.request_count == 2


@pytest.mark.parametrize(
    "external_id",
    [
        pytest.param("nul \x00", id="nul"),
        pytest.param("half a pair \ud83d", id="lone surrogate"),
        pytest.param("x" * 5000, id="long"),
        pytest.param("会话", id="chinese"),
    ],
)
def test_any_text_may_name_a_session(key, external_id):
    name = explicit_session_id(key.pk, None, external_id)
    assert name == explicit_session_id(key.pk, None, external_id)
    opening = make_opening(key, HI, external_id=external_id)
    # As the request path does: columns hold neither.
    opening.external_id = external_id.replace("\x00", "\ufffd").replace("\ud83d", "\ufffd")
    assert open_all(opening)[0].match == "explicit"


def test_a_named_session_takes_whatever_is_sent(key):
    turns = [
        take_turn(key, HI, answer="hello", external_id="mine"),
        take_turn(key, HI, HELLO, user("more"), answer="well", external_id="mine"),
        take_turn(key, user("other"), answer="y", external_id="mine"),
        take_turn(key, user("x"), assistant("canned"), user("z"), answer="z", external_id="mine"),
    ]
    assert {turn.match for turn in turns} == {"explicit"}
    assert Session.objects.count() == 1
    assert [turn.resolution.answer for turn in turns] == [-1, 1, -1, -1]
    # A turn that names none finds the named one by its answer.
    assert take_turn(key, HI, HELLO, user("more")).session_id == turns[0].session_id


def test_an_answer_of_another_session_is_copied_into_the_named_one(key):
    first = take_turn(key, HI, answer="hello")
    named = take_turn(key, HI, HELLO, user("more"), answer="well", external_id="mine")
    assert named.session_id != first.session_id
    assert named.resolution.answer == 1
    line = Message.objects.filter(session=named.session_id).order_by("position")
    assert [m.content for m in line] == ['"hi"', '"hello"', '"more"', '"well"']


def test_concurrent_first_turns_that_name_a_session_meet_in_it(key):
    openings = [make_opening(key, user(f"q{i}"), external_id="mine") for i in range(5)]
    openings += [make_opening(key, user("q0"), external_id="mine")]
    opened = open_all(*openings)
    assert len({o.session_id for o in opened}) == 1
    session = Session.objects.get()
    assert (session.request_count, session.external_id) == (6, "mine")
    assert Message.objects.count() == 5


@pytest.mark.parametrize("one_batch", [True, False], ids=["one batch", "one by one"])
def test_many_conversations_that_begin_alike_stay_apart(key, one_batch):
    for _ in range(40):
        take_turn(key, HI, answer="hello")
    openings = [make_opening(key, HI, HELLO, user(f"mine is {i}")) for i in range(40)]
    if one_batch:
        opened = open_all(*openings)
    else:
        opened = [open_all(opening)[0] for opening in openings]
    assert len({o.session_id for o in opened}) == 40
    assert {o.match for o in opened} == {"continued"}
    close_all(
        *(
            make_closing(opening, o, f"yours is {i}")
            for i, (opening, o) in enumerate(zip(openings, opened, strict=True))
        )
    )
    for i, before in enumerate(opened):
        turn = take_turn(
            key, HI, HELLO, user(f"mine is {i}"), assistant(f"yours is {i}"), user("on")
        )
        assert turn.session_id == before.session_id
    assert Session.objects.count() == 40


def test_of_sessions_that_begin_alike_the_one_with_the_same_context_is_chosen(key):
    mine = take_turn(key, SYSTEM, HI, answer="hello")
    take_turn(key, HI, answer="hello")
    assert take_turn(key, SYSTEM, HI, HELLO, user("on")).session_id == mine.session_id


def test_an_answer_taken_back_by_deletion_is_found_no_more(key):
    first = take_turn(key, HI, answer="hello")
    assert delete_session_rows(first.session_id, key.pk)
    assert take_turn(key, HI, HELLO, user("more")).match == "imported"


def test_a_failed_turn_leaves_the_question_and_may_be_tried_again(key):
    opening = make_opening(key, HI)
    (opened,) = open_all(opening)
    close_all(make_closing(opening, opened, None))
    assert Message.objects.get().content == '"hi"'
    take_turn(key, HI, answer="hello")
    take_turn(key, HI, HELLO, user("a"), answer="b")
    assert Message.objects.filter(given=True).count() == 2


def test_a_partial_answer_sent_back_after_a_stop_continues(key):
    opening = make_opening(key, user("tell"))
    (opened,) = open_all(opening)
    close_all(make_closing(opening, opened, "Once upon a ", status="cancelled"))
    turn = take_turn(key, user("tell"), assistant("Once upon a"), user("go on"))
    assert (turn.match, turn.session_id) == ("continued", opened.session_id)


def test_system_messages_alone_are_a_turn(key):
    first = take_turn(key, SYSTEM, answer="ready")
    second = take_turn(key, SYSTEM, assistant("ready"), user("go"), answer="gone")
    assert (second.match, second.session_id) == ("continued", first.session_id)
    assert Request.objects.order_by("id").first().prompt is None


def test_a_history_that_ends_in_our_answer_is_stored_whole_already(key):
    first = take_turn(key, HI, answer="hello")
    turn = take_turn(key, HI, HELLO, answer=" there")
    assert (turn.session_id, turn.resolution.stored) == (first.session_id, 2)
    assert Request.objects.latest("id").prompt.content == '"hello"'


def test_a_very_long_history_is_searched_to_its_beginning(key):
    first = take_turn(key, HI, answer="hello")
    history = [HI, HELLO]
    for i in range(1200):
        history += [user(f"u{i}"), assistant(f"a{i}")]
    turn = take_turn(key, *history, user("end"))
    assert (turn.session_id, turn.resolution.answer) == (first.session_id, 1)
    assert Message.objects.filter(session=first.session_id).count() == 2404


class TestUpstreamChats:
    @pytest.fixture
    def account(self, transactional_db):
        return make_account(kind="qwen_web")

    def closing(self, account, number=1):
        return {
            "chat": ChatRow("chat-1", account.pk, "qwen3-max", b"context"),
            "upstream_id": f"response-{number}",
            "upstream_parent_id": f"user-{number}",
        }

    def test_the_chat_of_an_answer_is_known_to_the_next_turn(self, key, account):
        take_turn(key, HI, answer="hello", closing=self.closing(account))
        chat = take_turn(key, HI, HELLO, user("on")).resolution.chat
        assert (chat.chat_id, chat.upstream_id, chat.upstream_parent_id, chat.index) == (
            "chat-1", "response-1", "user-1", 1,
        )  # fmt: skip
        assert (chat.account_id, chat.model, chat.context_digest) == (
            account.pk, "qwen3-max", b"context",
        )  # fmt: skip

    def test_a_chat_of_an_expired_session_is_let_go(self, key, account):
        take_turn(key, HI, answer="hello", closing=self.closing(account))
        Session.objects.update(expires_at=datetime.now(UTC) - timedelta(seconds=1))
        turn = take_turn(key, HI, HELLO, user("on"))
        assert turn.match == "continued"
        assert turn.resolution.chat is None
        # The session lives again, and with it the chats it gets from now on.
        assert Session.objects.get().expires_at > datetime.now(UTC)

    def test_a_named_session_goes_on_from_its_own_answer(self, key, account):
        take_turn(key, HI, answer="hello", closing=self.closing(account), external_id="mine")
        turn = take_turn(key, HI, HELLO, user("on"), external_id="mine")
        assert turn.resolution.chat.chat_id == "chat-1"

    def test_an_account_deleted_in_mid_turn_leaves_the_answer_without_chat(self, key, account):
        opening = make_opening(key, HI)
        (opened,) = open_all(opening)
        closing = make_closing(
            opening, opened, "hello", account_id=account.pk, **self.closing(account)
        )
        account.delete()
        assert close_all(closing) == 0
        reply = Response.objects.get().reply
        assert (reply.content, reply.upstream_chat) == ('"hello"', None)
        assert Request.objects.get().account is None
        assert UpstreamChat.objects.count() == 0
