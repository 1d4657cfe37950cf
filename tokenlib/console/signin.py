"""Whose identity a session has, and how long it holds: OpenID Connect through `st.login`.

Streamlit checks the signature of its cookie when a tab connects, and nothing after that. So each
run asks here again: whether the identity token still holds, whether the session is not too long,
and whether somebody signed out, in this tab or in another.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import streamlit as st
from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value

from tokenlib.claims import StaffClaims
from tokenlib.config import SignIn
from tokenlib.console.process import gate
from tokenlib.db import statements
from tokenlib.errors import TokenlibError

log = logging.getLogger("tokenlib")

LOOK_SECONDS = 1.0
"""How long a sign-out in another process may go unseen."""

_COOKIE = re.compile(r"_streamlit_user(_+\d+)?")
"""The cookie with the identity, and its parts when it is long."""


class Closed(Enum):
    """Why somebody sees no page: the title."""

    NO_SIGN_IN = "Sign-in is not set up"
    SIGNED_OUT = "Sign-in needed"
    NO_ROLE = "No role any more"
    ENDED = "Your session has ended"
    UNVERIFIED = "E-mail address not verified"
    UNKNOWN = "No access yet"
    AMBIGUOUS = "More than one match"
    ELSEWHERE = "Staff by another provider"


ADVICE = {
    Closed.NO_SIGN_IN: "This console stands on a database of your own, so it shows nothing until"
    " people can sign in. Set the five TOKENLIB_OIDC_ variables to your identity provider and start"
    " it again; the guide says how. The API and the `tokenlib` command work. To see the console"
    " with demo data, start it without TOKENLIB_DATABASE_URL.",
    Closed.SIGNED_OUT: "Sign in with the account of your identity provider to go on.",
    Closed.NO_ROLE: "This person of the demo is not staff any more, and no member. Choose another"
    " one under Signed in as.",
    Closed.ENDED: "Sign in again to go on where you were.",
    Closed.UNVERIFIED: "Your identity provider does not say that it has verified your e-mail"
    " address. Verify it there, then sign in again.",
    Closed.UNKNOWN: "You are signed in, and nobody here is known by this account. Ask an admin of"
    " your organization to add you with this e-mail address, or the operator of this console to"
    " make you staff. Then try again, or use another account.",
    Closed.AMBIGUOUS: "This e-mail address belongs to more than one person here, so it does not say"
    " who you are. Ask the operator of this console to leave it with one of them, or to have people"
    " known by their user id.",
    Closed.ELSEWHERE: "Another identity provider says that you are staff. Sign in with that one, or"
    " come back here an hour after you last used it.",
}
"""What that means, and what to do."""


class SignedOut(TokenlibError):
    """The session ended while its tab was open."""

    code = "signed_out"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the provider says that somebody is: a user's id, or a verified e-mail address."""

    user_id: UUID | None = None
    email: str | None = None


def _signed_out(session: str) -> bool:
    """Whether the session was signed out, in whatever process."""
    rows = gate.tokens().database.rows(statements("system")["signed_out"], {"session": session})
    return bool(rows)


class Sessions:
    """The identities in use in this process, and those that were signed out, until they end.

    Of what was signed out in other processes `elsewhere` tells, and is asked once a second at most.
    """

    def __init__(self, elsewhere: Callable[[str], bool] = _signed_out) -> None:
        self._elsewhere = elsewhere
        self._lock = threading.Lock()
        self._ends: dict[str, float] = {}
        self._ended: set[str] = set()
        self._asked: dict[str, float] = {}

    def holds(self, session: str, end: float, now: float) -> bool:
        """Whether the session is not signed out. Raises what the database raises."""
        with self._lock:
            if session not in self._ends:
                for old in [key for key, until in self._ends.items() if until <= now]:
                    del self._ends[old]
                    self._ended.discard(old)
                    self._asked.pop(old, None)
                self._ends[session] = end
            if session in self._ended:
                return False
            if now - self._asked.get(session, -math.inf) < LOOK_SECONDS:
                return True
        if self._elsewhere(session):
            self.end(session, end)
            return False
        with self._lock:
            self._asked[session] = now
        return True

    def end(self, session: str, end: float) -> None:
        """Sign out in every tab that this process serves."""
        with self._lock:
            self._ends.setdefault(session, end)
            self._ended.add(session)


sessions = Sessions()
staff_claims = StaffClaims(lambda: gate.tokens().database)


def sign_out(cookies: Mapping[str, str], settings: SignIn) -> None:
    """End the session of these cookies in every process. A failure to tell the others is logged.

    A cookie that the console did not sign ends nothing, so that nobody fills the table.
    """
    session = key(cookies)
    if session is None or not _genuine(cookies, settings):
        return
    life = timedelta(minutes=settings.session_minutes)
    sessions.end(session, now() + life.total_seconds())
    try:
        gate.tokens().database.call(
            statements("system")["sign_out"], {"session": session, "life": life}, "repeatable"
        )
    except TokenlibError as error:
        log.warning("A sign-out is kept in this process alone: %s", error)


def _genuine(cookies: Mapping[str, str], settings: SignIn) -> bool:
    """Whether Streamlit signed every part of the cookie for this console."""
    return all(
        decode_signed_value(settings.cookie_secret, name, text) is not None
        for name, text in cookies.items()
        if _COOKIE.fullmatch(name)
    )


def key(cookies: Mapping[str, str]) -> str | None:
    """What a session is known by: a digest of its cookie. None without one."""
    parts = sorted((name, text) for name, text in cookies.items() if _COOKIE.fullmatch(name))
    return hashlib.sha256(repr(parts).encode()).hexdigest() if parts else None


def now() -> float:
    """The time, in seconds since 1970, as identity tokens count it."""
    return time.time()


def identity(settings: SignIn) -> Identity | Closed:
    """Whose session this is, asked in every run."""
    claims: dict[str, Any] = dict(st.user)
    session = key(st.context.cookies)
    if claims.get("is_logged_in") is not True or session is None:
        return Closed.SIGNED_OUT
    return read(settings, claims, session)


def read(settings: SignIn, claims: Mapping[str, Any], session: str) -> Identity | Closed:
    """What the claims of an identity token are worth now."""
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    # The cookie of another provider or client, from before the settings were changed.
    if (
        str(claims.get("iss")).rstrip("/") != settings.issuer.rstrip("/")
        or settings.client_id not in audiences
    ):
        return Closed.SIGNED_OUT
    issued, expires = claims.get("iat"), claims.get("exp")
    if not isinstance(issued, int | float) or not isinstance(expires, int | float):
        return Closed.ENDED
    end = min(float(expires), float(issued) + settings.session_minutes * 60)
    if now() >= end or not sessions.holds(session, end, now()):
        return Closed.ENDED
    email = claims.get("email")
    if settings.user_claim is not None:
        try:
            return Identity(user_id=UUID(str(claims.get(settings.user_claim))))
        except ValueError:
            return Closed.UNKNOWN
    if not isinstance(email, str) or not email:
        return Closed.UNKNOWN
    if claims.get("email_verified") is not True and not settings.trust_email:
        return Closed.UNVERIFIED
    return Identity(email=email)


def tell_claims(settings: SignIn, identity: Identity) -> None:
    """Let the claims of who is signed in make them staff, if the database's owner says that."""
    claims = dict(st.user)
    if settings.user_claim is not None and identity.user_id is not None:
        staff_claims.tell(identity.user_id, claims)
    else:
        # People who are their address have no id yet: one that is their account's at the provider.
        account_id = uuid5(NAMESPACE_URL, f"{claims.get('iss')}#{claims.get('sub')}")
        staff_claims.tell(account_id, claims, identity.email)


def elsewhere(user_id: UUID) -> bool:
    """Whether somebody is staff by another provider than the one that they are signed in with."""
    return staff_claims.elsewhere(user_id, st.user.get("iss"))


def account() -> str:
    """By what the provider calls somebody, for people to read; it gives no right."""
    return str(st.user.get("email") or st.user.get("sub") or "")


def same(one: str | None, other: str) -> bool:
    """Whether two e-mail addresses are one, however A to Z are written."""
    return one is not None and _fold(one) == _fold(other)


def _fold(text: str) -> bytes:
    return text.encode().lower()  # of bytes, only A to Z
