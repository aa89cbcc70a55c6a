"""The description of the service: what it says of bodies is what they are."""

from typing import Any

import jsonschema
import pytest

from observatory.service import openapi

CALL = {
    "id": "01",
    "type": "llm_call",
    "provider": "openai",
    "model": "gpt-4o-mini",
    "latency": 1.24,
    "usage": {"input_tokens": 812, "output_tokens": 96},
    "cost_usd": "0.0002",
    "success": True,
    "dimensions": {"team": "search"},
}


def schema(media_type: str) -> dict[str, Any]:
    document = openapi.document()
    body = document["paths"]["/v1/events"]["post"]["requestBody"]["content"][media_type]["schema"]
    return {**body, "components": document["components"]}


@pytest.mark.parametrize("body", [[CALL], CALL, [{"type": "ticket_closed", "ticket": "T-17"}], []])
def test_events_that_are_accepted_fit_the_description(body: object) -> None:
    """The page's own example, one event alone, and an event of somebody's."""
    jsonschema.validate(body, schema("application/json"))


@pytest.mark.parametrize("body", [[{"id": "01"}], 5, [{**CALL, "usage": 5}], [{"type": "x", "dimensions": {"a": 5}}]])
def test_events_that_are_refused_do_not(body: object) -> None:
    """And lines are described as well as arrays."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body, schema("application/json"))
    jsonschema.validate(CALL, schema("application/x-ndjson"))
