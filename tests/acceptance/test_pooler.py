"""The whole deploy behind PgBouncer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tests.factories import payload
from tests.servers import PgBouncer, PostgreSQL
from tests.smtpd import Smtpd
from tests.stack import Stack, copies, smtp_url


def test_a_deploy_through_it(
    make_pooler: Callable[..., PgBouncer], postgresql: PostgreSQL, redis_url: str, make_stack: Callable[..., Stack]
) -> None:
    """Release phase, two web processes and two workers; each e-mail is delivered once."""
    pooler, name = make_pooler(ignore="options"), postgresql.create_database()
    with Smtpd() as server:
        urls = {"DATABASE_URL": pooler.url(name), "REDIS_URL": redis_url, "SMTP_URL": smtp_url(server)}
        stack = make_stack(**urls, WEB_CONCURRENCY="2")
        stack.start(workers=2)
        emails = [payload(f"m-{number}") for number in range(150)]
        assert Counter(stack.together(16, emails, lambda e: stack.post(e).status)) == {202: 150}
        assert Counter(stack.together(16, emails, lambda e: stack.post(e).status)) == {200: 150}
        stats = stack.wait_settled()
        assert (stats["sent"], stats["duplicates"], stats["failed_attempts"]) == (150, 150, 0)
        assert copies(server) == {payload["email_id"]: 1 for payload in emails}
        assert "Traceback" not in stack.tail(10**6)
        stack.stop()
    postgresql.drop_database(name)
