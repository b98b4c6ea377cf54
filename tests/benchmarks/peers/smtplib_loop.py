"""Build and send COUNT e-mails with nothing else around it, over one connection for each of so many PROCESSES."""

import multiprocessing
import os
import smtplib
import sys
import time
from email.mime.text import MIMEText
from email.utils import formatdate, make_msgid
from multiprocessing.synchronize import Barrier
from urllib.parse import urlsplit


def send(count: int, body: str, start: Barrier) -> None:
    start.wait()
    with smtplib.SMTP(urlsplit(os.environ["SMTP_URL"]).netloc, local_hostname="localhost") as smtp:
        for number in range(count):
            message = MIMEText(body)
            message["From"], message["To"] = "no-reply@example.com", f"m-{number}@example.com"
            message["Subject"], message["Date"] = "Hello", formatdate()
            message["Message-ID"] = make_msgid(domain="example.com")
            smtp.sendmail(message["From"], [message["To"]], message.as_bytes())


if __name__ == "__main__":
    count, processes, body = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    start = multiprocessing.Barrier(processes + 1)
    loops = [multiprocessing.Process(target=send, args=(count // processes, body, start)) for _ in range(processes)]
    for loop in loops:
        loop.start()
    start.wait()
    began = time.perf_counter()
    for loop in loops:
        loop.join()
    assert all(loop.exitcode == 0 for loop in loops)
    print(time.perf_counter() - began)
