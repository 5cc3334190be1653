"""`python -m app.server`: serve as the image does."""

from app.server.run import serve

serve()
