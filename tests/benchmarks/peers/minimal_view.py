"""The least that answers a webhook and keeps it: JSON, one INSERT, one LPUSH. No check of anything."""

import json
import os
import threading
from typing import Any

import psycopg
import redis
from flask import Flask, request

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 10 * 1024 * 1024
queue = redis.Redis.from_url(os.environ["REDIS_URL"])
local = threading.local()

TABLE = """CREATE TABLE emails (
    id bigserial PRIMARY KEY, email_id text UNIQUE NOT NULL, recipient text, subject text, body text,
    status text NOT NULL DEFAULT 'pending', received_at timestamptz NOT NULL DEFAULT now())"""
INSERT = """INSERT INTO emails (email_id, recipient, subject, body) VALUES (%s, %s, %s, %s)
    ON CONFLICT (email_id) DO NOTHING"""


def connection() -> psycopg.Connection[Any]:
    if not hasattr(local, "connection"):
        local.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    kept: psycopg.Connection[Any] = local.connection
    return kept


@app.post("/webhook/email")
def webhook() -> tuple[dict[str, str], int]:
    email = request.get_json()
    done = connection().execute(INSERT, (email["email_id"], email["user"], email["subject"], email["body"]))
    if done.rowcount:
        queue.lpush("emails", json.dumps(email["email_id"]))
    return {"status": "accepted" if done.rowcount else "duplicate"}, 202 if done.rowcount else 200


if __name__ == "__main__":
    connection().execute(TABLE)
