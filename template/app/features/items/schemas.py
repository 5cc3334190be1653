"""What the endpoints of the items accept and return. Yours: an update leaves it alone."""

import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.etags import Versioned
from app.features.items.models import MAX_DESCRIPTION_LENGTH, MAX_NAME_LENGTH
from app.fields import Id, Normalized, Text

Name = Annotated[
    Text, Field(min_length=1, max_length=MAX_NAME_LENGTH, examples=["Spanner"]), Normalized
]
Description = Annotated[Text, Field(max_length=MAX_DESCRIPTION_LENGTH, examples=["13 mm"])]


class ItemCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name
    description: Description | None = None


class ItemUpdate(BaseModel):
    """The fields to change; an absent one stays as it is."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(default_factory=str)  # optional, but not nullable
    description: Description | None = None


class ItemRead(Versioned):
    id: Id
    name: str
    description: str | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
