"""Compares the blocks of real streams with their schemas in the OpenAPI document: each control event, presence events
and published ones, on a stream of one room and on one of several rooms. The gateway needs a short `--heartbeat`."""

import json
import os
import uuid
from pathlib import Path

import httpx
import jsonschema_rs

HERE = Path(__file__).parent
DOCUMENT = json.loads((HERE / "../../../openapi/openapi-3.2.json").read_text())
WAIT_SECONDS = 30
DATA_SCHEMAS = {
    "stream.open": "StreamOpen",
    "stream.gap": "StreamGap",
    "stream.position": "StreamPosition",
    "stream.end": "StreamEnd",
    "presence.join": "PresenceChange",
    "presence.leave": "PresenceChange",
}

gateway = httpx.Client(base_url=os.environ["ROOMCAST_URL"], timeout=WAIT_SECONDS)


def check_schema(name, value):
    """No member may be missing, and none may be there that the schema does not have."""
    schema = DOCUMENT["components"]["schemas"][name]
    jsonschema_rs.validator_for({**DOCUMENT, "$ref": f"#/components/schemas/{name}"}).validate(value)
    assert set(value) <= set(schema["properties"]), f"not ok - {name} has no {set(value) - set(schema['properties'])}"


def blocks(response):
    """The blocks of a stream, without comments."""
    block = {}
    for line in response.iter_lines():
        if line == "":
            if block:
                yield block
            block = {}
        elif not line.startswith(":"):
            field, value = line.split(": ", 1)
            block[field] = int(value) if field == "retry" else value


def follow(path, room, is_enveloped):
    """Makes a stream say everything that it can say."""
    subscriber = f"ann-{uuid.uuid4()}"
    query = {"room": room} if is_enveloped else {}
    query |= {"subscriber": subscriber, "presence": "true", "event": "tick"}
    if not is_enveloped:
        query["after"] = "1-5"
    publish = f"/v1/rooms/{room}/events"
    seen = set()
    with gateway.stream("GET", path, params=query) as response:
        for block in blocks(response):
            check_schema("ServerEvent", block)
            name, data = block.get("event"), json.loads(block["data"])
            if name in DATA_SCHEMAS and not (is_enveloped and name.startswith("presence.")):
                check_schema(DATA_SCHEMAS[name], data)
            elif is_enveloped:
                check_schema("RoomEvent", data)
                if name in DATA_SCHEMAS:
                    check_schema(DATA_SCHEMAS[name], data["data"])
            if name == "presence.join":
                # The stream does not get the second event, and then says its position.
                gateway.post(publish, json={"event": "tick", "data": {"n": 1}}).raise_for_status()
                gateway.post(publish, json={"event": "tock", "data": 2}).raise_for_status()
            elif name == "stream.position":
                gateway.delete(f"/v1/rooms/{room}/subscribers/{subscriber}").raise_for_status()
            seen.add(name)
    expected = {"stream.open", "presence.join", "tick", "stream.position", "stream.end"}
    expected |= set() if is_enveloped else {"stream.gap"}
    assert seen == expected, f"not ok - {path} has {seen}, expected {expected}"
    print(f"ok - the blocks of {path} are as the document says", flush=True)


room = f"schemas-{uuid.uuid4()}"
follow(f"/v1/rooms/{room}/stream", room, False)
follow("/v1/stream", f"schemas-{uuid.uuid4()}", True)
