"""The OpenAPI description as a page of our own: no script, nothing loaded from anywhere.

The usual pages load a viewer from a content delivery network, or carry one of a megabyte. This one
is text, so it prints and is searched, and works where no request may leave the machine.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from html import escape
from typing import Any

from tokenlib.api.errors import CODES

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem}"
    "code,pre{font:.9em ui-monospace,monospace}"
    "h2{overflow-wrap:anywhere}td,p{overflow-wrap:break-word}"
    "h2{font-size:1.1rem}"
    "pre{overflow-x:auto;padding:.75rem;border:1px solid #8886;border-radius:.5rem}"
    "section{border-top:1px solid #8886;margin-top:1.5rem}"
    "table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;padding:.25rem .75rem .25rem 0;vertical-align:top}"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; frame-ancestors 'none'"
    )
}

_NEEDS = {
    "nobody": "No credentials.",
    "anybody": "Any person or key.",
    "metrics": "A key with the scope <code>metrics</code>, or staff.",
    "check": "A member of the organization, staff, or a key with the scope <code>check</code>.",
    "spend": "A member of the organization for themselves, or a key with the scope"
    " <code>spend</code>.",
    "read": "A member of the organization, staff, or a key with the scope <code>read</code>.",
    "admin": "Staff, or a key with the scope <code>admin</code>.",
}


def page(schema: dict[str, Any]) -> str:
    """The page."""
    info = schema["info"]
    return "".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style><main>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
            "".join(f"<p>{escape(text)}</p>" for text in info["description"].split("\n\n")),
            '<p>As <a href="openapi.json">OpenAPI</a>.</p>',
            *_operations(schema),
            "<section><h2>Errors</h2><table><tr><th>code<th>status<th>when",
            *(
                f'<tr id="{code.replace("_", "-")}"><td><code>{code}</code><td>{status}'
                f"<td>{escape(when)}"
                for code, (status, when) in CODES.items()
            ),
            "</table></section></main></html>",
        ]
    )


def _operations(schema: dict[str, Any]) -> Iterator[str]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            said = _NEEDS[operation["x-needs"]]
            if operation["operationId"].startswith("old_"):
                said = "A member of the organization, with a JWT."
            yield (
                f'<section id="{operation["operationId"]}"><h2><code>{method.upper()}'
                f" {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
                f"<p>{said}</p>"
            )
            yield from _parameters(operation)
            yield from _example(schema, operation)
            yield "</section>"


def _parameters(operation: dict[str, Any]) -> Iterator[str]:
    if not (parameters := operation.get("parameters")):
        return
    yield "<table><tr><th>name<th>in<th>"
    for each in parameters:
        needed = "Required. " if each.get("required") else ""
        about = escape(needed + each.get("description", ""))
        yield f"<tr><td><code>{escape(each['name'])}</code><td>{each['in']}<td>{about}"
    yield "</table>"


def _example(schema: dict[str, Any], operation: dict[str, Any]) -> Iterator[str]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return
    named = content["schema"].get("$ref", "").rpartition("/")[2]
    body = schema["components"]["schemas"].get(named, content["schema"])
    example = content.get("example", body.get("example"))
    fields = ", ".join(
        f"<code>{escape(name)}</code>" + ("" if name in body.get("required", ()) else " (optional)")
        for name in body["properties"]
    )
    yield f"<p>Body: {fields}.</p><pre>{escape(json.dumps(example, indent=2))}</pre>"
