"""The environment variables of the features, beside those of `app/settings.py`."""

from pydantic_settings import BaseSettings


class FeatureSettings(BaseSettings):
    """Each field is a variable: `payment_url: HttpUrl | None = None` is `PAYMENT_URL`."""
