"""For who runs it: does the process live, can it serve, how is it doing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from tokenlib.api import docs, metrics
from tokenlib.api import schemas as s
from tokenlib.api.door import Door, Read, door, named
from tokenlib.errors import TokenlibError
from tokenlib.tokens import Tokens


class Readiness:
    """Asks the database whether it is ready, once for all who want to know at the time."""

    def __init__(self, get_tokens: Callable[[], Tokens]) -> None:
        self._get_tokens = get_tokens
        self._thread = ThreadPoolExecutor(1, "tokenlib-ready")
        self._asked: asyncio.Future[None] | None = None

    async def check(self) -> None:
        """Raise what `Database.check` raises."""
        if self._asked is None or self._asked.done():
            loop = asyncio.get_running_loop()
            self._asked = loop.run_in_executor(
                self._thread, lambda: self._get_tokens().database.check()
            )
        await asyncio.shield(self._asked)  # one who leaves takes nobody's answer along


router = APIRouter(
    prefix="/v1", tags=["Operating"], route_class=Door, generate_unique_id_function=named
)


@router.api_route("/health", methods=["GET", "HEAD"], openapi_extra=door("nobody"))
async def health() -> s.Health:
    """Whether the process lives. It answers also under full load and without the database."""
    return s.Health(status="ok")


@router.api_route(
    "/ready",
    methods=["GET", "HEAD"],
    openapi_extra=door("nobody"),
    responses={503: {"model": s.Health, "description": "It cannot serve now."}},
)
async def ready(request: Request, response: Response) -> s.Health:
    """Whether it can serve: the database answers and is migrated. Says no more than that."""
    try:
        await request.app.state.readiness.check()
    except TokenlibError:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
        return s.Health(status="unavailable")
    return s.Health(status="ok")


@router.get(
    "/metrics",
    openapi_extra=door("metrics"),
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus text format."}},
)
def prometheus(read: Read, request: Request) -> PlainTextResponse:
    """Figures for Prometheus. The permission is its own: the scope `metrics` of a key, or staff."""
    text = metrics.text(read, request.app.state.requests)
    return PlainTextResponse(text, media_type=metrics.CONTENT_TYPE)


@router.get("/openapi.json", openapi_extra=door("nobody"), include_in_schema=False)
async def openapi(request: Request) -> JSONResponse:
    """This API, described."""
    return JSONResponse(request.app.openapi())


@router.get("/docs", openapi_extra=door("nobody"), include_in_schema=False)
async def page(request: Request) -> HTMLResponse:
    """The description as a page, which loads nothing from anywhere."""
    return HTMLResponse(docs.page(request.app.openapi()), headers=docs.HEADERS)
