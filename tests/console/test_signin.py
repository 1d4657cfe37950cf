"""Whom the provider's claims make somebody: what they see, for how long, and who is nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

from tests.console.opening import press, texts
from tokenlib import demo
from tokenlib.claims import StaffClaims
from tokenlib.config import Settings, SignIn
from tokenlib.console import process, session, signin
from tokenlib.console.signin import Closed, Identity
from tokenlib.db import statements
from tokenlib.errors import DatabaseUnavailable
from tokenlib.testing import TestDatabase
from tokenlib.tokens import Tokens

# Not far from the clock of the database, for which a token must not come from the future.
NOW = float(int(time.time()))
SETTINGS = SignIn(
    issuer="https://id.example.org",
    client_id="console",
    client_secret="secret",
    redirect_uri="https://tokens.example.org/oauth2callback",
    cookie_secret="c" * 32,
)
ADMIN, SUPPORT = demo.PERSONAS["admin"], demo.PERSONAS["support"]
MEMBER = "user.healthy@example.org"
ORGANIZATION = demo.SCENARIOS["healthy"].organization_id
Enter = Callable[..., AppTest]


def claims(email: str | None = ADMIN.email, **more: Any) -> dict[str, Any]:
    """What a provider says of somebody who signed in a minute ago, for an hour."""
    said = {
        "is_logged_in": True,
        "iss": "https://id.example.org",
        "aud": "console",
        "sub": "account 7",
        "iat": int(NOW) - 60,
        "exp": int(NOW) + 3600,
        "email": email,
        "email_verified": True,
        **more,
    }
    return {name: value for name, value in said.items() if value is not None}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved; and nobody in use or signed out before."""
    at = [NOW]
    monkeypatch.setattr(signin, "now", lambda: at[0])
    monkeypatch.setattr(signin, "sessions", signin.Sessions())
    return at


@pytest.fixture
def door(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Enter]]:
    """The console with a sign-in, whose settings can be others."""
    monkeypatch.setattr(signin, "key", lambda _cookies: "a session")

    def with_settings(**others: Any) -> Enter:
        own = Settings(
            tmp_path,
            database_url="postgresql://db.example.org/product",
            sign_in=replace(SETTINGS, **others),
        )
        process.gate.use(tokens, own)
        return enter

    def enter(user: dict[str, Any], page: str = "", **state: Any) -> AppTest:
        app = AppTest.from_file(str(process.FRAME), default_timeout=30)
        app.user = user
        for name, value in state.items():
            app.session_state[name] = value
        if page:
            app.switch_page(str(process.pages_folder() / page))
        app.run()
        assert not app.exception
        return app

    yield with_settings
    process.gate.forget()


@pytest.fixture
def enter(door: Callable[..., Enter]) -> Enter:
    """Come in with these claims."""
    return door()


def title(app: AppTest) -> str:
    (found,) = app.title
    return str(found.value)


def shows_nothing(app: AppTest) -> bool:
    return not [*app.metric, *app.dataframe, *app.text_input, *app.get("vega_lite_chart")]


@pytest.mark.parametrize(
    ("email", "role", "start"),
    [
        (ADMIN.email, "admin", "Overview"),
        (ADMIN.email.upper(), "admin", "Overview"),
        (SUPPORT.email, "support", "Overview"),
        (MEMBER, "member", "My tokens"),
    ],
)
def test_a_verified_address_is_who_the_tables_say(
    enter: Enter, email: str, role: str, start: str
) -> None:
    app = enter(claims(email))
    assert title(app) == start
    assert any(caption.value.endswith(f"· {role}") for caption in app.caption)
    assert [button.label for button in app.sidebar.button if button.key == "sign_out"] == [
        "Sign out"
    ]
    assert "Demo mode" not in texts(app)
    assert "persona_choice" not in [control.key for control in app.get("segmented_control")]


def test_the_address_makes_nobody_another_person(enter: Enter) -> None:
    app = enter(claims(SUPPORT.email))
    app.query_params[session.AS] = "admin"
    app.run()
    assert any(caption.value.endswith("· support") for caption in app.caption)
    app.switch_page(str(process.pages_folder() / "settings.py")).run()
    assert [warning.title for warning in app.warning] == ["Not for you"]


def test_support_gets_no_page_of_admins(enter: Enter) -> None:
    app = enter(claims(SUPPORT.email), "settings.py")
    assert [warning.title for warning in app.warning] == ["Not for you"]
    assert not app.dataframe


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ({}, Closed.SIGNED_OUT),
        (claims(is_logged_in=False), Closed.SIGNED_OUT),
        (claims(is_logged_in="true"), Closed.SIGNED_OUT),
        (claims(iss="https://other.example.org"), Closed.SIGNED_OUT),
        (claims(aud="another client"), Closed.SIGNED_OUT),
        (claims(aud=["another client"]), Closed.SIGNED_OUT),
        (claims(exp=int(NOW)), Closed.ENDED),
        (claims(exp=None), Closed.ENDED),
        (claims(exp="tomorrow"), Closed.ENDED),
        (claims(iat=None), Closed.ENDED),
        (claims(iat=int(NOW) - 8 * 3600), Closed.ENDED),
        (claims(email_verified=False), Closed.UNVERIFIED),
        (claims(email_verified=None), Closed.UNVERIFIED),
        (claims(email_verified="true"), Closed.UNVERIFIED),
        (claims("stranger@example.org"), Closed.UNKNOWN),
        (claims(None), Closed.UNKNOWN),
        (claims("%"), Closed.UNKNOWN),
        (claims("\u212aelvin@example.org"), Closed.UNKNOWN),
        (claims(None, sub=str(ADMIN.user_id)), Closed.UNKNOWN),
    ],
)
@pytest.mark.parametrize("page", ["", "health.py"])
def test_anybody_else_sees_why_and_nothing_more(
    enter: Enter, token_database: TestDatabase, user: dict[str, Any], said: Closed, page: str
) -> None:
    with token_database.connect() as owner:
        owner.execute("update tokenlib_staff set email = 'kelvin@example.org' where role = 'admin'")
        owner.execute(
            "update tokenlib_staff set email = %s, role = 'admin' where role = 'support'",
            (ADMIN.email,),
        )
    app = enter(user, persona="admin", subject=ADMIN.user_id)
    assert title(app) == said.value
    assert shows_nothing(app)
    assert signin.ADVICE[said] in texts(app)
    assert "Demo" not in texts(app)


def test_a_list_of_audiences_may_name_us(enter: Enter) -> None:
    assert title(enter(claims(aud=["api", "console"]))) == "Overview"


def test_a_provider_may_be_trusted_with_addresses(door: Callable[..., Enter]) -> None:
    assert title(door(trust_email=True)(claims(email_verified=None))) == "Overview"


def test_a_session_is_no_longer_than_the_operator_says(
    door: Callable[..., Enter], clock: list[float]
) -> None:
    app = door(session_minutes=10)(claims())
    assert title(app) == "Overview"
    clock[0] += 9 * 60 - 1
    assert title(app.run()) == "Overview"
    clock[0] += 1
    assert title(app.run()) == Closed.ENDED.value
    assert shows_nothing(app)


def test_a_session_ends_with_its_token(enter: Enter, clock: list[float]) -> None:
    app = enter(claims(), "health.py")
    clock[0] += 3599
    assert title(app.run()) == "Health"
    clock[0] += 1
    assert title(app.run()) == Closed.ENDED.value
    assert shows_nothing(app)


def test_a_claim_of_the_operators_choice_holds_the_user_id(door: Callable[..., Enter]) -> None:
    enter = door(user_claim="person")
    assert title(enter(claims(None, person=str(SUPPORT.user_id)))) == "Overview"
    assert title(enter(claims(person=str(uuid4())))) == Closed.UNKNOWN.value
    assert title(enter(claims(person="admin"))) == Closed.UNKNOWN.value
    assert title(enter(claims(sub=str(ADMIN.user_id)))) == Closed.UNKNOWN.value


def test_an_address_of_two_people_is_nobodys(enter: Enter, token_database: TestDatabase) -> None:
    with token_database.connect() as owner:
        owner.execute(
            "update user_profiles set email = %s where email = 'user.low@example.org'",
            (MEMBER.upper(),),
        )
    assert title(enter(claims(MEMBER))) == Closed.AMBIGUOUS.value


def test_a_tenants_row_takes_no_staff_persons_place(
    enter: Enter, token_database: TestDatabase
) -> None:
    with token_database.connect() as owner:
        for user, email in [
            (uuid4(), ADMIN.email),
            (uuid4(), ADMIN.email),
            (ADMIN.user_id, "mallory@example.org"),
        ]:
            owner.execute(
                "insert into user_profiles (id, organization_id, email, role)"
                " values (%s, %s, %s, 'admin')",
                (user, ORGANIZATION, email),
            )
    app = enter(claims())
    assert title(app) == "Overview"
    assert any(caption.value.endswith("· admin") for caption in app.caption)
    assert title(enter(claims("mallory@example.org"))) == Closed.UNKNOWN.value


def test_the_tenants_own_role_gives_none_here(enter: Enter, token_database: TestDatabase) -> None:
    with token_database.connect() as owner:
        owner.execute("update user_profiles set role = 'admin'")
    app = enter(claims(MEMBER, role="admin", roles=["admin"], groups=["admin"]))
    assert title(app) == "My tokens"


def test_rights_end_with_their_row(enter: Enter, token_database: TestDatabase) -> None:
    app = enter(claims(), "health.py")
    assert title(app) == "Health"
    with token_database.connect() as owner:
        owner.execute("delete from tokenlib_staff where user_id = %s", (ADMIN.user_id,))
    assert title(app.run()) == Closed.UNKNOWN.value
    with token_database.connect() as owner:
        owner.execute(
            "insert into tokenlib_staff (user_id, email, full_name, role)"
            " values (%s, %s, 'New', 'support')",
            (uuid4(), ADMIN.email),
        )
    app.run()
    assert any(caption.value.endswith("· support") for caption in app.caption)


@pytest.fixture
def admins_by_claim(token_database: TestDatabase) -> None:
    with token_database.connect() as owner:
        owner.execute(
            "insert into tokenlib_staff_claims values"
            " ('https://id.example.org', '{groups}', 'token admins', 'admin')"
        )


@pytest.mark.usefixtures("admins_by_claim")
@pytest.mark.parametrize("user_claim", [None, "person"])
def test_a_claim_that_the_owner_names_makes_staff(
    door: Callable[..., Enter],
    token_database: TestDatabase,
    user_claim: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enter = door(user_claim=user_claim)
    said = {"person": str(uuid4()), "name": "Grace", "groups": ["people", "token admins"]}
    app = enter(claims("grace@example.org", **said), "settings.py")
    assert title(app) == "Settings"
    assert any(caption.value.endswith("· admin") for caption in app.caption)
    other = enter(claims("alan@example.org", **said | {"sub": "8", "person": str(uuid4())}))
    assert title(other) == "Overview"
    with token_database.connect() as owner:
        # As an admin ends it on Settings.
        owner.execute(
            "select tokenlib.staff_set_staff(%s, user_id, null, null, null, null, 'left')"
            " from tokenlib_staff where full_name = 'Grace'",
            (ADMIN.user_id,),
        )
    assert title(app.run()) == Closed.UNKNOWN.value
    assert shows_nothing(app)
    database = process.gate.tokens().database
    monkeypatch.setattr(signin, "staff_claims", StaffClaims(lambda: database))
    assert title(app.run()) == Closed.UNKNOWN.value


@pytest.mark.parametrize("user_claim", [None, "person"])
def test_what_another_issuer_claims_gives_nothing_here(
    door: Callable[..., Enter], token_database: TestDatabase, user_claim: str | None
) -> None:
    """By the user's id and by the address: the rights are their issuer's."""
    enter, person = door(user_claim=user_claim), uuid4()
    with token_database.connect() as owner:
        owner.execute(
            "insert into tokenlib_staff (user_id, email, full_name, role, issuer, until, signed_at)"
            " values (%s, 'grace@example.org', 'Grace', 'admin', 'https://id.example.com',"
            " now() + interval '1 hour', now())",
            (person,),
        )
    app = enter(claims("grace@example.org", person=str(person)), "settings.py")
    assert title(app) == Closed.ELSEWHERE.value
    assert shows_nothing(app)
    with token_database.connect() as owner:
        owner.execute(
            "update tokenlib_staff set issuer = 'https://id.example.org' where user_id = %s",
            (person,),
        )
    assert title(app.run()) == "Settings"


@pytest.mark.usefixtures("admins_by_claim")
@pytest.mark.parametrize(
    "said",
    [
        {"groups": ["people"]},
        {"group": ["token admins"]},
        {"user_metadata": {"groups": ["token admins"]}},
        {"groups": ["token admins"], "iss": "https://id.example.org/"},
        {"groups": ["token admins"], "email_verified": False},
        {"groups": ["token admins"], "exp": int(NOW)},
    ],
)
def test_no_other_claim_does(enter: Enter, said: dict[str, Any]) -> None:
    app = enter(claims("grace@example.org", **said), "settings.py")
    assert title(app) in {Closed.UNKNOWN.value, Closed.UNVERIFIED.value, Closed.ENDED.value}
    assert shows_nothing(app)


def test_a_member_whose_address_changes_is_nobody(
    enter: Enter, token_database: TestDatabase
) -> None:
    app = enter(claims(MEMBER))
    assert title(app) == "My tokens"
    with token_database.connect() as owner:
        owner.execute(
            "update user_profiles set email = 'x@example.org' where email = %s", (MEMBER,)
        )
    assert title(app.run()) == Closed.UNKNOWN.value


def test_an_open_dialog_does_nothing_after_a_sign_out_elsewhere(
    enter: Enter, tokens: Tokens
) -> None:
    app = enter(claims(), "settings.py")
    before = len(tokens.switch_state().settings)
    app.query_params["id"] = str(ORGANIZATION)
    app.switch_page(str(process.pages_folder() / "organization.py")).run()
    press(app, "Grant tokens")
    app.text_input(key="action_reason").set_value("too late").run()
    signin.sessions.end("a session", NOW + 3600)
    next(one for one in app.button if one.key == "action_confirm").click().run()
    assert not app.exception
    with_reason = tokens.database.rows(
        "select 1 from public.ai_token_events where reason = 'too late'"
    )
    assert with_reason == []
    assert title(app) == Closed.ENDED.value
    assert len(tokens.switch_state().settings) == before


def test_a_fragment_asks_whether_the_session_holds(
    enter: Enter, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    user = claims()
    monkeypatch.setattr(signin, "identity", lambda own: signin.read(own, user, "one"))
    person = session.current()
    assert isinstance(person, session.Person)
    assert session.tokens() is process.gate.tokens()
    assert person.reports.wallets()
    clock[0] += 3600
    with pytest.raises(signin.SignedOut, match="Your session has ended"):
        session.tokens()
    with pytest.raises(signin.SignedOut):
        _ = person.reports


def test_what_was_signed_out_is_remembered_until_it_ends() -> None:
    asked: list[str] = []

    def elsewhere(session: str) -> bool:
        asked.append(session)
        return False

    sessions = signin.Sessions(elsewhere)
    assert sessions.holds("mine", 10, now=0)
    assert sessions.holds("mine", 10, now=0.9)
    assert asked == ["mine"]
    assert sessions.holds("mine", 10, now=1)
    assert asked == ["mine"] * 2
    sessions.end("mine", 10)
    assert not sessions.holds("mine", 10, now=1)
    assert sessions.holds("another", 20, now=11)
    assert sessions._ends == {"another": 20}
    assert sessions._ended == set()
    assert sessions._asked == {"another": 11}


def test_a_sign_out_in_another_process_ends_the_session_here(
    enter: Enter, tokens: Tokens, clock: list[float], token_database: TestDatabase
) -> None:
    app = enter(claims(), "settings.py")
    assert title(app) == "Settings"
    signed_out = statements("system")["sign_out"]
    for _ in range(2):
        tokens.database.call(
            signed_out, {"session": "a session", "life": timedelta(minutes=5)}, "repeatable"
        )
    clock[0] += signin.LOOK_SECONDS
    assert title(app.run()) == Closed.ENDED.value
    assert shows_nothing(app)
    # A process that was started only now knows it, too.
    assert not signin.Sessions().holds("a session", NOW + 60, NOW)
    with token_database.connect() as owner:
        owner.execute("update tokenlib_signed_out set until = now() - interval '1 second'")
    tokens.database.call(
        signed_out, {"session": "another", "life": timedelta(minutes=5)}, "repeatable"
    )
    with token_database.connect() as owner:
        left = owner.execute("select session from tokenlib_signed_out").fetchall()
    assert left == [("another",)]


def test_nobody_gets_in_while_the_database_does_not_tell(
    enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(_session: str) -> bool:
        raise DatabaseUnavailable("The database does not answer.")

    monkeypatch.setattr(signin, "sessions", signin.Sessions(silent))
    app = enter(claims())
    assert title(app) == "Not available"
    assert shows_nothing(app)


def test_only_a_cookie_that_the_console_signed_is_kept_as_signed_out(
    enter: Enter, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(signin, "sessions", signin.Sessions())
    signed = create_signed_value(SETTINGS.cookie_secret, "_streamlit_user", "{}").decode()
    forged = create_signed_value("d" * 32, "_streamlit_user", "{}").decode()
    table = "select session from public.tokenlib_signed_out"
    for cookies in ({"_streamlit_user": forged}, {"_streamlit_user": "x"}, {"other": signed}, {}):
        signin.sign_out(cookies, SETTINGS)
        assert tokens.database.rows(table) == []
    mine = {"_streamlit_user": signed, "_streamlit_xsrf": "x"}
    signin.sign_out(mine, SETTINGS)
    assert tokens.database.rows(table) == [{"session": signin.key(mine)}]
    assert not signin.sessions.holds(str(signin.key(mine)), signin.now() + 9, signin.now())


def test_a_session_is_known_by_all_parts_of_its_cookie() -> None:
    whole = {"_streamlit_user": "chunks-2", "_streamlit_user__1": "a", "_streamlit_user__2": "b"}
    known = signin.key(whole)
    assert known
    assert known == signin.key({**whole, "_streamlit_xsrf": "x", "_streamlit_user_tokens": "t"})
    assert known != signin.key({**whole, "_streamlit_user__2": "c"})
    assert signin.key({"_streamlit_xsrf": "x", "_streamlit_user_tokens": "t"}) is None


def test_without_a_cookie_nobody_is_signed_in(
    enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signin, "key", lambda _cookies: None)
    assert title(enter(claims())) == Closed.SIGNED_OUT.value


def test_an_identity_is_an_id_or_an_address() -> None:
    assert signin.read(SETTINGS, claims(), "x") == Identity(email=ADMIN.email)
