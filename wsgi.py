"""gunicorn and the flask command find the application here. The commands check for themselves what they need."""

import os

from emailsvc.app import load, load_for_commands

app = load_for_commands() if "FLASK_RUN_FROM_CLI" in os.environ else load()
