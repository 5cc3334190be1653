"""The environment variables of the features. Yours: an update leaves it alone."""

from pydantic_settings import BaseSettings


class FeatureSettings(BaseSettings):
    """Each field is a variable: `payment_url: HttpUrl | None = None` is `PAYMENT_URL`."""
