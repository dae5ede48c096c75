"""A worker tells how far its job is."""

import httpx


def run(gateway, token, room, steps):
    headers = {"Authorization": f"Bearer {token}"}
    transport = httpx.HTTPTransport(retries=3)
    with httpx.Client(base_url=gateway, headers=headers, transport=transport) as client:
        for done, step in enumerate(steps, start=1):
            step()
            event = {"event": "progress", "data": {"done": done, "of": len(steps)}}
            if done == len(steps):
                event["final"] = True
            key = {"Idempotency-Key": f"{room}-{done}"}
            client.post(f"/v1/rooms/{room}/events", json=event, headers=key).raise_for_status()
