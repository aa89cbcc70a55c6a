"""`observatory`, and `python -m observatory`."""

import sys


def main() -> None:
    try:
        from .cli.main import app

        app()
    except ModuleNotFoundError as error:
        missing = (error.name or "observatory").split(".")[0]
        extra = {"typer": "cli", "rich": "cli", "httpx2": "cli", "starlette": "service", "uvicorn": "service"}.get(missing)
        if extra is None:
            raise
        sys.exit(f"observatory: the command needs {missing}: pip install 'observatory-fleet[{extra}]'")


if __name__ == "__main__":
    main()
