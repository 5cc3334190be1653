"""JSON columns: how their values are serialized."""

import json
from typing import Any

from pydantic_core import from_json, to_json


def dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False)  # NaN is not JSON


def load(text: str) -> Any:
    """Deserialize JSON; return the text itself if its value can't be represented."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:  # a lone surrogate, or nesting deeper than pydantic accepts
        try:
            value = json.loads(text)
            to_json(value)
        except (ValueError, RecursionError):
            return text
        return value
