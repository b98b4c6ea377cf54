"""Celery, one task for each e-mail, over a connection that each worker keeps. As a program: publish COUNT of them."""

import os
import smtplib
import sys
import threading
from email.mime.text import MIMEText
from urllib.parse import urlsplit

from celery import Celery

HELD = "held"
"""Where the tasks wait until the benchmark renames the list to the one that workers read."""

app = Celery("benchmark", broker=os.environ["REDIS_URL"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
local = threading.local()


def connection() -> smtplib.SMTP:
    if not hasattr(local, "smtp"):
        local.smtp = smtplib.SMTP(urlsplit(os.environ["SMTP_URL"]).netloc, local_hostname="localhost")
    kept: smtplib.SMTP = local.smtp
    return kept


@app.task(name="send")
def send(number: int, body: str) -> None:
    message = MIMEText(body)
    message["From"], message["To"], message["Subject"] = "no-reply@example.com", f"m-{number}@example.com", "Hello"
    connection().sendmail(message["From"], [message["To"]], message.as_bytes())


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        send.apply_async((number, sys.argv[2]), queue=HELD)
