"""The soak, which takes minutes and is no test, works; see `python3 dev.py soak`."""

from pathlib import Path

import pytest

from tests.soak import soak_postgresql, soak_sqlite
from tests.support.services import Service

SECONDS = 3


@pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)
def test_nothing_is_lost_doubled_or_left_behind_on_postgresql(
    service: Service, tmp_path: Path
) -> None:
    assert soak_postgresql(service, tmp_path, SECONDS) == []


@pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)
def test_nothing_is_lost_doubled_or_left_behind_on_sqlite(service: Service, tmp_path: Path) -> None:
    assert soak_sqlite(service, tmp_path, SECONDS) == []
