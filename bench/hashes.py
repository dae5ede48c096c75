#!/usr/bin/env python3
"""Measures reads and writes of a hash's field: Roomcast, Webdis and redis-benchmark on one Redis.

    bench/hashes.py [--repeat COUNT] [--seconds SECONDS]

Webdis serves Redis commands over HTTP. As `webdis` it sends HGET and HSET, the least that a field's GET and PUT take. As
`webdis-script` it sends what Roomcast sends for a PUT: a script that makes the write and the entry of the hash's log one
step. wrk sends the same load to each; redis-benchmark sends HGET and HSET without HTTP. 64 connections read, or write, a
value of 128 bytes of one of 1,000 fields. In one repetition the servers run one after the other. The figures are requests
per second, and the CPU time of the server, of Redis and of both for a request; the ratios are Roomcast's to Webdis's. Below
1.00, Roomcast is ahead.

Redis and the server run on CPU 0, and the load on CPU 1. It needs Debian's redis-server, redis-tools, wrk and webdis, and
target/dist/roomcast (or ROOMCAST). Without webdis it measures the others only.
"""

import argparse
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request

import compare
from publish import Processes, cpu_seconds

REDIS_PORT, ROOMCAST_PORT, WEBDIS_PORT = 8096, 8086, 8097
CONNECTIONS, FIELDS = 64, 1000
HASH = "bench"
KEY = f"roomcast:hash:{{{HASH}}}"
KEY_IN_PATH = urllib.parse.quote(KEY)
VALUE = "x" * 128

# By server: its port, and the path of a field without the field's number, for reading and for writing.
SERVERS = {
    "roomcast": (ROOMCAST_PORT, f"/v1/hashes/{HASH}/fields/f", f"/v1/hashes/{HASH}/fields/f"),
    # Webdis takes the body of a PUT for the command's last argument.
    "webdis": (WEBDIS_PORT, f"/HGET/{KEY_IN_PATH}/f", f"/HSET/{KEY_IN_PATH}/f"),
}

# wrk's scripts are in Lua.
LOAD = """
wrk.method = "%s"
local body = %s
request = function()
  return wrk.format(nil, "%s" .. math.random(%d) .. "%s", nil, body)
end
"""


def wrk(folder, port, seconds, path, suffix="", body=None):
    """Reads fields, or writes this body. Returns the number of requests that were answered."""
    script = pathlib.Path(folder) / "load.lua"
    method, text = ("PUT", f'"{body}"') if body else ("GET", "nil")
    script.write_text(LOAD % (method, text, path, FIELDS, suffix))
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}"]
    output = subprocess.run(["taskset", "-c", "1", *command], capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in output and "Socket errors" not in output, output
    return int(re.search(r"(\d+) requests in", output)[1])


def recorded_script(folder):
    """The call of a script that Roomcast makes for a PUT: a path of Webdis up to the field's number, and the last argument,
    which follows the value."""
    log = pathlib.Path(folder) / "monitor"
    with log.open("w") as output:
        monitor = subprocess.Popen(["redis-cli", "-p", str(REDIS_PORT), "MONITOR"], stdout=output)
        try:
            for _ in range(100):
                check("roomcast")
                call = re.search(r'"evalsha" (.*"f1".*)', log.read_text(), re.IGNORECASE)
                if call:
                    break
                time.sleep(0.1)
        finally:
            monitor.terminate()
            monitor.wait()
    words = re.findall(r'"([^"]*)"', call[1])
    field, value = words.index("f1"), words.index("roomcast")
    assert (field, value, len(words)) == (len(words) - 3, len(words) - 2, len(words)), words
    quoted = [urllib.parse.quote(word, safe="") for word in words[:field]]
    return "/EVALSHA/" + "/".join(quoted) + "/f", words[-1]


def redis_benchmark(operation, requests):
    arguments = ["HGET", KEY, "f1"] if operation == "GET" else ["HSET", KEY, "f1", VALUE]
    command = ["redis-benchmark", "-p", str(REDIS_PORT), "-c", str(CONNECTIONS), "-n", str(requests), "-q", *arguments]
    subprocess.run(["taskset", "-c", "1", *command], capture_output=True, check=True)
    return requests


def check(server):
    """Checks that a server reads and writes a field of the hash."""
    port, read, write = SERVERS[server]
    put = urllib.request.Request(f"http://127.0.0.1:{port}{write}1", data=server.encode(), method="PUT")
    put.add_header("Content-Type", "text/plain")
    urllib.request.urlopen(put).read()
    stored = subprocess.run(["redis-cli", "-p", str(REDIS_PORT), "HGET", KEY, "f1"], capture_output=True, text=True).stdout
    assert stored.strip() == server, (server, stored)
    assert server in urllib.request.urlopen(f"http://127.0.0.1:{port}{read}1").read().decode(), server


def measure(seconds):
    """Returns, by operation and server, requests per second and the CPU microseconds of server and Redis a request."""
    processes, figures = Processes(), {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            options = ["--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"]
            redis = processes.start("0", "redis-server", "--port", str(REDIS_PORT), *options)
            time.sleep(0.5)
            pids = {"redis-benchmark": None}
            pids["roomcast"] = processes.start(
                "0", compare.BINARY, "--listen", f"127.0.0.1:{ROOMCAST_PORT}", "--redis-url", f"redis://127.0.0.1:{REDIS_PORT}"
            )
            if shutil.which("webdis"):
                config = pathlib.Path(folder) / "webdis.json"
                # One thread for one CPU, and no line for each request.
                config.write_text(json.dumps({
                    "redis_host": "127.0.0.1", "redis_port": REDIS_PORT, "http_host": "127.0.0.1",
                    "http_port": WEBDIS_PORT, "threads": 1, "daemonize": False, "database": 0, "verbosity": 0,
                    "logfile": str(pathlib.Path(folder) / "webdis.log"),
                }))
                pids["webdis"] = processes.start("0", "webdis", str(config))
            time.sleep(2)
            for server in pids.keys() & SERVERS.keys():
                check(server)
            filled = [argument for number in range(1, FIELDS + 1) for argument in (f"f{number}", VALUE)]
            subprocess.run(["redis-cli", "-p", str(REDIS_PORT), "HSET", KEY, *filled], capture_output=True, check=True)
            def record(operation, server, load):
                pid = pids[server.removesuffix("-script")]
                began, before = time.monotonic(), [cpu_seconds(one) for one in (redis, pid or redis)]
                count = load()
                after = [cpu_seconds(one) for one in (redis, pid or redis)]
                of_redis, of_server = ((new - old) / count * 1e6 for new, old in zip(after, before))
                rate = count / (time.monotonic() - began)
                figures[operation, server] = (rate, of_server if pid else 0.0, of_redis)

            for operation in ("GET", "PUT"):
                record(operation, "redis-benchmark", lambda: redis_benchmark(operation, 40_000 * seconds))
                for server in pids.keys() & SERVERS.keys():
                    port, read, write = SERVERS[server]
                    path, body = (read, None) if operation == "GET" else (write, VALUE)
                    record(operation, server, lambda: wrk(folder, port, seconds, path, body=body))
            if "webdis" in pids:
                path, condition = recorded_script(folder)
                load = lambda: wrk(folder, WEBDIS_PORT, seconds, path, f"/{VALUE}", condition)
                record("PUT", "webdis-script", load)
            return figures
        finally:
            processes.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, metavar="COUNT", help="repetitions; 5 by default")
    parser.add_argument("--seconds", type=int, default=4, metavar="SECONDS", help="length of each measurement; 4 by default")
    arguments = parser.parse_args()
    runs = []
    for _ in range(arguments.repeat):
        compare.wait_until_quiet()
        runs.append(measure(arguments.seconds))
    print("operation  server           requests/s  server µs  Redis µs  both µs")
    for operation, server in runs[0]:
        rate, of_server, of_redis = (statistics.median(column) for column in zip(*(run[operation, server] for run in runs)))
        print(f"{operation:10} {server:16} {rate:10.0f} {of_server:10.2f} {of_redis:9.2f} {of_server + of_redis:8.2f}")
    for operation, server in runs[0]:
        if server.startswith("webdis"):
            ratios = [sum(run[operation, "roomcast"][1:]) / sum(run[operation, server][1:]) for run in runs]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{operation}: Roomcast takes {statistics.median(ratios):.2f} of the CPU time of {server} ({spread})")


if __name__ == "__main__":
    main()
