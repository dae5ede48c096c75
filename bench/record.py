#!/usr/bin/env python3
"""Records the profile that release/build optimizes the gateway with: release/roomcast.profdata.

    bench/record.py

It builds the gateway with counters and loads it twice: on Redis, and on the embedded broker with a
data folder and tokens. The counters tell how often each part of the gateway runs.

Run it after a change of the version of Roomcast, Rust or a dependency, because the version is a
part of the functions' names in the profile. Run it also when much of the code of a publish or of a
stream has changed. It needs redis-server, and rustup's component llvm-tools.
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
VERSIONS = compare.ROOT / "release/counted-for"
TARGET = compare.ROOT / "target/counting"
COUNTS = TARGET / "counts"
SECRET = "0123456789abcdef0123456789abcdef"  # of the gateway that this script starts, and of no other
# Mostly publishes that do not find the code in the CPU caches, because they gain most from the profile.
LOADS = [
    (compare.PEERS["roomcast"], "--subscribers=2000 --rooms=200 --count=2000 --rate=200"),
    (compare.PEERS["roomcast"], "--subscribers=1000 --rooms=1 --count=60 --rate=20"),
    (compare.PEERS["roomcast"], "--subscribers=500 --rooms=1 --count=300 --rate=0"),
    (compare.PEERS["roomcast-several"], "--subscribers=200 --rooms=20 --count=200 --rate=50"),
]
CALLS = 200
# High enough that no request is refused.
LIMITS = {
    "ROOMCAST_RATE_PER_ADDRESS": "100000",
    "ROOMCAST_RATE_PER_SUBJECT": "100000",
    "ROOMCAST_MAX_STREAMS_PER_SUBJECT": "10000",
}


def rustc(*arguments):
    """What rustc prints."""
    command = ["rustc", *arguments]
    return subprocess.run(command, cwd=compare.ROOT, capture_output=True, text=True, check=True).stdout


def find_profdata():
    """The path of llvm-profdata, in the version that matches rustc."""
    host = next(line.split()[1] for line in rustc("-vV").splitlines() if line.startswith("host:"))
    tool = pathlib.Path(rustc("--print", "sysroot").strip(), "lib/rustlib", host, "bin/llvm-profdata")
    if not tool.exists():
        sys.exit(f"{tool.name} is missing: rustup component add llvm-tools")
    return tool


def build():
    """Builds the gateway with counters, and fanbench."""
    flags = {"CARGO_ENCODED_RUSTFLAGS": f"-Cprofile-generate={COUNTS}", "CARGO_TARGET_DIR": str(TARGET)}
    cargo = ["cargo", "build", "--release", "--locked"]
    subprocess.run([*cargo, "--bin", "roomcast"], cwd=compare.ROOT, env=os.environ | flags, check=True)
    subprocess.run([*cargo, "--quiet"], cwd=compare.HERE, check=True)


def call_routes(port, headers):
    """Makes calls that fanbench does not make."""
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
            content_type = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
            text = json.dumps(body) if content_type else body
            connection.request(method, path, text, headers | content_type)
            response = connection.getresponse()
            text = response.read()
            if response.status >= 300:
                sys.exit(f"{method} {path} was answered with {response.status}: {text.decode()}")


def load(peer, headers):
    """Starts and loads a gateway, which writes its counts when it ends."""
    before = len(list(COUNTS.glob("*")))
    server = compare.Server(peer)
    try:
        fanbench = [compare.FANBENCH, "--target", server.target, "--url", f"http://127.0.0.1:{server.port}", "--quiet"]
        fanbench += [f"--header={name}: {value}" for name, value in headers.items()]
        for (_, _, _, _, *paths), settings in LOADS:
            subprocess.run([*fanbench, *paths, *settings.split()], check=True)
        call_routes(server.port, headers)
    finally:
        server.stop()
    if len(list(COUNTS.glob("*"))) == before:
        sys.exit(f"{peer} wrote no counts into {COUNTS}")


def main():
    if not shutil.which("redis-server"):
        sys.exit("redis-server is missing: apt-get install redis-server")
    profdata = find_profdata()
    build()
    # Macros and build scripts, which ran during the build, have written counts, too.
    shutil.rmtree(COUNTS, ignore_errors=True)
    os.environ["LLVM_PROFILE_FILE"] = f"{COUNTS}/%p.profraw"
    compare.BINARY = str(TARGET / "release/roomcast")
    compare.SERVER_CPU = f"{compare.SERVER_CPU},{compare.BENCH_CPU}"
    os.environ.update(LIMITS)
    load("roomcast-redis", {})
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(ROOMCAST_DATA_DIR=folder, ROOMCAST_JWT_HS256_SECRET=SECRET)
        command = [compare.BINARY, "token", "--sub", "load", "--admin"]
        token = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        load("roomcast", {"Authorization": f"Bearer {token}"})
    subprocess.run([profdata, "merge", "--sparse", f"--output={PROFILE}", *COUNTS.iterdir()], check=True)
    VERSIONS.write_bytes(subprocess.run([compare.ROOT / "release/versions"], capture_output=True, check=True).stdout)
    print(f"wrote {PROFILE.relative_to(compare.ROOT)}: {PROFILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
