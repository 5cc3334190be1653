"""JSON columns: how their values are serialized."""

import json
from typing import Any

from pydantic_core import from_json, to_json


def dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False)  # NaN is not JSON


def refuse_constant(constant: str) -> None:
    raise ValueError(constant)


def load(text: str) -> Any:
    """Deserialize JSON; return the text itself if its value can't be represented."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:  # a lone surrogate, NaN, or nesting deeper than pydantic accepts
        try:
            value = json.loads(text, parse_constant=refuse_constant)
            to_json(value)
        except (ValueError, RecursionError):
            return text
        return value
