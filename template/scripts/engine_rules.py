"""The rules of the engine that ruff cannot express; `poe check` runs this after `ruff check`.

Each finding is a line such as `app/features/items/routes.py:12:4: E8 …`. AGENTS.md lists the rules.
"""

import ast
import re
import sys
from collections.abc import Iterator
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path

SERVICE = Path(__file__).parents[1]  # not the current folder, where other code is looked at
LIFESPAN = "app/lifespan.py"
FACTORY = "app/factory.py"
DIALECT = "app/database/dialect.py"
URLS = "app/database/url.py"
SETTINGS = ("app/settings.py", "app/database/settings.py", URLS, "tests/test_database.py")
# Read, and not imported: so what can't be imported is checked too, and at once. The first letters of
# the dialect are those of each of its schemes.
[DATABASE] = re.findall(r'^DRIVER = "(\w{6})', (SERVICE / URLS).read_text("utf-8"), re.MULTILINE)
URL = re.compile(rf"\b{DATABASE}\w*(\+\w+)?://")

EVENTS = {"on_startup", "on_shutdown", "on_event", "add_event_handler"}
LOOPS = {"run_until_complete", "run_forever", "new_event_loop"}
MAKERS = {"create_engine", "engine_from_config", "async_engine_from_config", "AsyncEngine"}
# What opens a connection without SQLAlchemy: any driver's `connect`, or a pool of its own.
CONNECT = re.compile(r"(?!sqlalchemy)\w*(pg|sql)\w*\..*\b(connect|\w*[pP]ool)")
DEPENDS = {"Depends", "Security"}
UPDATES = {"set", "update_query_dict", "update_query_pairs", "update_query_string"}

ERRORS = {status.name for status in HTTPStatus if status >= 400}

Finding = tuple[ast.AST, str]


def check_module(path: str, tree: ast.Module) -> Iterator[Finding]:
    in_app = path.startswith("app/")
    imported = imports(tree)
    session_dependencies = {"get_session"} | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef) and is_session_dependency(node)
    }
    leaves_alone = {
        id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and leaves(node)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.keyword(arg=name) | ast.Constant(value=name) if (
                name in EVENTS
            ):
                yield node, "E5 startup and shutdown belong in the lifespan, on its AsyncExitStack"
            case (
                ast.Attribute(attr="lifespan_context", ctx=ast.Store())
                | ast.Constant(value="lifespan_context")
            ):
                yield node, "E5 the lifespan is given to FastAPI, in app/factory.py"
            case ast.Attribute(attr="dispose") if in_app and id(node) not in leaves_alone:
                if path != LIFESPAN:
                    yield node, "E8 only the lifespan disposes of the engine; delete the call"
            case ast.Constant(value=str(text)) if path not in SETTINGS and URL.search(text):
                yield node, "E9, E11 the URL is built in app/database/settings.py: take driver_url"
            case ast.Call(
                func=ast.Attribute(attr=name, value=ast.Attribute(attr="driver_url"))
            ) if in_app and path not in SETTINGS and name in UPDATES:
                yield node, "E11 another URL is another setting, in app/database/settings.py"
            case (
                ast.keyword(arg="poolclass")
                | ast.Constant(value="poolclass")
                | ast.Attribute(attr="pool", ctx=ast.Store())
            ) if in_app and path not in SETTINGS:
                yield node, "E12, E16 the pool is chosen in app/settings.py, in engine_options"
            case ast.Attribute(attr=name) if in_app and name in LOOPS:
                yield node, "E14 a pooled engine belongs to one event loop, the server's"
            case ast.Call() if in_app and name_of(node, imported) in MAKERS:
                yield node, "E2, E3, E10 the lifespan makes the engine, by create_async_engine"
            case ast.Call() if (
                in_app and path != DIALECT and CONNECT.fullmatch(full_name(node, imported))
            ):
                yield node, "E3 a connection beside the engine's: take request.app.state.engine"
            case ast.Call(args=given, keywords=options) if name_of(node, imported) in DEPENDS:
                names = {ast.unparse(value).rpartition(".")[2] for value in values(given, options)}
                if names & session_dependencies and not has_function_scope(options):
                    yield node, 'a session needs scope="function": commit before the response'
            case ast.AsyncFunctionDef() if in_app and annotated(node, "Session"):
                for made in filter(is_error_response, ast.walk(node)):
                    yield made, "raise an HTTPException: a returned error commits what was written"
                for call in commits(node):
                    yield call, "delete this: SessionDep commits, before the response"
            case ast.Call(func=ast.Attribute(attr="middleware"), args=given, keywords=options) if (
                any(ast.unparse(value) == "'http'" for value in values(given, options))
            ):
                yield node, "this is BaseHTTPMiddleware: write pure ASGI as in app/middleware.py"


def imports(tree: ast.Module) -> dict[str, str]:
    """Return where each imported name comes from."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.asname: name.name for name in node.names if name.asname}
    return found


def full_name(node: ast.AST, imported: dict[str, str]) -> str:
    """Return the qualified name of the function that is called."""
    if not isinstance(node, ast.Call):
        return ""
    first, dot, rest = ast.unparse(node.func).partition(".")
    return imported.get(first, first) + dot + rest


def name_of(node: ast.AST, imported: dict[str, str]) -> str:
    return full_name(node, imported).rpartition(".")[2]


def leaves(call: ast.Call) -> bool:
    """Return whether `dispose` leaves the connections alone, as a forked child must (E15)."""
    return [ast.unparse(option) for option in call.keywords] == ["close=False"]


def values(given: list[ast.expr], options: list[ast.keyword]) -> list[ast.expr]:
    return [*given, *(option.value for option in options)]


def annotated(function: ast.AsyncFunctionDef, name: str) -> set[str]:
    """Return the parameters whose annotation contains `name`."""
    parameters = [*function.args.args, *function.args.kwonlyargs]
    return {it.arg for it in parameters if it.annotation and name in ast.unparse(it.annotation)}


def commits(function: ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    sessions = annotated(function, "SessionDep")
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Attribute(attr="commit" | "begin", value=ast.Name(id=name))):
                if name in sessions:  # a block of `begin()` commits at its end
                    yield node


def is_error_response(node: ast.AST) -> bool:
    """A response is created with a status of 400 or more, or is assigned one."""
    match node:
        case ast.Assign(targets=[ast.Attribute(attr="status_code")], value=value):
            return is_error_status(value)
        case ast.Call(func=func) if re.search(r"Response$|\bproblem$", ast.unparse(func)):
            return any(map(is_error_status, values(node.args, node.keywords)))
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
    return any(isinstance(node, ast.Yield) for node in nodes) and any(map(makes_session, nodes))


def makes_session(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(attr="sessionmaker"):
            return True
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
            return re.search("session$|sessionlocal", name, re.IGNORECASE) is not None
    return False


def has_function_scope(options: list[ast.keyword]) -> bool:
    return any(
        option.arg == "scope"
        and isinstance(option.value, ast.Constant)
        and option.value.value == "function"
        for option in options
    )


def check_lifespan(tree: ast.Module) -> Iterator[Finding]:
    """One engine for each URL: made within `lifespan`, its disposal pushed by the next line."""
    imported = imports(tree)
    nodes = list(ast.walk(tree))
    engines = [
        node
        for node in nodes
        if isinstance(node, ast.Call) and name_of(node, imported) == "create_async_engine"
    ]
    if not engines:
        yield tree, "E2 the engine is made here, within `lifespan`"
    urls: set[str] = set()
    for engine in engines:
        given = values(engine.args, engine.keywords)
        url = ast.unparse(given[0]) if given else ""
        if url in urls:
            yield engine, "E1 a second engine for the same URL: one per process is enough"
        urls.add(url)
        for option in engine.keywords:
            if option.arg and re.match(r"pool|max_overflow", option.arg):
                yield option, "E12, E16 the pool is tuned in app/settings.py, in engine_options"

    inside: list[ast.AST] = []
    for function in tree.body:
        if isinstance(function, ast.AsyncFunctionDef) and function.name == "lifespan":
            inside += ast.walk(function)
    pushed = [
        made.value
        for node in inside
        if isinstance(body := getattr(node, "body", []), list)
        for made, following in pairwise(body)
        if isinstance(made, ast.Assign | ast.AnnAssign) and pushes(following, made)
    ]
    for engine in engines:
        if engine not in inside:
            yield engine, "E4 the engine is made within `lifespan`, not by an import"
        elif engine not in pushed:
            yield engine, "E6 the line after the engine pushes its disposal on the stack"
    if not stores(inside, "engine"):
        yield tree, "E7 the engine is reached as app.state.engine"
    for node in inside:
        if name_of(node, {}) == "dispose":
            yield node, "E8 the stack disposes of the engine, at shutdown"


def pushes(statement: ast.stmt, made: ast.Assign | ast.AnnAssign) -> bool:
    """Return whether `stack.push_async_callback(…)` gets what the previous line made."""
    target = ast.unparse(made.target if isinstance(made, ast.AnnAssign) else made.targets[0])
    return any(
        name_of(node, {}) == "push_async_callback" and target in ast.unparse(node)
        for node in ast.walk(statement)
    )


def stores(nodes: list[ast.AST], name: str) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store)
        for node in nodes
    )


def check_main(tree: ast.Module) -> Iterator[Finding]:
    nodes = list(ast.walk(tree))
    if not any(isinstance(node, ast.keyword) and node.arg == "lifespan" for node in nodes):
        yield tree, "E5 FastAPI is given the lifespan: lifespan=lifespan"
    if not stores(nodes, "settings"):
        yield tree, "E7 the settings are reached as app.state.settings"


def check_all() -> Iterator[str]:
    for folder in ("app", "migrations", "tests"):
        for file in sorted(Path(folder).rglob("*.py")):
            path, tree = file.as_posix(), ast.parse(file.read_text(encoding="utf-8"))
            findings = [*check_module(path, tree)]
            if path == LIFESPAN:
                findings += check_lifespan(tree)
            if path == FACTORY:
                findings += check_main(tree)
            for node, message in findings:
                line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
                yield f"{path}:{line}:{column}: {message}"


if __name__ == "__main__":
    found = list(check_all())
    print(*found or ["All engine rules are kept."], sep="\n")
    sys.exit(bool(found))
