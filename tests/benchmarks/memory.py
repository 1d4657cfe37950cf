"""Whether `tokenlib serve` grows: its memory over console reruns and API calls, side by side.

A tab is what a browser's is to the server: a websocket that asks for a page again and again, and
is closed for another after a while. Calls are charges on a thousand wallets.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle, islice
from typing import Any

import psycopg
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect as open_websocket

from tests.api.callers import PEPPER
from tests.benchmarks import machine
from tests.benchmarks.api import key_for_all, requests_of
from tests.benchmarks.http_load import Load
from tests.benchmarks.measure import Target
from tests.benchmarks.server import served
from tests.benchmarks.wallets import prepare
from tokenlib import connect
from tokenlib.config import Settings
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.tokens import EMBEDDED_DATABASE

PARTS = 20
"""The run is cut in so many; the memory after the first is the start: every page was seen by then,
and what is kept on purpose is kept."""
TABS = 2
RERUNS_OF_A_TAB = 50
CONNECTIONS = 8
MOST = 1.2
RUN_SECONDS = 60
# Pages that take long come less often, so that the run ends today.
LIGHT = ("organizations", "health", "settings", "quests", "features", "spenders")
PAGES = ("", "usage", *LIGHT * 4)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said about this part."""
    parser.add_argument("--reruns", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=100_000)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; the figures, with the targets under `targets`."""
    with ExitStack() as held:
        folder = held.enter_context(machine.folder())
        server = held.enter_context(served(folder, ["-m", "tokenlib", "serve", "--port", "{port}"]))
        tokens = held.enter_context(
            connect(settings=Settings(data_dir=folder / "data", key_pepper=PEPPER))
        )
        conninfo = Embedded(folder / "data").conninfo(EMBEDDED_DATABASE, SUPERUSER)
        owner = held.enter_context(psycopg.connect(conninfo, autocommit=True))
        world = prepare(owner)
        about = machine.about(folder, owner)
        print(machine.lines(about))
        charges = requests_of(world, key_for_all(tokens, owner))["charges, 1,000 wallets"]
        load = Load(server.port, CONNECTIONS, held)
        seen: list[dict[str, float]] = []
        reruns = calls = 0
        for _ in range(PARTS):
            reruns += _look(server.port, options.reruns // PARTS)
            wanted = calls + options.calls // PARTS
            while calls < wanted:
                calls += load.turn(charges, 1).calls
            megabytes = server.process.memory_info().rss / 1024**2
            seen.append({"reruns": reruns, "calls": calls, "megabytes": round(megabytes, 1)})
            print(f"  {reruns:>8,} reruns {calls:>9,} calls {megabytes:>8.0f} MB", flush=True)
    grown = seen[-1]["megabytes"] / seen[0]["megabytes"]
    target = Target("memory of serve at the end, to the start", grown, most=MOST)
    print(target.line())
    return {**about, "memory": seen, "targets": [target.figures()]}


def _look(port: int, reruns: int) -> int:
    """Ask for pages in a few tabs at the same time; how often it was done."""
    share = reruns // TABS
    with ThreadPoolExecutor(TABS) as threads:
        parts = [islice(cycle(PAGES), number * 7, number * 7 + share) for number in range(TABS)]
        return sum(threads.map(lambda pages: _tabs(port, list(pages)), parts))


def _tabs(port: int, pages: Sequence[str]) -> int:
    """One tab after the other, each for some pages."""
    address = f"ws://127.0.0.1:{port}/_stcore/stream"
    for start in range(0, len(pages), RERUNS_OF_A_TAB):
        with open_websocket(address, subprotocols=["streamlit"], max_size=None) as tab:  # type: ignore[list-item]
            for page in pages[start : start + RERUNS_OF_A_TAB]:
                asked = BackMsg()
                asked.rerun_script.page_name = page
                asked.rerun_script.context_info.timezone = "UTC"
                tab.send(asked.SerializeToString())
                while True:
                    said = ForwardMsg()
                    said.ParseFromString(tab.recv(timeout=RUN_SECONDS))
                    kind = said.WhichOneof("type")
                    if kind == "delta" and said.delta.new_element.WhichOneof("type") == "exception":
                        raise RuntimeError(f"{page or 'overview'}: {said.delta.new_element}")
                    if kind == "script_finished":
                        break
    return len(pages)
