"""A refusal in plain words for the customer who met it. Pure: it asks nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from math import ceil
from typing import Any

from tokenlib.domain import Verdict
from tokenlib.reports.asking import zone
from tokenlib.reports.refusals import RefusalRow


def customer_reply(
    answer: RefusalRow | Verdict,
    *,
    timezone: str = "UTC",
    title: str | None = None,
    refresh_date: datetime | None = None,
    balance: int | None = None,
) -> str:
    """What to write to the customer: what happened, why, and the ways out.

    `title` is the feature's name in the catalog, `refresh_date` and `balance` those of its wallet
    now. Times are given in `timezone`. Raises InvalidInput for a time zone that does not exist.
    """
    what = f"“{title}”" if title else "the AI feature"
    data: Mapping[str, Any] = {}
    if isinstance(answer, RefusalRow):
        name = title or answer.feature
        what = f"“{name}”" if name else "a request"  # a malformed one may name no feature
        data = answer.data
        when = f"On {_time(answer.last_at, timezone)}, {what} did not run"
        opening = f"{when}{_often(answer.count)}."
    elif answer.allowed:
        return f"You can use {what} now: nothing stands in the way."
    else:
        refresh_date = refresh_date or answer.refresh_date
        opening = f"{what[0].upper()}{what[1:]} cannot run at the moment."
    why = _reason(answer.rule or "", answer.needed, answer.available, data)
    limit = str(data.get("limit", ""))
    parts = [opening, why, _way_out(answer, refresh_date, balance, timezone, limit)]
    parts.append("Nothing was charged.")
    return " ".join(part for part in parts if part)


def _reason(rule: str, needed: int | None, available: int | None, data: Mapping[str, Any]) -> str:
    match rule:
        case "insufficient_tokens":
            return f"It needs {_tokens(needed)}, and {_were(available)} left."
        case "feature_not_in_plan":
            plan = data.get("plan")
            return f"It is not part of your plan{f' ({plan})' if plan else ''}."
        case "payment_failed":
            return "AI is switched off because the last payment did not go through."
        case "organization_paused":
            return "AI is paused for your organization."
        case "user_paused":
            return "AI is paused for this person."
        case "rate_limited":
            return _limit(str(data.get("limit", "")), data.get("allowed"))
        case "failed_attempt":
            problem = data.get("problem")
            return f"The request was not valid{f' ({problem})' if problem else ''}."
    return f"The reason on record is: {rule.replace('_', ' ')}."


def _limit(limit: str, allowed: object) -> str:
    match limit:
        case "key_requests_per_minute":
            return f"The program can make {allowed} requests a minute, and this was one more."
        case "requests_per_minute":
            return f"Each person can make {allowed} requests a minute, and this was one more."
        case "seconds_between_requests" | "key_seconds_between_requests":
            return f"It came less than {allowed} seconds after the request before it."
        case "tokens_per_request" | "key_tokens_per_request":
            return f"One request can use at most {allowed} tokens, and this one needed more."
        case "output_units_per_request" | "key_output_units_per_request":
            return (
                f"An answer may have at most {allowed} output units, and this one would be, or was,"
                " longer."
            )
        case "organization_requests_per_minute":
            return f"Your organization can make {allowed} requests a minute, and this was one more."
        case "failed_attempts":
            return (
                f"After {allowed} requests that were not valid, this person is blocked for a while."
            )
    return "Too many requests came in a short time."


def _way_out(
    answer: RefusalRow | Verdict,
    refresh_date: datetime | None,
    balance: int | None,
    timezone: str,
    limit: str,
) -> str:
    match answer.rule:
        case "insufficient_tokens":
            enough = balance is not None and answer.needed is not None and balance >= answer.needed
            if enough:
                return f"By now there are {_tokens(balance)}, so it works again."
            coming = f"New tokens come on {_time(refresh_date, timezone)}. " if refresh_date else ""
            return f"{coming}To go on before that, upgrade the plan or buy a pack of tokens."
        case "feature_not_in_plan":
            return "With a larger plan it is included."
        case "payment_failed":
            return "Your tokens are kept, and AI is back as soon as a payment goes through."
        case "organization_paused":
            return "Write to us if you want to know why, or when it goes on."
        case "user_paused":
            return "An administrator on our side can switch it on again; write to us."
        case "rate_limited":
            wait = answer.retry_after if isinstance(answer, Verdict) else None
            per_request = ("tokens_per_request", "output_units_per_request")
            if limit.removeprefix("key_") in per_request:
                return "Asking for less in one request is enough."
            if wait is None and limit == "failed_attempts":
                return "It works again 10 minutes after the last of them."
            if wait is None:
                return "Waiting a moment and trying again is enough."
            return f"Trying again in {max(1, ceil(wait))} seconds is enough."
        case "failed_attempt":
            return "The program that sent it has to be corrected; sent as it should be, it works."
    return ""


def _time(moment: datetime, timezone: str) -> str:
    local = moment.astimezone(zone(timezone))
    return f"{local.day} {local:%B %Y} at {local:%H:%M} ({timezone.replace('_', ' ')})"


def _often(count: int) -> str:
    return f" ({count} times within a minute)" if count > 1 else ""


def _tokens(count: int | None) -> str:
    return f"{count or 0:,} token{'' if count == 1 else 's'}"


def _were(count: int | None) -> str:
    return f"{count or 0:,} {'was' if count == 1 else 'were'}"
