"""Uses the client that openapi-generator has generated for Python, as an application would."""

import os
import uuid

from openapi_client import ApiClient, ApiException, Configuration, HashesApi, Publish, RoomsApi, SetField

client = ApiClient(Configuration(host=os.environ["ROOMCAST_URL"]))
rooms, hashes = RoomsApi(client), HashesApi(client)
name = f"openapi-generator-python-{uuid.uuid4()}"


def check(what, actual, expected=True):
    assert actual == expected, f"not ok - {what}: got {actual!r}, expected {expected!r}"
    print(f"ok - {what}", flush=True)


def failure(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except ApiException as error:
        return error
    raise AssertionError("not ok - the call fails")


published = rooms.publish_event(name, Publish(event="tick", data={"n": 1}))
log = rooms.list_events(name)
check("the log holds what was published", [(event.id, event.data) for event in log.events], [(published.id, {"n": 1})])
check("the log has no gap", log.gap, None)

absent = failure(hashes.get_field, name, "colour")
check("a field that is absent is 404", absent.status, 404)
check("the 404 is a problem document", absent.data.code.value, "field_not_found")

created = hashes.set_field_with_http_info(name, "colour", SetField(value="green"))
check("a new field is 201", created.status_code, 201)
etag = created.headers["etag"]
hashes.set_field(name, "colour", SetField(value="red"), if_match=etag)
refused = failure(hashes.set_field, name, "colour", SetField(value="blue"), if_match=etag)
check("a write whose condition does not hold is 412", refused.status, 412)
check("the 412 has the present value", refused.data.present.value, "red")

hashes.patch_fields(name, {"a": "1", "b": "1"})
patched = hashes.patch_fields(name, {"a": "2", "colour": None}, remove=["b"])
check("a patch sets and removes", [patched.replaced, patched.removed], [1, 2])
fields = hashes.list_fields(name).fields
check("the hash has what is left", {field: value.value for field, value in fields.items()}, {"a": "2"})
