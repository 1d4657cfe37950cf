"""What each request passes first: the demo stays on its machine, the way outlives the sign-in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send
from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

from tokenlib.config import Settings, SignIn
from tokenlib.console import door, process, signin
from tokenlib.errors import DatabaseUnavailable
from tokenlib.tokens import Tokens

HOME = "https://tokens.example.org"
SIGN_IN = SignIn(
    issuer="https://id.example.org",
    client_id="console",
    client_secret="client secret",
    redirect_uri=f"{HOME}/oauth2callback",
    cookie_secret="c" * 32,
)
DEEP = "/organization?id=7&view=Ledger"


class App:
    """What stands behind the door: answers with a redirect to the start page."""

    def __init__(self, status: int = 302) -> None:
        self.status = status
        self.reached = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.reached += 1
        headers = [(b"location", b"/"), (b"set-cookie", b"other=1")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """A console with a sign-in; its gate is never asked."""
    settings = Settings(tmp_path, sign_in=SIGN_IN)
    serve(settings)
    yield settings
    process.gate.forget()


def serve(settings: Settings) -> None:
    process.gate.use(None, settings)  # type: ignore[arg-type]


def ask(app: App, path: str, query: str = "", **more: Any) -> list[Message]:
    """One request through the door, and what came back."""
    headers = {name: more.pop(name) for name in ("referer", "cookie") if name in more}
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), text.encode()) for name, text in headers.items()],
        "server": ("127.0.0.1", 8501),
        **more,
    }
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    anyio.run(door.Door(app), scope, receive, send)
    return sent


def header(sent: list[Message], name: str) -> list[str]:
    return [text.decode() for key, text in sent[0]["headers"] if key.decode() == name]


def cookie(sent: list[Message]) -> str:
    """The cookie with the way, as the browser gets it."""
    (found,) = [text for text in header(sent, "set-cookie") if text.startswith(door.WAY)]
    return found


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("address", "passes"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("/run/tokenlib.sock", True),
        ("10.0.0.7", False),
        ("0.0.0.0", False),
        ("::ffff:10.0.0.7", False),
        ("fe80::1", False),
    ],
)
def test_the_demos_people_answer_their_own_machine_alone(
    settings: Settings, kind: str, address: str, passes: bool
) -> None:
    serve(replace(settings, sign_in=None))
    app = App()
    sent = ask(app, "/", type=kind, server=(address, 8501))
    assert app.reached == passes
    if not passes and kind == "http":
        assert sent[0]["status"] == 403
        assert sent[1]["body"].decode() == door.REFUSED
    elif not passes:
        assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    "others", [{"open_demo": True}, {"sign_in": SIGN_IN}, {"database_url": "postgresql://h/d"}]
)
def test_others_answer_everybody(settings: Settings, others: dict[str, Any]) -> None:
    serve(replace(settings, **{"sign_in": None, **others}))
    app = App()
    ask(app, "/", server=("10.0.0.7", 8501))
    assert app.reached == 1


@pytest.mark.parametrize(
    ("path", "passes"),
    [("/api", True), ("/api/v1/health", True), ("/apis", False), ("/_stcore/stream", False)],
)
def test_the_api_asks_for_credentials_itself(settings: Settings, path: str, passes: bool) -> None:
    serve(replace(settings, sign_in=None))
    app = App()
    ask(app, path, server=("10.0.0.7", 8501))
    assert app.reached == passes


def test_the_page_that_asked_is_kept_through_the_sign_in(settings: Settings) -> None:
    kept = cookie(ask(App(), "/auth/login", referer=HOME + DEEP))
    assert kept == (
        f"{door.WAY}={quote(DEEP, safe='')}; Path=/; Max-Age=600; HttpOnly; SameSite=lax; Secure"
    )
    back = ask(App(), "/oauth2callback", "code=1&state=2", cookie=kept.partition(";")[0])
    assert header(back, "location") == [DEEP]
    assert "Max-Age=0" in cookie(back)
    assert "other=1" in header(back, "set-cookie")


@pytest.mark.parametrize(
    "referer",
    [
        "",
        "https://evil.example.org/organization",
        "http://tokens.example.org/organization",
        f"{HOME}.evil.example/organization",
        f"{HOME}//evil.example.org",
        f"{HOME}/auth/logout",
        f"{HOME}/{'a' * 2000}",
    ],
)
def test_no_other_page_is_kept(settings: Settings, referer: str) -> None:
    assert cookie(ask(App(), "/auth/login", referer=referer)).startswith(f"{door.WAY}=; ")


@pytest.mark.parametrize(
    "way",
    [
        "https://evil.example.org/",
        "//evil.example.org",
        "/\\evil.example.org",
        "javascript:alert(1)",
        "/x\r\nset-cookie: a=b",
        "/é",
        "/auth/logout?x=1",
        "/oauth2callback?code=1",
    ],
)
def test_a_cookie_that_somebody_planted_leads_nowhere(settings: Settings, way: str) -> None:
    planted = f"{door.WAY}={quote(way, safe='')}"
    back = ask(App(), "/oauth2callback", "code=1&state=2", cookie=planted)
    assert header(back, "location") == ["/"]


def test_only_a_sign_in_follows_the_way(settings: Settings) -> None:
    kept = f"{door.WAY}={quote(DEEP, safe='')}"
    assert header(ask(App(), "/oauth2callback", "", cookie=kept), "location") == ["/"]
    assert header(ask(App(), "/", "code=1", cookie=kept), "location") == ["/"]
    failed = ask(App(500), "/oauth2callback", "code=1", cookie=kept)
    assert header(failed, "location") == ["/"]


def unreachable() -> Tokens:
    raise DatabaseUnavailable("The database does not answer.")


def test_signing_out_in_one_tab_ends_the_session(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signin, "sessions", signin.Sessions(lambda _session: False))
    monkeypatch.setattr(process.gate, "tokens", unreachable)
    assert settings.sign_in
    signed = create_signed_value(settings.sign_in.cookie_secret, "_streamlit_user", "me").decode()
    mine, hers = {"_streamlit_user": signed}, {"_streamlit_user": "hers"}
    for cookies in (mine, hers):
        assert signin.sessions.holds(str(signin.key(cookies)), 10, now=0)
    app = App()
    ask(app, "/auth/logout", cookie=f"_streamlit_xsrf=x; _streamlit_user={signed}")
    ask(App(), "/auth/logout", cookie="_streamlit_user=hers")  # which the console did not sign
    assert app.reached == 1
    assert not signin.sessions.holds(str(signin.key(mine)), 10, now=1)
    assert signin.sessions.holds(str(signin.key(hers)), 10, now=1)


@pytest.mark.parametrize(
    ("address", "passes"),
    [(None, True), ("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_the_process_ends_where_the_network_would_be_admin(
    settings: Settings, address: str | None, passes: bool
) -> None:
    demo = replace(settings, sign_in=None)
    process.require_safe(settings, address, {})
    process.require_safe(replace(demo, open_demo=True), address, {})
    process.require_safe(replace(demo, database_url="postgresql://h/d"), address, {})
    if passes:
        process.require_safe(demo, address, {})
    else:
        with pytest.raises(SystemExit, match=f"{address} would let the whole network be admin"):
            process.require_safe(demo, address, {})


def test_headers_that_say_whose_a_request_is_are_refused(settings: Settings) -> None:
    with pytest.raises(SystemExit, match="trustedUserHeaders"):
        process.require_safe(settings, None, {"X-Email": "email"})


def test_streamlit_is_told_of_the_provider(settings: Settings) -> None:
    assert process.secrets(replace(settings, sign_in=None)) == {}
    assert process.secrets(settings)["auth"] == {
        "client_id": "console",
        "client_secret": "client secret",
        "server_metadata_url": "https://id.example.org/.well-known/openid-configuration",
        "redirect_uri": f"{HOME}/oauth2callback",
        "cookie_secret": "c" * 32,
    }
