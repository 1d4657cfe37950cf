"""Fixtures for every test: the ones that users get, from tokenlib.testing."""

import os
import tempfile

import pytest

from tokenlib.embedded import memory_folder

# On a Citus: see make test-citus.
pytest_plugins = ["tests.citus" if os.environ.get("TOKENLIB_TEST_CITUS") else "tokenlib.testing"]

# What tests write, among it whole database servers, lies in memory where the system offers that.
if (folder := memory_folder()) is not None:
    tempfile.tempdir = str(folder)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "bundled: about the bundled PostgreSQL, whatever else runs")
    config.addinivalue_line("markers", "one_node: looks at what one server has, not a Citus")
