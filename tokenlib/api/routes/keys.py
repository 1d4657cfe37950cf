"""API keys: listed, made, rotated, revoked. A secret is shown once, in the first answer."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, HTTPException, Path

from tokenlib.api import schemas as s
from tokenlib.api.door import Door, Read, Write, door, named
from tokenlib.db import Row
from tokenlib.keys import digest, new_secret, start

router = APIRouter(
    prefix="/v1/keys", tags=["API keys"], route_class=Door, generate_unique_id_function=named
)

KeyId = Annotated[UUID, Path(alias="keyId")]


@router.get("", openapi_extra=door("admin"))
def list_keys(read: Read) -> s.Keys:
    """The keys that the caller manages: staff all, a key of one organization that one's."""
    return s.Keys(keys=[s.KeyRow.model_validate(row) for row in read.ask("keys")])


@router.post("", status_code=201, openapi_extra=door("admin"))
def create(asked: s.KeyQuestion, write: Write) -> s.NewKey:
    """Make a key. A key makes none with more than it has: scopes, place, life, and each limit."""
    secret = new_secret()
    row = write.write(
        "create_key",
        asked.organization_id,
        **asked.model_dump(exclude={"organization_id"}),
        unique={"id": uuid4(), **_kept(write, secret)},
    )
    return _new(row, secret)


@router.post("/{keyId}/rotate", openapi_extra=door("admin"))
def rotate(key_id: KeyId, asked: s.RotateQuestion, write: Write) -> s.NewKey:
    """Give a key a new secret; the one before it stays good for `overlapSeconds`."""
    secret = new_secret()
    row = write.write(
        "rotate_key", None, id=key_id, **asked.model_dump(), unique=_kept(write, secret)
    )
    return _new(row, secret)


@router.post("/{keyId}/revoke", openapi_extra=door("admin"))
def revoke(key_id: KeyId, asked: s.ReasonQuestion, write: Write) -> s.Done:
    """End a key at once: the next call with it is refused."""
    row = write.write("revoke_key", None, id=key_id, **asked.model_dump())
    return s.Done(organization_id=row["organization_id"])


def _kept(write: Write, secret: str) -> dict[str, str]:
    """What the database gets of a secret."""
    if write.tokens.pepper is None:
        raise HTTPException(503, "API keys need TOKENLIB_KEY_PEPPER to be set on the server.")
    return {"start": start(secret), "digest": digest(secret, write.tokens.pepper).hex()}


def _new(row: Row, secret: str) -> s.NewKey:
    # A reply that was lost on the way from the database is asked for again: the secret is then ours
    # all the same. A replay of the caller's has another one, which nobody has seen.
    ours = row["text"] == start(secret)
    return s.NewKey(
        id=row["id"],
        organization_id=row["organization_id"],
        start=row["text"],
        secret=secret if ours else None,
    )
