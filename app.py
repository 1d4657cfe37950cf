"""The console at / and the API at /api, one process: `streamlit run app.py` or `tokenlib serve`."""

import streamlit as st
from starlette.middleware import Middleware
from starlette.routing import Mount, Route

from tokenlib.api import create_app
from tokenlib.console import door, links, nowhere, process, refusals

settings = process.settings_or_exit()
process.require_safe(
    settings, st.get_option("server.address"), st.get_option("server.trustedUserHeaders")
)
api = create_app(process.gate.tokens, settings)
app = st.App(
    process.FRAME,
    # A mount answers below its path; the path itself would be a page of the console.
    routes=[Mount("/api", app=api), Route("/api", endpoint=api), *links.start_pages()],
    middleware=[Middleware(door.Door), Middleware(nowhere.Nowhere)],
    lifespan=process.lifespan,
    secrets=process.secrets(settings),
    on_script_error=refusals.unexpected,
)
