"""Whoever changes an entry tells all caches, after the change."""

import uuid

import httpx


def invalidate(gateway, room, token, key):
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": str(uuid.uuid4())}
    event = {"event": "invalidate", "data": {"key": key}}
    transport = httpx.HTTPTransport(retries=3)
    with httpx.Client(transport=transport, headers=headers) as client:
        client.post(f"{gateway}/v1/rooms/{room}/events", json=event).raise_for_status()
