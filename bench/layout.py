#!/usr/bin/env python3
"""Writes link/calls.txt: which function calls which, and how often, where events are published and delivered and streams are opened.

The linker puts those functions together (see build.rs). Run it after a change of a dependency's version, or when much of the publish path
has changed. It counts with valgrind, on both brokers, and so does not depend on the machine; it needs valgrind and redis-server.
"""

import collections
import math
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

import compare

CALLS = compare.ROOT / "link/calls.txt"
PORT, REDIS_PORT = 8087, 8097
EVENTS, ROOMS, SUBSCRIBERS = 400, 20, 200
# What happens less often than once in so many events is not worth a place.
SELDOM = 10
TRANSLATION_S = 10


def wait_until_ready():
    for _ in range(600):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=5)
        except OSError:
            time.sleep(0.1)
    sys.exit("the gateway did not start")


def load(over_redis, folder):
    """Loads a gateway that valgrind runs; what it has counted."""
    redis = None
    arguments = ["--listen", f"127.0.0.1:{PORT}"]
    if over_redis:
        redis = subprocess.Popen(
            ["redis-server", "--port", str(REDIS_PORT), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
        )
        arguments += ["--redis-url", f"redis://127.0.0.1:{REDIS_PORT}"]
    counted = pathlib.Path(folder, f"counted.{over_redis}")
    valgrind = ["valgrind", "--tool=callgrind", "--demangle=no", "--instr-atstart=no", "--separate-threads=no"]
    gateway = subprocess.Popen([*valgrind, f"--callgrind-out-file={counted}", compare.BINARY, *arguments], stderr=subprocess.DEVNULL)
    try:
        wait_until_ready()
        subprocess.run(["callgrind_control", "--instr=on", str(gateway.pid)], check=True, stdout=subprocess.DEVNULL)
        # Each function is translated again when it runs next, for which time the gateway is slow enough to be ill.
        time.sleep(TRANSLATION_S)
        wait_until_ready()
        subprocess.run(
            [
                compare.FANBENCH, "--target", "generic", "--url", f"http://127.0.0.1:{PORT}", "--quiet", *compare.ROOMCAST[2:],
                f"--subscribers={SUBSCRIBERS}", f"--rooms={ROOMS}", f"--count={EVENTS}", "--rate=20",
            ],
            check=True, stdout=subprocess.DEVNULL,
        )
        subprocess.run(["callgrind_control", "--dump", str(gateway.pid)], check=True, stdout=subprocess.DEVNULL)
    finally:
        for process in filter(None, (gateway, redis)):
            process.kill()
            process.wait()
    return pathlib.Path(f"{counted}.1").read_text().splitlines()


def calls(lines):
    """Calls within the binary, by caller and callee."""
    names = {}  # functions and objects, by valgrind's numbers
    counts = collections.Counter()
    here = callee_in = caller = callee = ""
    for line in lines:
        if found := re.match(r"(c?)(ob|fn)=\((\d+)\)(?: (.*))?$", line):
            of_callee, kind, number, name = found.groups()
            name = names.setdefault((kind, number), name)
            if kind == "ob":
                here, callee_in = (here, name) if of_callee else (name, name)
            elif of_callee:
                callee = name
            else:
                caller, callee_in = name, here
        elif line.startswith("calls="):
            if here == callee_in == compare.BINARY:
                counts[symbol(caller), symbol(callee)] += int(line[6:].split()[0])
            callee_in = here
    return counts


def symbol(name):
    """Valgrind marks how deep a function calls itself."""
    return re.sub(r"'\d+$", "", name)


def main():
    for program in ("valgrind", "redis-server"):
        if not shutil.which(program):
            sys.exit(f"{program} is not there: apt-get install {program}")
    compare.build([])
    counts = collections.Counter()
    for over_redis in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            counts += calls(load(over_redis, folder))
    # Powers of two, so that the file changes little from one run to the next.
    often = {pair: 2 ** round(math.log2(count)) for pair, count in counts.items() if count >= EVENTS / SELDOM and pair[0] != pair[1]}
    CALLS.write_text("".join(f"{caller} {callee} {count}\n" for (caller, callee), count in sorted(often.items())))
    print(f"wrote {CALLS.relative_to(compare.ROOT)}: {len(often)} pairs of {len({name for pair in often for name in pair})} functions")


if __name__ == "__main__":
    main()
