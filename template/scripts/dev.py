"""`poe dev`: start the database, migrate it and serve, reloading on changes. Ctrl-C ends all.

Options are uvicorn's: `uv run poe dev --port 8001`.
"""

import os
import signal
import sys
import threading
import time

# A Ctrl-C during the imports below, here and in the reloader's child, shows no traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_with(reloader: int) -> None:
    """End the reloader's child if the reloader is killed: it would serve on, and keep the port."""
    while os.getppid() == reloader:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__mp_main__":  # the reloader's child
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()


def doctor() -> None:
    """`poe doctor`: examine the database that `poe dev` uses."""
    from app.doctor import main
    from scripts.database import find_database, missing_database

    not_made = missing_database()
    main(None if not_made else find_database(make=False), not_made, prefix="uv run ")


def main(options: list[str]) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    from app.logging import configure_logging
    from app.server.run import serve
    from app.settings import Settings, load_settings
    from app.settings_sources import describe_database
    from scripts.address import find_url
    from scripts.database import find_database

    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = ["--reload", "--reload-dir", "app", *options]
    url = find_url(options)
    folder = find_database()
    # The reloader would wait for a file change, which cannot fix a wrong variable.
    settings = load_settings(Settings)
    print("Database:", describe_database(settings, folder))
    if settings.docs_enabled and url:
        print(f"Documentation: {url}/docs")
    sys.stdout.flush()
    configure_logging(settings)
    alembic = Config(toml_file="pyproject.toml", attributes={"settings": settings})
    try:
        command.upgrade(alembic, "head")
    except CommandError as error:  # another branch's revision, or two heads
        sys.exit(f"alembic upgrade head: {error}")
    serve(options)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
