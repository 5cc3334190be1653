"""The ASGI application: settings from the environment, and all features."""

import gc

from app.factory import create_app
from app.features.registration import add_features
from app.settings import Settings, load_settings

app = create_app(load_settings(Settings), add_features)

# Leave what the start allocated out of garbage collection: scanning it would block the event loop
# for some 60 ms.
gc.freeze()
