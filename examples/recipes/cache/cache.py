"""A cache in each process of a service. A room tells which entries have changed."""

import json
import threading
import time

import httpx
from httpx_sse import connect_sse


class Cache:
    def __init__(self, gateway, room, token, load):
        self.url = f"{gateway}/v1/rooms/{room}/stream"
        self.headers = {"Authorization": f"Bearer {token}"}
        self.load = load
        self.entries = {}
        self.version = 0
        self.is_following = False
        self.lock = threading.Lock()
        threading.Thread(target=self.follow, daemon=True).start()

    def get(self, key):
        with self.lock:
            if key in self.entries:
                return self.entries[key]
            version = self.version
        value = self.load(key)
        with self.lock:
            # Not kept if it was invalidated meanwhile, or without a stream.
            if self.is_following and version == self.version:
                self.entries[key] = value
        return value

    def drop(self, key=None, is_following=True):
        with self.lock:
            self.version += 1
            self.is_following = is_following
            self.entries.clear() if key is None else self.entries.pop(key, None)

    def follow(self):
        while True:
            try:
                with httpx.Client(timeout=60) as client:
                    with connect_sse(client, "GET", self.url, headers=self.headers) as stream:
                        for event in stream.iter_sse():
                            if event.event in ("stream.open", "stream.gap"):
                                self.drop()
                            elif event.event == "invalidate":
                                self.drop(json.loads(event.data)["key"])
            except httpx.HTTPError:
                pass
            self.drop(is_following=False)
            time.sleep(1)
