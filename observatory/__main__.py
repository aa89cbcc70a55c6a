"""`observatory`, and `python -m observatory`."""

import sys


def main() -> None:
    try:
        from .cli.main import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "observatory":
            raise
        sys.exit(f"observatory: the command needs {error.name}: pip install 'observatory-fleet[cli]'")
    app()


if __name__ == "__main__":
    main()
