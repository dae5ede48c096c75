"""Uses the generated client as an application would. `run.py` puts it on the path as `client`."""

import datetime
import importlib
import pkgutil
import uuid

import client
import client.api
import client.models as models
from client.types import UNSET

WAIT_SECONDS = 30


def check(what, actual, expected=True):
    assert actual == expected, f"not ok - {what}: got {actual!r}, expected {expected!r}"
    print(f"ok - {what}", flush=True)


def operation(name):
    """The function of an operation. Its module has the name of its tag in the document."""
    for module in pkgutil.walk_packages(client.api.__path__, "client.api."):
        if module.name.endswith(f".{name}"):
            return importlib.import_module(module.name).sync_detailed
    raise AssertionError(f"not ok - the generated client has no operation {name}")


publish_event = operation("publish_event")
list_events = operation("list_events")
get_field = operation("get_field")
list_fields = operation("list_fields")
patch_fields = operation("patch_fields")
set_field = operation("set_field")


def run(url):
    gateway = client.Client(base_url=url, timeout=WAIT_SECONDS, raise_on_unexpected_status=True)
    publish_and_read(gateway)
    set_and_get(gateway)
    write_on_condition(gateway)
    patch(gateway)


def publish_and_read(gateway):
    room = f"python-{uuid.uuid4()}"
    published = []
    for event, data in [("tick", {"n": 1}), (UNSET, [2, None, "three"])]:
        answer = publish_event(room, client=gateway, body=models.Publish(event=event, data=data))
        check("a publish is 201", answer.status_code, 201)
        check("the answer names the room", answer.parsed.room, room)
        published.append(answer.parsed.id)

    page = list_events(room, client=gateway).parsed
    check("the log holds what was published", [event.id for event in page.events], published)
    check("the events have their data", [event.data for event in page.events], [{"n": 1}, [2, None, "three"]])
    check("the event has its name", page.events[0].event, "tick")
    check("the event has a time in UTC", page.events[0].published_at.utcoffset(), datetime.timedelta(0))
    check("the page says where the log begins and ends", [page.oldest, page.head], [published[0], published[1]])

    rest = list_events(room, client=gateway, after=published[0], limit=1).parsed
    check("the log can be read from a position", [event.id for event in rest.events], [published[1]])


def set_and_get(gateway):
    hash, field = f"python-{uuid.uuid4()}", "colour"

    absent = get_field(hash, field, client=gateway)
    check("a field that is absent is 404", absent.status_code, 404)
    check("the 404 is a problem document", [absent.parsed.status, bool(absent.parsed.code)], [404, True])
    check("the problem has the request id", bool(absent.parsed.request_id))

    created = set_field(hash, field, client=gateway, body=models.SetField(value="blue"))
    check("a new field is 201", [created.status_code, created.parsed.value], [201, "blue"])
    replaced = set_field(hash, field, client=gateway, body=models.SetField(value="grün"))
    check("a present one is 200", [replaced.status_code, replaced.parsed.value], [200, "grün"])

    read = get_field(hash, field, client=gateway)
    check("the value can be read", [read.parsed.hash_, read.parsed.field, read.parsed.value], [hash, field, "grün"])


def write_on_condition(gateway):
    hash, field = f"python-{uuid.uuid4()}", "colour"
    etag = set_field(hash, field, client=gateway, body=models.SetField(value="green")).headers["etag"]

    replaced = set_field(hash, field, client=gateway, body=models.SetField(value="red"), if_match=etag)
    check("a write whose condition holds is done", replaced.status_code, 200)
    refused = set_field(hash, field, client=gateway, body=models.SetField(value="blue"), if_match=etag)
    check("a write whose condition does not hold is 412", refused.status_code, 412)
    check("the 412 has its code", refused.parsed.code, models.ProblemCode.PRECONDITION_FAILED)
    check("the 412 has the present value", refused.parsed.present.value, "red")


def patch(gateway):
    hash = f"python-{uuid.uuid4()}"

    def body(fields):
        return models.PatchFieldsBody.from_dict(fields)

    patch_fields(hash, client=gateway, body=body({"a": "1", "b": "1", "c": "1"}))
    patched = patch_fields(hash, client=gateway, body=body({"a": "2", "c": None}), remove=["b"]).parsed
    check("a patch sets and removes", [patched.created, patched.replaced, patched.removed], [0, 1, 2])
    fields = list_fields(hash, client=gateway).parsed.fields.additional_properties
    check("the hash has what is left", {name: field.value for name, field in fields.items()}, {"a": "2"})
