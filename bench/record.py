#!/usr/bin/env python3
"""Writes release/roomcast.profdata: how often each part of the gateway runs under load, by which release/build lays it out.

Run it with every version of Roomcast, of Rust or of a dependency, which is part of the functions' names, and when much of what a publish or
a stream runs has changed. It builds the gateway with counters and loads it: on Redis, and on the embedded broker with a data folder and
tokens. It needs redis-server, and llvm-tools of rustup.
"""

import http.client
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import compare

PROFILE = compare.ROOT / "release/roomcast.profdata"
COUNTED_FOR = compare.ROOT / "release/counted-for"
TARGET = compare.ROOT / "target/counting"
COUNTS = TARGET / "counts"
SECRET = "0123456789abcdef0123456789abcdef"  # opens nothing but the gateway that this script starts
# Publishes that find the code cold weigh most, since they have most to gain.
LOADS = [
    (compare.PEERS["roomcast"], "--subscribers=2000 --rooms=200 --count=2000 --rate=200"),
    (compare.PEERS["roomcast"], "--subscribers=1000 --rooms=1 --count=60 --rate=20"),
    (compare.PEERS["roomcast"], "--subscribers=500 --rooms=1 --count=300 --rate=0"),
    (compare.PEERS["roomcast-several"], "--subscribers=200 --rooms=20 --count=200 --rate=50"),
]
CALLS = 200
# So that none of it is refused.
LIMITS = {"ROOMCAST_RATE_PER_ADDRESS": "100000", "ROOMCAST_RATE_PER_SUBJECT": "100000", "ROOMCAST_MAX_STREAMS_PER_SUBJECT": "10000"}


def profdata():
    """LLVM's tool, of rustc's own version."""
    ask = lambda *question: subprocess.run(["rustc", *question], cwd=compare.ROOT, capture_output=True, text=True, check=True).stdout
    host = next(line.split()[1] for line in ask("-vV").splitlines() if line.startswith("host:"))
    tool = pathlib.Path(ask("--print", "sysroot").strip(), "lib/rustlib", host, "bin/llvm-profdata")
    if not tool.exists():
        sys.exit(f"{tool.name} is not there: rustup component add llvm-tools")
    return tool


def build():
    environment = os.environ | {"CARGO_ENCODED_RUSTFLAGS": f"-Cprofile-generate={COUNTS}", "CARGO_TARGET_DIR": str(TARGET)}
    subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "roomcast"], cwd=compare.ROOT, env=environment, check=True)
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=compare.HERE, check=True)


def call(port, headers):
    """What is called besides publishes and streams."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    batch = {"events": [{"room": f"room-{n}", "data": {"n": n}} for n in range(20)]}
    requests = [
        ("POST", "/v1/rooms/room-1/events", {"event": "chat", "data": {"text": "hi", "price": 1.10}}),
        ("POST", "/v1/events", batch),
        ("GET", "/v1/rooms/room-1/events?limit=50", None),
        ("PUT", "/v1/hashes/lamp/fields/colour", "green"),
        ("GET", "/v1/hashes/lamp/fields/colour", None),
        ("PATCH", "/v1/hashes/lamp", {"colour": "blue", "old": None}),
        ("GET", "/v1/hashes/lamp", None),
        ("GET", "/v1/rooms", None),
        ("GET", "/metrics", None),
    ]
    for _ in range(CALLS):
        for method, path, body in requests:
            kind = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
            connection.request(method, path, json.dumps(body) if kind else body, headers | kind)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status >= 300:
                sys.exit(f"{method} {path} was answered with {answer.status}: {text.decode()}")


def load(peer, headers):
    """Loads a gateway, which leaves its counts as it ends."""
    before = len(list(COUNTS.glob("*")))
    server = compare.Server(peer)
    try:
        fanbench = [compare.FANBENCH, "--target", server.target, "--url", f"http://127.0.0.1:{server.port}", "--quiet"]
        fanbench += [f"--header={name}: {value}" for name, value in headers.items()]
        for (_, _, _, _, *paths), settings in LOADS:
            subprocess.run([*fanbench, *paths, *settings.split()], check=True)
        call(server.port, headers)
    finally:
        server.stop()
    if len(list(COUNTS.glob("*"))) == before:
        sys.exit(f"{peer} has left no counts")


def main():
    if not shutil.which("redis-server"):
        sys.exit("redis-server is not there: apt-get install redis-server")
    tool = profdata()
    build()
    # Of what ran until now, which was macros and build scripts.
    shutil.rmtree(COUNTS, ignore_errors=True)
    os.environ["LLVM_PROFILE_FILE"] = f"{COUNTS}/%p.profraw"
    compare.BINARY = str(TARGET / "release/roomcast")
    compare.SERVER_CPU = f"{compare.SERVER_CPU},{compare.BENCH_CPU}"
    os.environ.update(LIMITS)
    load("roomcast-redis", {})
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(ROOMCAST_DATA_DIR=folder, ROOMCAST_JWT_HS256_SECRET=SECRET)
        token = subprocess.run([compare.BINARY, "token", "--sub", "load", "--admin"], capture_output=True, text=True, check=True).stdout.strip()
        load("roomcast", {"Authorization": f"Bearer {token}"})
    subprocess.run([tool, "merge", "--sparse", f"--output={PROFILE}", *COUNTS.iterdir()], check=True)
    COUNTED_FOR.write_bytes(subprocess.run([compare.ROOT / "release/versions"], capture_output=True, check=True).stdout)
    print(f"wrote {PROFILE.relative_to(compare.ROOT)}: {PROFILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
