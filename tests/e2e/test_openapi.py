"""Requests made from the OpenAPI document: none may make the service stumble."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.guards import Guard
from tests.fake_upstream import FakeUpstream, delta, finish, streamed, whole

pytestmark = pytest.mark.e2e

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture
def document(guard: Guard, upstream: FakeUpstream) -> schemathesis.BaseSchema:
    upstream.answer(
        lambda asked: (
            streamed([delta(content="Good day."), finish()])
            if b'"stream":true' in asked.body
            else whole({"content": "Good day."}, data=[])
        )
    )
    return schemathesis.openapi.from_url(f"{guard.url}/openapi.json")


@schemathesis.pytest.from_fixture("document").parametrize()
@settings(
    max_examples=15,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_no_request_makes_it_stumble(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS, timeout=30)
