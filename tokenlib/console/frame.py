"""What stands around every page: who is signed in, the menu, and errors said plainly.

This is the script that Streamlit runs. It lies apart from `pages/`, or a first deep link would run
a page without it; each page checks the reader's role itself all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import streamlit as st

from tokenlib import demo
from tokenlib.console import actions, finder, links, process, refusals, session, signin, switch
from tokenlib.console import format as fmt
from tokenlib.console.session import AS, EVERYBODY, PERSONA, STAFF, Person, Role
from tokenlib.console.signin import ADVICE, Closed, SignedOut
from tokenlib.errors import TokenlibError
from tokenlib.latency import pace

CHOICE = "persona_choice"
SWITCHED = "persona_switched"
SHOWN = "page_shown"
# How often a tab that nobody touches asks whether its session still holds. (In the script that
# Streamlit runs a string on its own would be shown.)
LOOK_SECONDS = 15.0
AI = "AI features"
OPERATION = "Operation"


@dataclass(frozen=True, slots=True)
class View:
    """A page of the menu, and whose it is. The first view of a role is its start page."""

    file: str
    title: str
    icon: str
    roles: tuple[Role, ...]
    help: str
    listed: bool = True  # False: reached from a row or by its address, not from the menu
    section: str = ""


VIEWS = (
    View(
        "overview.py",
        "Overview",
        ":material/dashboard:",
        STAFF,
        "How it goes, what needs somebody now, and what moved.",
    ),
    View(
        "organizations.py",
        "Organizations",
        ":material/domain:",
        STAFF,
        "What every organization has left, and who runs low.",
    ),
    View(
        "organization.py",
        "Organization",
        ":material/apartment:",
        STAFF,
        "One organization: what it has, what used it, why it was refused.",
        listed=False,
    ),
    View(
        "usage.py",
        "Usage",
        ":material/monitoring:",
        STAFF,
        "Uses and tokens by feature, over a day up to a quarter.",
    ),
    View(
        "spenders.py",
        "Top spenders",
        ":material/leaderboard:",
        STAFF,
        "The organizations and people that use the most tokens.",
    ),
    View(
        "health.py",
        "Health",
        ":material/monitor_heart:",
        STAFF,
        "Whether the books close, what is stuck, and how fast the gate answers.",
        section=OPERATION,
    ),
    View(
        "settings.py",
        "Settings",
        ":material/settings:",
        ("admin",),
        "Costs, allowances, limits, the emergency switch, staff, API keys, and who changed what.",
        section=OPERATION,
    ),
    View(
        "tokens.py",
        "My tokens",
        ":material/toll:",
        ("member",),
        "What your organization has left, and what used it.",
    ),
    View(
        "quests.py",
        "Quests",
        ":material/flag:",
        EVERYBODY,
        "Generate a quest line and watch the balance move.",
        section=AI,
    ),
    View(
        "features.py",
        "Other AI features",
        ":material/auto_awesome:",
        EVERYBODY,
        "Run the other features of the catalog on small inputs.",
        section=AI,
    ),
)


def main() -> None:
    """Sign in, choose the page, run it."""
    began = perf_counter()
    st.set_page_config(page_title="Tokenlib", page_icon="🪙", layout="wide")
    st.logo(":material/toll:", size="large")
    try:
        demo_mode = session.demo_mode()
        with st.sidebar:
            top, bottom = st.container(), st.container()
        if demo_mode:
            with bottom:
                choose_persona()
        person = session.somebody()
    except TokenlibError as error:
        closed("Not available", partial(_unavailable, error))
        return
    if isinstance(person, Closed):
        closed(person.value, partial(_why, person))
        return
    pages = menu(person)
    page = st.navigation(pages)
    if st.session_state.pop(SWITCHED, False) and person.role not in roles_of(page.title):
        start = next(page for listed in pages.values() for page in listed)
        st.switch_page(start, query_params={})  # without it a filter in the address would forbid it
    file = next(view.file for view in VIEWS if view.title == page.title)
    links.returned(file)
    if person.role != "member":
        with top:
            finder.draw(person)
    with bottom:
        links.one_step_each()
        signed_in(person)
        if not demo_mode:
            sign_out()
            _still_signed_in()
    if st.session_state.get(SHOWN) != page.title:
        st.session_state[SHOWN] = page.title
        actions.leave()
    header(page.title, demo_mode)
    switch.banner(person)
    try:
        page.run()
        links.keep(file)
    except TokenlibError as error:
        refusals.problem(error)
    if not st.session_state.pop(session.UNTIMED, False):
        pace.add("page", (perf_counter() - began) * 1000)


def choose_persona() -> None:
    """The demo mode's sign-in: anybody may be anybody."""
    # The widget forgets its value when a page is switched; the session does not. The address keeps
    # it over a reload, and is read nowhere but here.
    usual = next(iter(demo.PERSONAS))
    asked = st.query_params.get(AS, usual)
    st.session_state.setdefault(PERSONA, asked if asked in demo.PERSONAS else usual)
    st.session_state[CHOICE] = persona = st.session_state[PERSONA]
    if persona != usual and asked != persona:
        st.query_params[AS] = persona
    elif persona == usual and AS in st.query_params:
        del st.query_params[AS]
    st.segmented_control(
        "Signed in as",
        list(demo.PERSONAS),
        key=CHOICE,
        required=True,
        format_func=str.capitalize,
        on_change=_switch,
        help="Demo mode. The database decides what each of them may see.",
    )


def _switch() -> None:
    st.session_state.update({PERSONA: st.session_state[CHOICE], SWITCHED: True})


def menu(person: Person) -> dict[str, list[st.Page]]:
    """Every page, the start page of the role first; those of other roles are not shown."""
    views = sorted(VIEWS, key=lambda view: person.role not in view.roles)
    pages: dict[str, list[st.Page]] = {}
    for view in views:
        pages.setdefault(view.section, []).append(
            st.Page(
                process.pages_folder() / view.file,
                title=view.title,
                icon=view.icon,
                help=view.help,
                default=view is views[0],
                visibility="visible" if view.listed and person.role in view.roles else "hidden",
            )
        )
    return pages


def signed_in(person: Person) -> None:
    """Who is signed in, and as what."""
    st.caption(f":material/person: {fmt.plain(person.name)} · {person.role}")


def sign_out(label: str = "Sign out") -> None:
    """The way out, here and at the provider; it holds for every tab."""
    if st.button(label, key="sign_out", icon=":material/logout:"):
        st.logout()
        st.stop()


@st.fragment(run_every=LOOK_SECONDS)
def _still_signed_in() -> None:
    """Close the page once the session is over, also when nobody clicks."""
    try:
        session.tokens()
    except SignedOut:
        st.rerun()


def roles_of(title: str) -> tuple[Role, ...]:
    """Whose page this is."""
    return next(view.roles for view in VIEWS if view.title == title)


def header(title: str, demo_mode: bool) -> None:
    """The page's title, and beside it what everybody has to know now."""
    with st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    ):
        st.title(title, width="content")
        if demo_mode:
            st.badge(
                "Demo mode: synthetic data, no sign-in", icon=":material/science:", color="violet"
            )


def closed(title: str, body: Callable[[], None]) -> None:
    """The only page where nobody can be signed in: no menu, no data.

    It stands at every address, so that a link leads to its page after the sign-in.
    """

    def page() -> None:
        st.title(title)
        body()

    first, *others = (view.file.removesuffix(".py") for view in VIEWS)
    paths = [st.Page(page, title=title, default=True, url_path=first)]
    paths += [st.Page(page, title=title, url_path=path) for path in others]
    st.navigation(paths, position="hidden").run()


def _unavailable(error: TokenlibError) -> None:
    refusals.problem(error)
    st.button("Try again", icon=":material/refresh:")


def _why(why: Closed) -> None:
    """Why nobody is signed in, and the button that helps."""
    if why is Closed.NO_SIGN_IN or session.demo_mode():
        st.info(ADVICE[why], icon=":material/lock:")
        return
    if why in (Closed.SIGNED_OUT, Closed.ENDED):
        st.info(ADVICE[why], icon=":material/lock:")
        if st.button("Sign in", key="sign_in", type="primary", icon=":material/login:"):
            st.login()
        return
    st.warning(ADVICE[why], icon=":material/lock:")
    st.text(signin.account())  # markdown would make it a link
    with st.container(horizontal=True):
        if why is not Closed.UNVERIFIED:
            st.button("Try again", key="sign_in_again", icon=":material/refresh:")
        sign_out("Use another account")


main()
