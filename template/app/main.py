"""What a server runs: `uvicorn app.main:app`."""

from app.factory import create_app
from app.features.registration import add_features
from app.settings import Settings, load_settings

app = create_app(load_settings(Settings), add_features)
