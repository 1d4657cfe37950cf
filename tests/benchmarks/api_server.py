"""The API as `tokenlib serve --api-only` runs it, with one more endpoint: one that does nothing.

    python -m tests.benchmarks.api_server PORT WORKERS

Each process of uvicorn imports this module again before it asks for the app, so that every worker
has the endpoint.
"""

from __future__ import annotations

import sys
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount

from tokenlib.api import alone

NOTHING = "/v1/nothing"
_create = alone.create


async def nothing() -> dict[str, Any]:
    """Through the server, its middleware and FastAPI, and no further."""
    return {}


def create() -> Starlette:
    """The app of one process."""
    app = _create()
    [mount] = (route for route in app.routes if isinstance(route, Mount) and route.path == "/api")
    api: Any = mount.app
    api.add_api_route(NOTHING, nothing, methods=["POST"], response_model=None)
    return app


alone.create = create

if __name__ == "__main__":
    alone.serve("127.0.0.1", int(sys.argv[1]), int(sys.argv[2]))
