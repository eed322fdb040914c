"""A real daemon over every fixture, once for the session.

`TPAD_TEST_PROGRAMS` is the directory of the programs `tpad` and `tpactl`; `cargo xtask test` sets
it, and by default it is where `cargo build` puts them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import tpad

from serving import FIXTURES, Daemon, import_checkpoint


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that serves all fixtures, and hands its memory over."""
    place = tmp_path_factory.mktemp("tpad")
    models = {}
    for name in FIXTURES:
        root = place / "models" / name
        shutil.copytree(FIXTURES[name], root)
        import_checkpoint(root, name, place)
        models[name] = root
    with Daemon(place, models) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[tpad.Client]:
    """A client that is handed memory over."""
    with tpad.connect(daemon.address, handoff="required") as client:
        yield client


@pytest.fixture
def remote(daemon: Daemon) -> Iterator[tpad.Client]:
    """A client whose blocks are received."""
    with tpad.connect(daemon.http_address) as client:
        yield client


@pytest.fixture(autouse=True, scope="session")
def _no_address_of_ones_own() -> None:
    os.environ.pop("TPAD_ADDR", None)


def pytest_report_header() -> list[str]:
    return [f"tpad {tpad.__version__} from {Path(tpad.__file__).parent}"]
