"""Schemathesis: the server keeps to its own description, whatever is sent and whoever calls.

Right and wrong requests are made from the description, one by one and as chains that use what an
earlier answer gave; every answer must be one that the description has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.api.callers import SETTINGS, bearer
from tests.api.test_wire import serving
from tokenlib.api import create_app
from tokenlib.config import Settings
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import World

CALLERS = (
    *("nobody", "member", "key"),
    *(
        pytest.param(caller, marks=pytest.mark.thorough)
        for caller in ("stranger", "support", "admin", "everything")
    ),
)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# Of pydantic, and what we say of an error of its that we do not know.
NOT_OURS = ("Input should", "Field required", "Value error", "Extra inputs", "cannot be understood")
QUIET = settings(
    max_examples=6,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def base(tokens: Tokens, tmp_path: Path) -> Iterator[str]:
    """A running server."""
    tokens.pepper = SETTINGS["key_pepper"]
    app = create_app(lambda: tokens, Settings(data_dir=tmp_path, **SETTINGS))
    with serving(Starlette(routes=[Mount("/api", app=app)])) as port:
        yield f"http://127.0.0.1:{port}"


def described(base: str, *modes: GenerationMode) -> Any:
    config = SchemathesisConfig()
    config.projects.default.generation.update(modes=list(modes), with_security_parameters=False)
    return schemathesis.openapi.from_url(f"{base}/api/v1/openapi.json", config=config)


def credentials(world: World) -> dict[str, dict[str, str]]:
    return {
        "nobody": {},
        "stranger": bearer({"sub": "1b4e28ba-2fa1-41d2-883f-0016d3cca427"}),
        "member": world.member,
        "support": world.staff["support"],
        "admin": world.staff["admin"],
        "key": world.keys["own"],
        "everything": world.keys["all"],
    }


def asking(case: Any, world: World, number: int) -> None:
    """Into an organization that is there, as a new request: else all is a 404 or a replay."""
    places = {"organizationId": str(world.organization), "userId": str(world.user)}
    for name, value in places.items():
        if name in (case.path_parameters or {}):
            case.path_parameters[name] = value
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = f"schema {number}"
    if isinstance(case.body, dict):
        known: dict[str, Any] = {"userId": world.user, "organizationId": world.organization}
        if number % 2:
            known |= {"feature": "generate_goal", "tokenType": "general", "plan": "pro"}
            if "feature" in case.body:
                case.body["userId"] = ""
        for name, value in known.items():
            if name in case.body:
                case.body[name] = str(value)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("caller", CALLERS)
def test_right_requests_get_described_answers(base: str, world: World, caller: str) -> None:
    who = credentials(world)[caller]
    seen: set[int] = set()
    for found in described(base, GenerationMode.POSITIVE).get_all_operations():
        operation = found.ok()

        @QUIET
        @given(case=operation.as_strategy(), number=st.integers(0, 10**9))
        def ask(case: Any, number: int) -> None:
            asking(case, world, number)
            answer = case.call(headers=who)
            seen.add(answer.status_code)
            case.validate_response(answer, checks=CHECKS, headers=who)

        ask()
    if caller == "nobody":
        assert seen == {200, 401}
    elif caller == "everything":
        assert seen >= {200, 201, 402, 404}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("caller", ["member", "everything"])
def test_wrong_requests_are_refused(base: str, world: World, caller: str) -> None:
    who = credentials(world)[caller]
    for found in described(base, GenerationMode.NEGATIVE).get_all_operations():
        operation = found.ok()

        @QUIET
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call(headers=who)
            checks: list[Any] = [*CHECKS]
            if not case.path.startswith("/v1/tokens/"):  # old callers may send more
                checks.append(negative_data_rejection)
            case.validate_response(answer, checks=checks, headers=who)
            assert not any(word in answer.text for word in NOT_OURS), answer.text

        ask()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("caller", ["member", "everything"])
def test_chains_of_requests_get_described_answers(
    base: str, world: World, caller: str, tokens: Tokens
) -> None:
    who = credentials(world)[caller]
    machine = described(base, GenerationMode.POSITIVE).as_state_machine()

    class Chain(machine):  # type: ignore[valid-type, misc]
        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"headers": who}

        def before_call(self, case: Any) -> None:
            asking(case, world, id(case))

        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            case.validate_response(response, checks=CHECKS, headers=who)

    Chain.run(settings=settings(QUIET, max_examples=15, stateful_step_count=8))
    found = tokens.verify()
    assert found.closed, found.problems
