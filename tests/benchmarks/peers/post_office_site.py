"""django-post_office: ``migrate``, ``queue COUNT BODY``, or ``send`` with two processes of THREADS threads."""

import os
import sys
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.core.management import call_command

database, smtp = urlsplit(os.environ["DATABASE_URL"]), urlsplit(os.environ["SMTP_URL"])
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "post_office"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": database.path[1:], "USER": database.username, "HOST": database.hostname, "PORT": database.port,
        }
    },
    EMAIL_HOST=smtp.hostname,
    EMAIL_PORT=smtp.port,
    POST_OFFICE={
        "BACKENDS": {"default": "django.core.mail.backends.smtp.EmailBackend"},
        "BATCH_SIZE": int(os.environ.get("BATCH_SIZE", "1000")),
        "THREADS_PER_PROCESS": int(os.environ["THREADS"]),
        "SENDING_ORDER": ["created"],
    },
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)  # fmt: skip
django.setup()

if sys.argv[1] == "migrate":
    call_command("migrate", verbosity=0)
elif sys.argv[1] == "queue":
    from post_office import mail

    for start in range(0, int(sys.argv[2]), 1000):
        mail.send_many(
            [
                {"sender": "no-reply@example.com", "recipients": f"m-{n}@example.com", "subject": "Hello",
                 "message": sys.argv[3]}
                for n in range(start, min(start + 1000, int(sys.argv[2])))
            ]
        )  # fmt: skip
else:
    lock = os.path.join(os.environ["FOLDER"], "lock")
    call_command("send_queued_mail", processes=2, log_level=0, lockfile=lock)
