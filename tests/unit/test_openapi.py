"""The published contract is the one that is kept."""

from __future__ import annotations

import re

import pytest

from emailsvc.intake.payload import EmailPayload, Rules
from emailsvc.web import ROUTES
from emailsvc.web.openapi import document

RULES = Rules(frozenset({"example.com", "a-b.example"}), "X-Idempotency-Key")


def test_every_reference_leads_somewhere() -> None:
    published = document(RULES, ROUTES)
    references = set(re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(published)))
    assert references <= set(published["components"]["schemas"])
    assert {"EmailPayload", "Attachment", "Problem"} <= references


def test_every_operation_has_its_codes_and_its_own_id() -> None:
    operations = [one for methods in document(RULES, ROUTES)["paths"].values() for one in methods.values()]
    assert len({one["operationId"] for one in operations}) == len(ROUTES)
    for one in operations:
        for status, response in one["responses"].items():
            if int(status) >= 400:
                schema = response["content"]["application/problem+json"]["schema"]
                assert schema["allOf"][1]["properties"]["code"]["enum"]


def test_the_payload_is_published_as_it_is_validated() -> None:
    schema = document(RULES, ROUTES)["components"]["schemas"]["EmailPayload"]
    assert list(schema["properties"]) == list(EmailPayload.__struct_encode_fields__)
    assert schema["required"] == ["email_id", "user", "subject", "body"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["email_id"]["maxLength"] == 255
    assert schema["properties"]["send_at"]["anyOf"][0]["format"] == "date-time"


@pytest.mark.parametrize("name", ["from", "Content-Type", "BCC", "x-idempotency-key", "arc-seal", "a b", ""])
def test_the_published_header_names_leave_out_what_is_refused(name: str) -> None:
    headers = document(RULES, ROUTES)["components"]["schemas"]["EmailPayload"]["properties"]["headers"]["anyOf"][0]
    assert not re.search(headers["propertyNames"]["pattern"], name)


@pytest.mark.parametrize("name", ["X-From", "To-Do", "References", "Subject-Prefix", "List-Unsubscribe"])
def test_the_published_header_names_have_the_others(name: str) -> None:
    headers = document(RULES, ROUTES)["components"]["schemas"]["EmailPayload"]["properties"]["headers"]["anyOf"][0]
    assert re.search(headers["propertyNames"]["pattern"], name)


def test_the_published_senders_are_those_of_this_server() -> None:
    sender = document(RULES, ROUTES)["components"]["schemas"]["EmailPayload"]["properties"]["from"]["anyOf"][0][
        "pattern"
    ]
    assert re.search(sender, "x@a-b.example")
    assert not re.search(sender, "x@aXexample.com")
