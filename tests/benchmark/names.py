"""What readers call what is measured."""

DATABASES = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}
KINDS = {
    "get": "GET by id",
    "list": "list of 100",
    "post": "POST",
    "once": "POST of one statement",
    "plain": "no database",
}
APPS = {
    "bare": "bare",
    "service": "this service",
    "usual": "as usually written",
    "s3rius": "s3rius' template",
    "litestar": "Litestar",
}
CLIENTS = ("12", "32", "200")
