"""Follows a stream with a client from PyPI, and prints each event as a line of JSON: follow.py CLIENT URL. The lines
that a client needs are those of docs/clients.md."""

import asyncio
import json
import sys
import time


def take(type, id, data):
    print(json.dumps({"type": type, "id": id, "data": data}), flush=True)


def httpx_sse(url):
    import httpx
    from httpx_sse import connect_sse

    last = ""
    while True:
        try:
            with httpx.Client(timeout=60) as client, connect_sse(
                client, "GET", url, headers={"Last-Event-ID": last}
            ) as stream:
                for event in stream.iter_sse():
                    last = event.id
                    take(event.event, event.id, event.data)
                    if event.event == "stream.end" and json.loads(event.data)["reconnect"] == "never":
                        return
        except httpx.TransportError:
            pass
        time.sleep(2)


def sseclient_py(url):
    import requests
    from sseclient import SSEClient

    last = ""
    while True:
        try:
            response = requests.get(url, stream=True, timeout=60, headers={"Last-Event-ID": last})
            for event in SSEClient(response).events():
                last = event.id
                take(event.event, event.id, event.data)
                if event.event == "stream.end" and json.loads(event.data)["reconnect"] == "never":
                    return
        except requests.RequestException:
            pass
        time.sleep(2)


def aiohttp_sse_client(url):
    import aiohttp
    from aiohttp_sse_client.client import EventSource

    async def follow():
        last = ""
        while True:
            try:
                async with EventSource(url, headers={"Last-Event-Id": last}, timeout=None) as stream:
                    async for event in stream:
                        last = event.last_event_id
                        take(event.type or "message", event.last_event_id, event.data)
                        if event.type == "stream.end" and json.loads(event.data)["reconnect"] == "never":
                            return
            except (aiohttp.ClientError, ConnectionError):
                pass
            await asyncio.sleep(2)

    asyncio.run(follow())


_, client, url = sys.argv
{"httpx-sse": httpx_sse, "sseclient-py": sseclient_py, "aiohttp-sse-client": aiohttp_sse_client}[client](url)
