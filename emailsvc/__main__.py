"""`python -m emailsvc` and `python wsgi.py` start nothing: they say what does."""

HOW_TO_RUN = "emailsvc: run `.venv/bin/flask start` in this folder (README.md says how .venv is made)."

if __name__ == "__main__":
    raise SystemExit(HOW_TO_RUN)
