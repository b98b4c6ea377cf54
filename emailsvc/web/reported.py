"""Where providers and programs of one's own tell what became of e-mails: a route for each row of ``READERS``."""

from __future__ import annotations

import logging
from collections.abc import Callable

from emailsvc import outbox
from emailsvc.context import service
from emailsvc.feedback.events import Event
from emailsvc.feedback.own import ReportedEvents
from emailsvc.feedback.providers import CONFIRMATIONS, Read
from emailsvc.feedback.routes import OWN, READERS, path_of
from emailsvc.log import without_addresses
from emailsvc.vocabulary import Report
from emailsvc.web.answers import HeardAnswer
from emailsvc.web.auth import REPORTS
from emailsvc.web.contract import Routes
from emailsvc.web.reading import body

log = logging.getLogger("emailsvc.web")

blueprint = Routes(REPORTS, __name__)


def _taking(name: str, read: Read) -> Callable[[], HeardAnswer]:
    """Whatever its Content-Type: Amazon SNS calls its JSON ``text/plain``."""

    def take() -> HeardAnswer:
        raw = body()
        if name in CONFIRMATIONS and (url := CONFIRMATIONS[name](raw)):
            log.warning("subscription_to_confirm", extra={"fields": {"route": name, "url": url}})
        heard = outbox.hear(service().engine, read(raw))
        for email_id, event in heard.noted:
            _log(email_id, event)
        outbox.log_settled(heard.settled)
        if heard.unmatched:
            log.info("reports_unmatched", extra={"fields": {"route": name, "count": heard.unmatched}})
        return HeardAnswer(len(heard.noted), heard.repeated, heard.unmatched, heard.ignored, len(heard.settled))

    take.__name__ = name
    return take


def _log(email_id: str, event: Event) -> None:
    text = None if event.text is None else without_addresses(event.text)
    fields = {"email_id": email_id, "report": event.event, "kind": event.kind, "code": event.code, "text": text}
    is_bad = event.event in (Report.BOUNCED, Report.COMPLAINED)
    log.log(logging.WARNING if is_bad else logging.INFO, "reported", extra={"fields": fields})


for _name, _read in READERS.items():
    _summary = "Tell what became of e-mails" if _name == OWN else f"The same, as {_name} tells it"
    _body = ReportedEvents if _name == OWN else None
    blueprint.declare("POST", path_of(_name), "reporter", _summary, body=_body)(_taking(_name, _read))
