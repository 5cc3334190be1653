"""The contract with clients: `openapi.json`, the document as it was last accepted.

`poe openapi` writes it. `poe check` fails where the service's document differs, so that a review
sees each change of what clients rely on.
"""

import json
import os
import sys
from difflib import unified_diff
from pathlib import Path

from pydantic import ValidationError

from app.factory import create_app
from app.features.registration import add_features
from app.features.settings import FeatureSettings
from app.settings import Settings
from tests.features.conftest import REQUIRED

FILE = Path(__file__).parents[1] / "openapi.json"
COMMAND = "uv run poe openapi"


def make_settings() -> Settings:
    """Set what the features require, and leave the rest at its default.

    So the document is the same in every environment, and CI needs no variables.
    """
    for name in FeatureSettings.model_fields:
        os.environ.pop(name.upper(), None)
    try:
        features = FeatureSettings(**REQUIRED)
    except ValidationError as error:
        names = sorted({str(problem["loc"][0]) for problem in error.errors() if problem["loc"]})
        sys.exit(f"{', '.join(names)}: set it in REQUIRED of tests/features/conftest.py.")
    return Settings.model_construct(**dict(features))


def make_document() -> str:
    app = create_app(make_settings(), add_features)
    return json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    document = make_document()
    if "--check" not in sys.argv[1:]:
        FILE.write_text(document, "utf-8")
        print(f"{FILE.name} is written. Commit it.")
    elif FILE.exists():
        accepted = FILE.read_text("utf-8")
        if document != accepted:
            old, new = accepted.splitlines(keepends=True), document.splitlines(keepends=True)
            sys.stdout.writelines(unified_diff(old, new, FILE.name, "the service"))
            sys.exit(f"The service differs from {FILE.name}. To accept that: {COMMAND}")
    elif os.environ.get("CI"):
        sys.exit(f"{FILE.name} is not there. Make it by {COMMAND}, and commit it.")
    else:
        FILE.write_text(document, "utf-8")
        print(f"{FILE.name} is new. Commit it: it says what clients may rely on.")


if __name__ == "__main__":
    main()
