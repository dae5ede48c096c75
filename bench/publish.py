#!/usr/bin/env python3
"""Publishes through Roomcast over 64 connections, beside redis-benchmark running the same script: what the gateway asks of Redis.

    bench/publish.py [--repeat 5]

Redis has CPU 0; the gateway and its load share CPU 1, on which redis-benchmark runs, too. One CPU of gateway and load does not bring one CPU
of Redis to its limit. So everything is measured a second time with two endless loops beside Redis, which leave it a third of its CPU: then Redis is
what ends both, and the rates tell how many publishes the gateway's way leaves it. Redis's own CPU time for a publish is compared as well. Results go to bench/results/publish.json, and from there into BENCHMARKS.md.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import compare

RESULT = compare.PUBLISHES
SCRIPTS = compare.ROOT / "src/broker/redis/scripts"
REDIS_PORT, PORT = 8096, 8086
CONNECTIONS = 64
COUNT = 40_000
LOOPS = 2


def cpu_seconds(pid):
    """Of all its threads, to the nanosecond."""
    threads = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


class Processes:
    def __init__(self):
        self.running = []

    def start(self, cpu, *command):
        process = subprocess.Popen(["taskset", "-c", cpu, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.running.append(process)
        return process.pid

    def stop(self):
        for process in reversed(self.running):
            process.terminate()
            process.wait()


def redis_cli(*arguments):
    return subprocess.run(["redis-cli", "-p", str(REDIS_PORT), *arguments], capture_output=True, text=True, check=True).stdout.strip()


def once(loops):
    """Publishes a second and Redis's microseconds for each, from redis-benchmark and through the gateway, with that many loops beside Redis."""
    processes = Processes()
    with tempfile.TemporaryDirectory() as folder:
        try:
            redis = processes.start(
                "0", "redis-server", "--port", str(REDIS_PORT), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"
            )
            time.sleep(0.5)
            sha = redis_cli("SCRIPT", "LOAD", (SCRIPTS / "log.lua").read_text() + (SCRIPTS / "append.lua").read_text())
            processes.start(
                "1", compare.BINARY, "--listen", f"127.0.0.1:{PORT}", "--redis-url", f"redis://127.0.0.1:{REDIS_PORT}"
            )
            time.sleep(2)
            for _ in range(loops):
                # Ends with this script, however that ends.
                processes.start("0", sys.executable, "-c", f"import os\nwhile os.getppid() == {os.getpid()}: pass")
            event = json.dumps({"published_at": "2026-01-02T03:04:05.678Z", "text": "x" * 128}, separators=(",", ":"))
            arguments = [event, "roomcast:{bench}:live", "1000", "3600000", "90000000", "1", "300000", "", "1048576", "2025-01-01T00:00:00.000Z"]
            command = ["EVALSHA", sha, "2", "roomcast:{bench}:head", "roomcast:{bench}:log", *arguments]
            benchmark = ["redis-benchmark", "-p", str(REDIS_PORT), "-c", str(CONNECTIONS), "-n", str(COUNT), "--csv", *command]
            before = cpu_seconds(redis)
            output = subprocess.run(["taskset", "-c", "1", *benchmark], capture_output=True, text=True, check=True).stdout
            # From the right, since the command comes first and its quotes are not escaped.
            *_, names, figures = (line.split('","') for line in output.splitlines())
            rate = float(figures[names.index("rps") - len(names)])
            bare = rate, (cpu_seconds(redis) - before) / COUNT * 1e6
            fanbench = [str(compare.FANBENCH), "--url", f"http://127.0.0.1:{PORT}", *compare.ROOMCAST[2:], "--json", "--quiet", "--publishers"]
            fanbench += [str(CONNECTIONS), "--rate", "0", "--count", str(COUNT), "--subscribers", "1", "--rooms", "1"]
            before = cpu_seconds(redis)
            output = subprocess.run(["taskset", "-c", "1", *fanbench], capture_output=True, text=True)
            result = json.loads(output.stdout)
            through = result["publish"]["timing"]["per_second"], (cpu_seconds(redis) - before) / COUNT * 1e6
            assert result["publish"]["failed"] == 0 and result["delivery"]["lost"] == 0, result
            return {"bare": bare, "through": through}
        finally:
            processes.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    runs = []
    for _ in range(arguments.repeat):
        compare.wait_until_quiet()
        own = once(0)
        compare.wait_until_quiet()
        shared = once(LOOPS)
        share = min(rate * microseconds for rate, microseconds in shared.values()) / 1e6
        assert share > 0.8 / (LOOPS + 1), f"Redis was not what ended it: it took {share:.2f} of a CPU"
        runs.append({"own": own, "shared": shared})
        print(runs[-1], flush=True)
    middle = lambda get: statistics.median(get(run) for run in runs)
    result = {"runs": len(runs), "connections": CONNECTIONS}
    for cpu in ("own", "shared"):
        for place, what in enumerate(("per_second", "redis_us")):
            bare, through = (lambda run, way=way: run[cpu][way][place] for way in ("bare", "through"))
            ratio = middle(lambda run: through(run) / bare(run))
            result[f"{cpu}_{what}"] = {"bare": middle(bare), "through": middle(through), "ratio": ratio}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
