#!/usr/bin/env python3
"""Counts how often each part of the gateway runs under load: the profile by which release/build lays it out.

    release/profile.py FILE     writes the profile, unless FILE is of this very code already

It builds the gateway with counters and loads it: on Redis, and on the embedded broker with a data
folder and tokens. It needs redis-server, and llvm-profdata: that of rustup (rustup component add
llvm-tools), or a recent one of the system (Debian's llvm-19).
"""

import hashlib
import http.client
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import compare  # noqa: E402

TARGET = ROOT / "target/counting"
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
# No request of the load is to be refused.
LIMITS = {
    "ROOMCAST_RATE_PER_ADDRESS": "100000",
    "ROOMCAST_RATE_PER_SUBJECT": "100000",
    "ROOMCAST_MAX_STREAMS_PER_SUBJECT": "10000",
}
# What decides which functions there are.
SOURCES = ["Cargo.toml", "Cargo.lock", "src", "core", "release/profile.py"]


def output(*command):
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout


def version():
    """A digest of the code, its dependencies and Rust: a profile is of one version only."""
    digest = hashlib.sha256(output("rustc", "-vV").encode())
    for source in SOURCES:
        path = ROOT / source
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        for file in files:
            digest.update(str(file.relative_to(ROOT)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def llvm_profdata():
    """LLVM's tool: rustc's own, or the system's newest, which may be older than rustc's LLVM."""
    host = next(line.split()[1] for line in output("rustc", "-vV").splitlines() if line.startswith("host:"))
    sysroot = pathlib.Path(output("rustc", "--print", "sysroot").strip())
    names = [f"llvm-profdata-{number}" for number in range(30, 18, -1)]
    found = [sysroot / "lib/rustlib" / host / "bin/llvm-profdata"]
    found += [pathlib.Path(path) for path in map(shutil.which, names) if path]
    tool = next((path for path in found if path.exists()), None)
    if not tool:
        sys.exit("llvm-profdata is missing: rustup component add llvm-tools, or apt-get install llvm-19")
    return tool


def build():
    environment = os.environ | {
        "CARGO_ENCODED_RUSTFLAGS": f"-Cprofile-generate={COUNTS}",
        "CARGO_TARGET_DIR": str(TARGET),
    }
    gateway = ["cargo", "build", "--profile", "dist", "--locked", "--bin", "roomcast"]
    subprocess.run(gateway, cwd=ROOT, env=environment, check=True)
    load_tool = ["cargo", "build", "--release", "--locked", "--quiet", "-p", "fanbench"]
    subprocess.run(load_tool, cwd=compare.HERE, check=True)


def call(port, headers):
    """Calls what is used besides publishes and streams."""
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
            text = json.dumps(body) if kind else body
            connection.request(method, path, text, headers | kind)
            response = connection.getresponse()
            reply = response.read()
            if response.status >= 300:
                sys.exit(f"{method} {path} was answered with {response.status}: {reply.decode()}")


def load(peer, headers):
    """Loads a gateway. It writes its counts as it ends."""
    before = len(list(COUNTS.glob("*")))
    server = compare.Server(peer)
    try:
        url = f"http://127.0.0.1:{server.port}"
        fanbench = [compare.FANBENCH, "--target", server.target, "--url", url, "--quiet"]
        fanbench += [f"--header={name}: {value}" for name, value in headers.items()]
        for (_, _, _, _, *paths), settings in LOADS:
            subprocess.run([*fanbench, *paths, *settings.split()], check=True)
        call(server.port, headers)
    finally:
        server.stop()
    if len(list(COUNTS.glob("*"))) == before:
        sys.exit(f"{peer} has written no counts")


def count():
    build()
    # Macros and build scripts have been counted until now.
    shutil.rmtree(COUNTS, ignore_errors=True)
    os.environ["LLVM_PROFILE_FILE"] = f"{COUNTS}/%p.profraw"
    compare.BINARY = str(TARGET / "dist/roomcast")
    compare.SERVER_CPU = f"{compare.SERVER_CPU},{compare.BENCH_CPU}"
    os.environ.update(LIMITS)
    load("roomcast-redis", {})
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(ROOMCAST_DATA_DIR=folder, ROOMCAST_JWT_HS256_SECRET=SECRET)
        token = output(compare.BINARY, "token", "--sub", "load", "--admin").strip()
        load("roomcast", {"Authorization": f"Bearer {token}"})


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    profile = pathlib.Path(sys.argv[1])
    stamp = profile.with_suffix(".version")
    now = version()
    if profile.exists() and stamp.exists() and stamp.read_text() == now:
        return
    if not shutil.which("redis-server"):
        sys.exit("redis-server is missing: apt-get install redis-server")
    tool = llvm_profdata()
    count()
    subprocess.run([tool, "merge", "--sparse", f"--output={profile}", *COUNTS.iterdir()], check=True)
    stamp.write_text(now)
    print(f"counted {profile}: {profile.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
