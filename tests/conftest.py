"""Fixtures for every test: the ones that users get, from tokenlib.testing."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.serving import SHARED
from tokenlib import embedded
from tokenlib.embedded import memory_folder

# On a Citus: see make test-citus.
pytest_plugins = ["tests.citus" if os.environ.get("TOKENLIB_TEST_CITUS") else "tokenlib.testing"]

# What tests write, among it whole database servers, lies in memory where the system offers that.
if (folder := memory_folder()) is not None:
    tempfile.tempdir = str(folder)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "bundled: about the bundled PostgreSQL, whatever else runs")
    config.addinivalue_line("markers", "thorough: more of the same, or large; make test-thorough")
    config.addinivalue_line("markers", "one_node: looks at what one server has, not a Citus")
    if SHARED not in os.environ:  # else this is a process of a run that has one
        clear_what_ended()
        shared = Path(tempfile.mkdtemp(prefix=f"tokenlib-shared-{os.getpid()}-"))
        shared.chmod(0o711)  # when root runs, the database's user passes through
        os.environ[SHARED] = str(shared)
        config.add_cleanup(lambda: shutil.rmtree(shared))


def clear_what_ended() -> None:
    """Remove what runs shared that were killed before they could do so themselves."""
    for left in Path(tempfile.gettempdir()).glob("tokenlib-shared-*-*"):
        if not psutil.pid_exists(int(left.name.split("-")[2])):
            shutil.rmtree(left, ignore_errors=True)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder for a bundled PostgreSQL, which is stopped and removed afterwards."""
    # Not pytest's own folder: it is closed to everybody else, so to the server's user under root.
    folder = Path(tempfile.mkdtemp(prefix="tokenlib-"))
    folder.chmod(0o711)
    yield folder / "data"
    embedded.stop(folder / "data")
    shutil.rmtree(folder)
