"""Opens the console in this process, as a browser would."""

from __future__ import annotations

from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from tokenlib import demo
from tokenlib.console import process

Open = Callable[..., AppTest]


def open_page(
    page: str = "",
    persona: str = "admin",
    timezone: str = "Europe/Rome",
    **query: str | list[str],
) -> AppTest:
    """The frame script with one of its pages, after its first run; each time a new session."""
    app = AppTest.from_file(str(process.FRAME), default_timeout=30)
    app.context = {"timezone": timezone}
    for name, value in query.items():
        app.query_params[name] = value
    app.session_state["persona"] = persona
    if page:
        app.switch_page(str(process.pages_folder() / page))
    return app.run()


def of(scenario: demo.Scenario, persona: str = "admin", **query: str) -> AppTest:
    """The page of a scenario's organization."""
    app = open_page("organization.py", persona, id=str(scenario.organization_id), **query)
    assert not app.exception
    return app


def open_alone(page: str, **state: object) -> AppTest:
    """A page file without the frame around it, with this in its session."""
    app = AppTest.from_file(str(process.pages_folder() / page), default_timeout=30)
    for name, value in state.items():
        app.session_state[name] = value
    return app.run()


def press(app: AppTest, label: str) -> AppTest:
    """Press the button with this label, in a form or not."""
    next(button for button in app.button if button.label == label).click()
    return app.run()


def texts(app: AppTest) -> str:
    """Everything that the page says, in its tables too."""
    said = [element.value for element in (*app.title, *app.markdown, *app.caption)]
    for alert in (*app.info, *app.success, *app.warning, *app.error):
        said += [alert.title, alert.value]
    said += [f"{metric.label} {metric.value}" for metric in app.metric]
    said += [frame.value.to_string() for frame in app.dataframe]
    return "\n".join(str(text) for text in said)
