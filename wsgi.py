"""gunicorn and the flask command find the application here. The commands check for themselves what they need."""

import os

from emailsvc.__main__ import HOW_TO_RUN

if __name__ == "__main__":  # before the rest, which may not be installed for the Python that reads this
    raise SystemExit(HOW_TO_RUN)

from emailsvc.app import load, load_for_commands

app = load_for_commands() if "FLASK_RUN_FROM_CLI" in os.environ else load()
