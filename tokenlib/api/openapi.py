"""The OpenAPI description: what FastAPI finds, and what every operation has besides."""

from __future__ import annotations

from copy import copy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from tokenlib.api.errors import OLD_PATHS
from tokenlib.api.schemas import Problem

DESCRIPTION = """\
Products in any language use the token gate: hold or charge tokens around an AI call, see balances \
and where they went.

Credentials stand in Authorization: Bearer, a JWT of a person or an API key. Every call that \
changes something needs an Idempotency-Key: sent again with the same key it is done once, and the \
first answer comes again with Idempotency-Replayed: true. Errors are problem details (RFC 9457). \
Fields that are not known are refused.

What another organization has and what does not exist are the same 404."""

_HEADERS: dict[str, Any] = {
    "X-Request-Id": {
        "description": "The caller's own, or a new one. It stands in the server's log.",
        "schema": {"type": "string"},
    }
}
_RETRY: dict[str, Any] = {
    "Retry-After": {
        "description": "Seconds until it may work.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
# Of the limit of requests a minute that is nearest, as the draft of the IETF has them.
_LEFT: dict[str, Any] = {
    "RateLimit": {
        "description": "Whose limit, how many requests are left of it, and seconds until it ends.",
        "schema": {"type": "string"},
        "example": '"user";r=29;t=60',
    }
}
_POLICY: dict[str, Any] = {
    "RateLimit-Policy": {
        "description": "Whose limit, how many requests it allows, and in how many seconds.",
        "schema": {"type": "string"},
        "example": '"user";q=30;w=60',
    }
}

# What the limits count.
_COUNTED = ("/charges", "/reservations")


def build(api: FastAPI) -> dict[str, Any]:
    """The description, made once."""
    if api.openapi_schema is None:
        api.openapi_schema = _build(api)
    return api.openapi_schema


def _build(api: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title="tokenlib",
        version=api.version,
        openapi_version="3.1.0",
        description=DESCRIPTION,
        routes=[_told_once(route) for route in api.routes],
        servers=[{"url": "/api"}],
    )
    components = schema["components"]
    components["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "A JWT of the configured issuer, or an API key (tkl_…).",
        }
    }
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    problem = Problem.model_json_schema(
        mode="serialization", ref_template="#/components/schemas/{model}"
    )
    components["schemas"] |= problem.pop("$defs", {})
    components["schemas"]["Problem"] = problem
    components["schemas"]["OldError"] = {
        "type": "object",
        "properties": {"error": {"type": "string"}},
        "required": ["error"],
    }
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            _complete(operation, path)
    return schema


def _told_once(route: BaseRoute) -> BaseRoute:
    """Without HEAD, which is GET's: two operations would have one id."""
    if isinstance(route, APIRoute):
        route = copy(route)
        route.methods = set(route.methods or ()) - {"HEAD"}
    return route


def _complete(operation: dict[str, Any], path: str) -> None:
    """What every operation answers, and what it asks for."""
    old, needs = path in OLD_PATHS, operation["x-needs"]
    responses: dict[str, Any] = operation["responses"]
    responses.pop("422", None)
    writes = any(each["name"] == "Idempotency-Key" for each in operation.get("parameters", ()))
    errors = {400: "What was asked cannot be understood.", 500: "The server failed."}
    errors[503] = "The server is busy, or its database does not answer."
    if needs != "nobody" or old:
        operation["security"] = [{"bearer": []}]
        errors |= {401: "No credentials, or none that are good here.", 403: "Not allowed."}
        errors |= {404: "There is nothing here that the caller may see."}
    else:
        operation["security"] = []
    if "requestBody" in operation:
        errors |= {408: "The body took too long.", 413: "The body is too large."}
        if not old:
            errors[415] = "The body is not UTF-8 JSON, or does not say so."
    if writes or (old and "requestBody" in operation):
        errors |= {
            409: "It is over, was done before, or is still running.",
            422: "The Idempotency-Key was used for another request.",
            429: "A limit was reached.",
        }
    if writes:
        errors[402] = "A rule said no; nothing was charged."
    media = "application/json" if old else "application/problem+json"
    form = {"$ref": f"#/components/schemas/{'OldError' if old else 'Problem'}"}
    for number, description in errors.items():
        answer = responses.setdefault(str(number), {"description": description})
        answer.setdefault("content", {})[media] = {"schema": form}
        if number in (429, 503):
            answer["headers"] = dict(_RETRY)
        if number == 429 and not old:
            answer["headers"] |= _LEFT
    for status, response in responses.items():
        response.setdefault("headers", {}).update(_HEADERS)
        if writes and status.startswith("2"):
            response["headers"]["Idempotency-Replayed"] = {
                "description": "true when this is the first answer again.",
                "schema": {"const": "true"},
            }
            if path.endswith(_COUNTED):
                response["headers"] |= _LEFT | _POLICY
