"""What s3rius' fastapi-template generates, as it is."""

from peer.web.application import get_app

app = get_app()
