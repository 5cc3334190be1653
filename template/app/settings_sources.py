"""Where settings come from: the environment, `.env`, or a default."""

import os
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dotenv.parser import parse_stream
from pydantic import AliasChoices

if TYPE_CHECKING:
    from app.settings import ServiceSettings


def names_in(file: Any) -> list[str]:
    """Return the names that `.env` sets, in upper case, or exit and say what is wrong."""
    path = Path(file or "")
    if file and (path.is_dir() or path.is_symlink() and not path.exists()):
        sys.exit(f"{file} is a folder, or a link to a file that is not there.")
    if not path.is_file():  # a pipe can be read once
        return []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        sys.exit(f"{file} is not in UTF-8: save it in that encoding.")
    except OSError as error:
        sys.exit(f"{file} can't be read: {error.strerror}.")
    if "\0" in text:
        sys.exit(f"{file} is not in UTF-8, but perhaps in UTF-16: save it in UTF-8.")
    names = []
    for binding in parse_stream(StringIO(text)):
        if binding.error:
            line = binding.original.line
            sys.exit(f"{file}, line {line}: not NAME=value, or a quote that is not closed.")
        if binding.key is not None:
            names.append(binding.key.upper())
    return names


def variables(kind: "type[ServiceSettings]") -> Iterator[str]:
    """Yield the name of each variable that is read, in upper case."""
    for name, field in kind.model_fields.items():
        alias = field.validation_alias or name
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
        yield from (choice.upper() for choice in choices if isinstance(choice, str))


def unknown_names(settings: "ServiceSettings") -> list[str]:
    """Describe each name in `.env` that is no setting, with the likely one."""
    known = [*variables(type(settings))]
    unknown = [name for name in names_in(settings.model_config["env_file"]) if name not in known]
    texts = []
    for name in unknown:
        near = get_close_matches(name, known, 1)
        texts.append(f"{name} is not a setting" + (f"; is it {near[0]}?" if near else ""))
    return texts


def source_of(name: str) -> str:
    """Return the source of a setting that is set explicitly."""
    environment = {name.upper() for name, value in os.environ.items() if value}
    return "the environment" if name.upper() in environment else ".env"


def describe_database(settings: "ServiceSettings", folder: str | None = None) -> str:
    """Return the database's URL, as its own tools take it but without a password, and its source.

    `folder` has the data of a server of the service's own.
    """
    url = settings.driver_url
    given = settings.named_by in settings.model_fields_set
    source = folder or (source_of(settings.named_by) if given else "by default")
    shown = str(url.set(drivername=url.get_backend_name()))
    return f"{shown} ({source})"
