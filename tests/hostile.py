#!/usr/bin/env python3
"""Ten hostile callers at once, beside one that behaves well.

    cargo build --release && tests/hostile.py         # a minute, over a real Redis
    tests/hostile.py --seconds 10 --binary target/debug/roomcast

It measures the memory of the gateway and of Redis, and how long publishes of the well-behaved caller take, first alone
and then beside the others, for as long. It fails if the 99th percentile becomes more than three times as long, if memory
grows beyond a bound, or if a publish is refused. The hostile callers have tokens, and no limits but the defaults.

The hostile callers stand for clients on other machines. So they run only on processors that nothing else wants
(SCHED_IDLE): if not, the publishes would wait for the clients and not for the servers. The requests and bytes that they
get answered are printed, as the pressure that they make.
"""

import argparse
import base64
import hashlib
import hmac
import http.client
import json
import multiprocessing
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECRET = b"a-secret-of-this-script-alone-0123456789"
GATEWAY_PORT, REDIS_PORT = 18471, 18472
MIB = 1024 * 1024
MAX_GATEWAY_BYTES, MAX_REDIS_BYTES = 400 * MIB, 400 * MIB
MAX_RATIO = 3
PUBLISHES_A_SECOND = 50


def token(subject):
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    everything = {name: ["*"] for name in ["publish", "subscribe", "presence", "read", "write"]}
    claims = {"sub": subject, "exp": int(time.time()) + 3600, "roomcast": everything}
    text = part({"alg": "HS256", "typ": "JWT"}) + b"." + part(claims)
    signature = base64.urlsafe_b64encode(hmac.new(SECRET, text, hashlib.sha256).digest()).rstrip(b"=")
    return (text + b"." + signature).decode()


class Client:
    def __init__(self, subject, address="127.0.0.1"):
        self.address = address
        self.headers = {"Authorization": f"Bearer {token(subject)}"}
        self.connection, self.problem, self.received = None, None, 0

    def send(self, method, path, body=None, headers=None, drain=True):
        """The status of the answer; None if there is none. Without `drain`, only the head is read."""
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection(
                    "127.0.0.1", GATEWAY_PORT, timeout=5, source_address=(self.address, 0)
                )
            self.connection.request(method, path, body, {**self.headers, **(headers or {})})
            answer = self.connection.getresponse()
            if drain:
                body = answer.read()
                self.received += len(body)
                self.problem = body[:300] if answer.status >= 400 else None
            else:
                self.received += len(answer.read1(100))
                self.close()
            return answer.status
        except (OSError, http.client.HTTPException):
            self.close()
            return None

    def close(self):
        if self.connection is not None:
            if self.connection.sock is not None:
                # Reset: closed connections would keep the ports of this machine for a minute.
                self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.connection = None


def rooms(count):
    return "&".join(f"room=x{random.getrandbits(60):x}" for _ in range(count))


# What a hostile caller does again and again, by the number of the caller.
ATTACKS = [
    lambda c: c.send("GET", "/v1/hashes/big?" + "&".join(["field=f0"] * 500)),
    lambda c: c.send("GET", "/v1/hashes/big?limit=10000"),
    lambda c: c.send("PUT", "/v1/hashes/big/fields/f0", "x", {"If-None-Match": "*"}),
    lambda c: c.send("GET", "/v1/rooms?limit=1000"),
    lambda c: c.send("GET", "/v1/stream?recent=1000&" + "&".join(f"room=full{n}" for n in range(10)), drain=False),
    lambda c: c.send("POST", "/v1/rooms/lobby/events", "\n" * 21_000),
    lambda c: c.send("GET", f"/v1/rooms/x{random.getrandbits(60):x}/events"),
    lambda c: c.send("GET", f"/v1/stream?{rooms(20)}", drain=False),
    lambda c: c.send(
        "GET", f"/v1/rooms/lobby/stream?presence=true&subscriber=s{random.getrandbits(20)}", drain=False
    ),
    lambda c: c.send("PATCH", f"/v1/hashes/h{random.getrandbits(30)}", json.dumps({"f": "x" * 250_000}),
                     {"Content-Type": "application/json"}),
]


def attack(number, until):
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    client, statuses = Client(f"hostile-{number}"), {}
    while time.monotonic() < until:
        status = ATTACKS[number](client)
        statuses[status] = statuses.get(status, 0) + 1
        if status in (429, 503, None):
            time.sleep(0.02)
    return number, statuses, client.received


def publish(client, seconds):
    """Times of publishes in seconds, in order, and how many were refused."""
    times, refused, due = [], 0, time.monotonic()
    until = due + seconds
    while due < until:
        time.sleep(max(0, due - time.monotonic()))
        begin = time.monotonic()
        status = client.send("POST", "/v1/rooms/well-behaved/events", "hello")
        if status != 201:
            refused += 1
            print(f"a publish was refused after {time.monotonic() - begin:.3f} s: {status} {client.problem}")
        times.append(time.monotonic() - begin)
        due += 1 / PUBLISHES_A_SECOND
    return sorted(times), refused


def resident(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM")


def redis_peak():
    text = subprocess.run(["redis-cli", "-p", str(REDIS_PORT), "INFO", "memory"], capture_output=True, text=True, check=True)
    return int(next(line.split(":")[1] for line in text.stdout.splitlines() if line.startswith("used_memory_peak:")))


def prepare():
    for n in range(20):
        assert Client("prepare").send("PUT", f"/v1/hashes/big/fields/f{n}", "x" * 250_000) in (200, 201)
    for n in range(10):
        # A subject each, because of the limit of requests.
        client = Client(f"prepare-{n}")
        events = [{"room": f"full{n}", "data": "x" * 3000} for _ in range(300)]
        assert client.send("POST", "/v1/events", json.dumps({"events": events}), {"Content-Type": "application/json"}) == 200


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=int, default=60)
    arguments.add_argument("--binary", type=Path, default=ROOT / "target/release/roomcast")
    arguments.add_argument("--only", type=int, nargs="*", help="numbers of the callers that attack; all by default")
    arguments = arguments.parse_args()
    callers = range(len(ATTACKS)) if arguments.only is None else arguments.only
    folder = Path(tempfile.mkdtemp())
    redis = subprocess.Popen(
        ["redis-server", "--port", str(REDIS_PORT), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
         "--maxmemory", "350mb", "--maxmemory-policy", "noeviction", "--dir", str(folder)], stdout=subprocess.DEVNULL)
    gateway = subprocess.Popen(
        [arguments.binary, "--listen", f"127.0.0.1:{GATEWAY_PORT}", "--redis-url", f"redis://127.0.0.1:{REDIS_PORT}",
         "--log", "error"], env={**os.environ, "ROOMCAST_JWT_HS256_SECRET": SECRET.decode()},
        stdout=subprocess.DEVNULL)
    try:
        # The limit of an address would hold for all callers on this machine together.
        client = Client("well-behaved", "127.0.0.2")
        for _ in range(100):
            if client.send("GET", "/readyz") == 200:
                break
            time.sleep(0.1)
        prepare()
        alone, refused = publish(client, arguments.seconds)
        assert refused == 0, f"{refused} publishes refused without load"
        answers, received = {}, 0
        until = time.monotonic() + arguments.seconds
        with multiprocessing.get_context("fork").Pool(len(ATTACKS)) as pool:
            attacks = [pool.apply_async(attack, (number, until)) for number in callers]
            beside, refused = publish(client, arguments.seconds - 1)
            for result in attacks:
                number, answers[number], bytes_received = result.get(60)
                received += bytes_received
        for number, statuses in answers.items():
            print(f"caller {number}: " + ", ".join(f"{count} times {status}" for status, count in statuses.items()))
        requests = sum(sum(statuses.values()) for statuses in answers.values())
        print(f"{requests / arguments.seconds:.0f} requests and {received / arguments.seconds / MIB:.1f} MiB answered a second")
        p99 = [times[len(times) * 99 // 100] for times in (alone, beside)]
        ratio = p99[1] / p99[0]
        memory = resident(gateway.pid), redis_peak()
        print(f"publish p99 {p99[0] * 1e3:.2f} ms alone, {p99[1] * 1e3:.2f} ms beside: {ratio:.2f} times")
        print(f"{refused} of {len(beside)} publishes refused beside")
        print(f"gateway {memory[0] // MIB} MiB at most, Redis {memory[1] // MIB} MiB at most")
        is_held = ratio <= MAX_RATIO and refused == 0 and memory[0] <= MAX_GATEWAY_BYTES and memory[1] <= MAX_REDIS_BYTES
        print("held" if is_held else "NOT HELD")
        return 0 if is_held else 1
    finally:
        gateway.terminate()
        redis.terminate()
        gateway.wait(60)
        redis.wait(60)
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
