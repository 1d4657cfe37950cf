"""The console at / and the API at /api, one process: `streamlit run app.py` or `tokenlib serve`."""

import streamlit as st
from starlette.routing import Mount, Route

from tokenlib.api import create_app
from tokenlib.console import links, process, refusals

api = create_app(process.gate.tokens, process.settings_or_exit())
app = st.App(
    process.FRAME,
    # A mount answers below its path; the path itself would be a page of the console.
    routes=[Mount("/api", app=api), Route("/api", endpoint=api), *links.start_pages()],
    lifespan=process.lifespan,
    on_script_error=refusals.unexpected,
)
