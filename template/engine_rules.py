"""The rules of the engine that ruff has no words for; `poe check` runs this after `ruff check`.

Each finding is a line such as `app/items/routes.py:12:4: E8 …`. AGENTS.md lists the rules.
"""

import ast
import re
import sys
from collections.abc import Iterator
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path

from app.database_url import DRIVER

LIFESPAN = "app/lifespan.py"
SETTINGS = (
    "app/settings.py",
    "app/database_settings.py",
    "app/database_url.py",
    "tests/test_database.py",
)
URL = re.compile(rf"\b{DRIVER[:6]}\w*(\+\w+)?://")

ERRORS = {status.name for status in HTTPStatus if status >= 400}

Finding = tuple[ast.AST, str]


def check_module(path: str, tree: ast.Module) -> Iterator[Finding]:
    in_app = path.startswith("app/")
    session_dependencies = {"get_session"} | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef) and is_session_dependency(node)
    }
    for node in ast.walk(tree):
        match node:
            case (
                ast.Call(func=ast.Attribute(attr="on_event" | "add_event_handler"))
                | ast.keyword(arg="on_startup" | "on_shutdown")
            ):
                yield node, "E5 start and end belong into the lifespan, on its AsyncExitStack"
            case ast.Call(func=ast.Attribute(attr="dispose"), keywords=[]) if in_app:
                if path != LIFESPAN:
                    yield node, "E8 only the lifespan disposes of the engine; delete the call"
            case ast.Constant(value=str(text)) if path not in SETTINGS and URL.search(text):
                yield node, "E9, E11 the URL is built in app/database_settings.py: take driver_url"
            case ast.keyword(arg="poolclass") if in_app and path not in SETTINGS:
                yield node, "E16 a pool class is chosen in app/settings.py, in engine_options"
            case ast.Call(func=ast.Name("Depends"), args=[ast.Name(name)], keywords=options):
                if name in session_dependencies and not has_function_scope(options):
                    yield node, 'a session needs scope="function": commit before the response'
            case ast.AsyncFunctionDef() if in_app and takes_session(node):
                for made in filter(is_error_response, ast.walk(node)):
                    yield made, "raise an HTTPException: a returned error commits what was written"
            case ast.Call(func=ast.Attribute(attr="middleware"), args=[ast.Constant("http")]):
                yield node, "this is BaseHTTPMiddleware: write pure ASGI as in app/middleware.py"


def takes_session(function: ast.AsyncFunctionDef) -> bool:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    return any("Session" in ast.unparse(arg.annotation) for arg in arguments if arg.annotation)


def is_error_response(node: ast.AST) -> bool:
    """A response is made with a status of 400 or more, or is given one."""
    match node:
        case ast.Assign(targets=[ast.Attribute(attr="status_code")], value=value):
            return is_error_status(value)
        case ast.Call(func=func) if re.search(r"Response$|\bproblem$", ast.unparse(func)):
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            return any(map(is_error_status, values))
    return False


def is_error_status(value: ast.expr) -> bool:
    match value:
        case ast.Constant(value=int(code)):
            return 400 <= code < 600
        case ast.Attribute(attr=name):
            return name in ERRORS or name.startswith(("HTTP_4", "HTTP_5"))
    return False


def is_session_dependency(function: ast.AsyncFunctionDef) -> bool:
    nodes = list(ast.walk(function))
    return any(isinstance(node, ast.Yield) for node in nodes) and any(
        isinstance(node, ast.Attribute) and node.attr == "sessionmaker" for node in nodes
    )


def has_function_scope(options: list[ast.keyword]) -> bool:
    return any(
        option.arg == "scope"
        and isinstance(option.value, ast.Constant)
        and option.value.value == "function"
        for option in options
    )


def check_lifespan(tree: ast.Module) -> Iterator[Finding]:
    """The one engine: made within `lifespan`, its disposal pushed on the stack by the next line."""
    engines = [node for node in ast.walk(tree) if is_call(node, "create_async_engine")]
    if not engines:
        yield tree, "E2 the engine is made here, within `lifespan`"
    for engine in engines[1:]:
        yield engine, "E1 a second engine: one per process is enough"

    inside: list[ast.AST] = []
    for function in tree.body:
        if isinstance(function, ast.AsyncFunctionDef) and function.name == "lifespan":
            inside += ast.walk(function)
    if engines and engines[0] not in inside:
        yield engines[0], "E4 the engine is made within `lifespan`, not by an import"
    for block in (node.body for node in inside if isinstance(node, ast.AsyncWith)):
        for made, following in pairwise(block):
            if not isinstance(made, ast.Assign) or made.value not in engines:
                continue
            if not any(is_call(node, "push_async_callback") for node in ast.walk(following)):
                yield following, "E6 the line after the engine pushes its disposal on the stack"
    if not any(isinstance(node, ast.Attribute) and node.attr == "engine" for node in inside):
        yield tree, "E7 the engine is reached as app.state.engine"


def is_call(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and name in (
        getattr(node.func, "id", None),
        getattr(node.func, "attr", None),
    )


def check_all() -> Iterator[str]:
    for folder in ("app", "migrations", "tests"):
        for file in sorted(Path(folder).rglob("*.py")):
            path, tree = file.as_posix(), ast.parse(file.read_text(encoding="utf-8"))
            findings = [*check_module(path, tree)]
            if path == LIFESPAN:
                findings += check_lifespan(tree)
            for node, message in findings:
                line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
                yield f"{path}:{line}:{column}: {message}"


if __name__ == "__main__":
    found = list(check_all())
    print(*found or ["All engine rules are kept."], sep="\n")
    sys.exit(bool(found))
