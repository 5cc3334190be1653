"""Pages return what their rows contain."""

from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import literal, select

from app.database.reader import Reader
from app.pagination import Page
from app.settings import ServiceSettings


class Thing(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    kind: str = Field("none", validation_alias="class")


class Open(Thing):
    model_config = ConfigDict(extra="allow")


@pytest.fixture
def settings(shared_settings: ServiceSettings) -> ServiceSettings:
    return shared_settings


ID, KIND = literal(7).label("id"), literal("a").label("class")


@pytest.mark.parametrize("model", [Thing, Open])
@pytest.mark.parametrize(
    "columns",
    [
        (ID,),
        (KIND, ID),  # the name is a keyword
        (ID, literal("secret").label("_hidden")),
        (ID, literal("secret").label("1 + 1")),
        (literal("secret").label("hidden"), ID),
    ],
)
async def test_a_page_reads_the_attributes_of_its_rows(
    app: FastAPI, columns: tuple[Any, ...], model: type[Thing]
) -> None:
    reader: Reader = app.state.reader
    rows = (await reader.execute(select(*columns))).all()
    others = (await reader.execute(select(KIND, literal(8).label("id")))).all()
    mixed = [*rows, *others, *rows, model.model_validate({"id": 9})]
    page = Page[model].model_validate({"items": mixed, "next_cursor": None})  # type: ignore[valid-type]
    assert page.items == [model.model_validate(row) for row in mixed]
    assert "secret" not in page.model_dump_json()
