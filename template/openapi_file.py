"""The contract with the clients: `openapi.json`, the document as it was last accepted.

`poe openapi` writes it. `poe check` fails where the service's document differs, so that a review
sees each change of what clients rely on.
"""

import json
import os
import sys
from difflib import unified_diff
from pathlib import Path

from app.factory import create_app
from app.features.registration import add_features
from app.settings import Settings

FILE = Path(__file__).parent / "openapi.json"
COMMAND = "uv run poe openapi"


def make_document() -> str:
    # The document depends on no setting, so that none needs to be given here.
    app = create_app(Settings.model_construct(), add_features)
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
