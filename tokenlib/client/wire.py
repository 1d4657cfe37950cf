"""JSON of the API as our dataclasses and our errors, as their definitions say."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints
from uuid import UUID

from tokenlib import errors
from tokenlib.errors import (
    DatabaseUnavailable,
    InvalidInput,
    LoginRefused,
    NotFound,
    PermissionDenied,
    TokenlibError,
    UnknownOrganization,
)

T = TypeVar("T")
# Where the tree has no such code, the status says enough.
_BY_STATUS: dict[int, type[TokenlibError]] = {
    401: LoginRefused,
    403: PermissionDenied,
    404: NotFound,
    503: DatabaseUnavailable,
}
# The error tree by code, as errors has it.
_TREE = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, TokenlibError)
}


def snake(name: str) -> str:
    """`tokenType` as `token_type`."""
    return re.sub(r"[A-Z]", lambda match: "_" + match[0].lower(), name)


def read(kind: type[T], document: Mapping[str, Any], **more: Any) -> T:
    """A dataclass from a JSON object in camelCase; `more` is what the object does not say."""
    said = {snake(name): value for name, value in document.items()} | more
    hints = get_type_hints(kind)
    named = [field.name for field in fields(kind) if field.name in said]  # type: ignore[arg-type]
    return kind(**{name: _value(hints[name], said[name]) for name in named})


def error(problem: Mapping[str, Any], status: int, asked: Mapping[str, Any]) -> TokenlibError:
    """The error that a problem stands for; `asked` is what the API need not say again."""
    code, message = str(problem.get("code")), str(problem.get("detail"))
    said = dict(asked) | {snake(name): value for name, value in problem.items()}
    kind = _TREE.get(code)
    wrong = problem.get("errors") or []
    if wrong and status == 400:
        kind = kind or InvalidInput
        field = str(wrong[0]["field"])
        field = "idempotency_key" if field == "Idempotency-Key" else snake(field)
        said |= {"field": field, "problem": wrong[0]["problem"]}
    if code == NotFound.code and "organization_id" in asked:
        kind = UnknownOrganization  # of what is in it the API has codes of their own
    kind = kind or _BY_STATUS.get(status, TokenlibError)
    if status == 401:
        message = "The server refuses the API key: it is wrong, revoked or has expired."
    known = _arguments(kind, said)
    if known is not None and kind.__init__ is not TokenlibError.__init__:
        return kind(**known)
    rebuilt = kind.__new__(kind)
    TokenlibError.__init__(rebuilt, message)
    for name in list(inspect.signature(kind.__init__).parameters)[1:]:
        if name not in ("message", "data"):
            setattr(rebuilt, name, said.get(name))
    return rebuilt


def _arguments(kind: type[TokenlibError], said: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the constructor asks for, or None when the problem does not say all of it."""
    hints = get_type_hints(kind.__init__)
    found = {}
    for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        name_in_problem = "detail" if name == "message" else name
        if name_in_problem in said:
            found[name] = _value(hints[name], said[name_in_problem])
        elif parameter.default is parameter.empty:
            return None
    return found


def _value(hint: Any, value: Any) -> Any:
    """A JSON value as its type wants it."""
    if value is None:
        return None
    if get_origin(hint) is UnionType:
        [hint] = [each for each in get_args(hint) if each is not type(None)]
    if hint is UUID:
        return value if isinstance(value, UUID) else UUID(value)
    if hint is datetime:
        return datetime.fromisoformat(value)
    if get_origin(hint) is tuple:
        return tuple(_value(get_args(hint)[0], each) for each in value)
    return read(hint, value) if isinstance(hint, type) and is_dataclass(hint) else value
