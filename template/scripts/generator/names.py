"""Names: which are refused everywhere, and the singular of one."""

import builtins
import keyword
import re

from sqlalchemy.sql.compiler import RESERVED_WORDS

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")

SINGULARS = {"sses": "ss", "shes": "sh", "xes": "x"}
# Cases and statuses, categories and movies, matches and caches, heroes and shoes.
SAME = ("series", "species")
AMBIGUOUS = {"ses": "se", "zes": "ze", "ies": "y", "ches": "ch", "oes": "o"}


class RefusedError(Exception):
    """Why a feature is not written."""


def check_name(name: str, *, sql: bool = True) -> None:
    if not NAME.fullmatch(name):
        raise RefusedError(
            f"{name!r} is no name: take lower-case words, joined by underscores, as in order_lines."
        )
    if keyword.iskeyword(name) or hasattr(builtins, name):
        raise RefusedError(f"{name} is a word of Python's: take another name.")
    if sql and name in RESERVED_WORDS:
        raise RefusedError(f"{name} is a word of SQL's: take another name.")


def guess_singular(plural: str) -> str:
    for ending, singular in (SINGULARS | AMBIGUOUS).items():
        if plural.endswith(ending) and not plural.endswith(SAME):
            guess = plural.removesuffix(ending) + singular
            if ending in SINGULARS:
                return guess
            raise RefusedError(f"The singular of {plural} is unclear: is it --singular {guess}?")
    if not re.search("[^sui]s$", plural) or plural.endswith(SAME):
        raise RefusedError(
            f"The singular of {plural} is unclear: pass it, as in people --singular person, or"
            " another word for one, as in sheep --singular one_sheep."
        )
    return plural.removesuffix("s")


def camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))
