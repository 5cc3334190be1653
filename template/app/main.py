"""What `app.server` runs: the service with the environment's settings and its features."""

import gc

from app.factory import create_app
from app.features.registration import add_features
from app.settings import Settings, load_settings

app = create_app(load_settings(Settings), add_features)

# What exists by now stays: a full collection that visits it blocks the loop for 60 ms.
gc.freeze()
