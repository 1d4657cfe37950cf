"""What is wrong with a request, in our words: which field, what is wrong, what to send."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tokenlib.api.schemas import A_TIME, NAME, NO_NUL, NOT_BLANK

_MISSING = {
    "header": "is missing: send this header, new for each request and the same for its repetitions",
    "query": "is missing: send it behind the ? of the address",
}
_PATTERNS = {
    NAME: "must be a name: 1 to 100 letters, digits and _ . : -",
    NOT_BLANK: "must have a character that is no blank, and none that is NUL",
    NO_NUL: "must not have a NUL character",
}
_TYPES = {
    "bool": "must be true or false",
    "date": A_TIME,
    "datetime": A_TIME,
    "dict": "must be a JSON object",
    "enum": "must be one of those that the description names",
    "extra": "is not known: leave it out",
    "finite": "must be a number",
    "float": "must be a number",
    "int": "must be a whole number",
    "json": "is not JSON: send a JSON object",
    "list": "must be a list",
    "model": "must be a JSON object",
    "string": "must be text",
    "timezone": A_TIME,
    "uuid": "must be a UUID",
}

_NO_DAY = re.compile("(year|month|day) ")


def fault(found: Mapping[str, Any]) -> dict[str, str]:
    """One of pydantic's errors as field and problem; never the value, which may be a prompt."""
    where, *path = found["loc"]
    if found["type"] == "json_invalid":  # its path is where in the text the JSON ends
        path = []
    field = ".".join(map(str, path))[:100] or str(where)
    return {"field": field, "problem": _problem(str(where), bool(path), found)}


def _problem(where: str, named: bool, found: Mapping[str, Any]) -> str:
    said: Mapping[str, Any] = found.get("ctx") or {}
    match found["type"]:
        case "missing":
            missing = "is missing: send it" if named else "is missing: send a JSON object"
            return _MISSING.get(where, missing)
        case "string_pattern_mismatch":
            return _PATTERNS.get(said["pattern"], "must have the form that the description names")
        case "string_too_short" | "too_short":
            return f"must have at least {said['min_length']} {_of(found)}"
        case "string_too_long" | "too_long":
            return f"must have at most {said['max_length']} {_of(found)}"
        case "greater_than_equal":
            return f"must be {said['ge']} or more"
        case "less_than_equal":
            return f"must be {said['le']} or less"
        case "literal_error":
            return f"must be one of: {str(said['expected']).replace(' or ', ', ')}"
        case "datetime_from_date_parsing" | "datetime_parsing" if _NO_DAY.match(said["error"]):
            return "names a day that does not exist"
        case "int_parsing_size":
            return "has too many digits"
        case "value_error":
            return str(said["error"])
    return _TYPES.get(str(found["type"]).split("_", 1)[0], "cannot be understood")


def _of(found: Mapping[str, Any]) -> str:
    one = 1 in (found["ctx"].get("min_length"), found["ctx"].get("max_length"))
    what = "character" if found["type"].startswith("string") else "entry"
    return what if one else {"character": "characters", "entry": "entries"}[what]
