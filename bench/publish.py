#!/usr/bin/env python3
"""Measures how fast one Redis takes publishes, through Roomcast and from redis-benchmark.

    bench/publish.py [--repeat COUNT]

64 connections publish through Roomcast, and redis-benchmark calls the same script with the same
arguments. Two figures are compared: publishes per second, and the CPU time of Redis for a publish.

Redis runs on CPU 0. Roomcast, fanbench and redis-benchmark run on CPU 1. With one CPU, Roomcast and
fanbench cannot bring a CPU of Redis to its limit. So each measurement is done a second time with
two endless loops on CPU 0, which leave Redis a third of it. Then Redis is the bottleneck.

It needs redis-server, redis-cli, redis-benchmark, target/dist/roomcast (or ROOMCAST) and
bench/target/release/fanbench. Results go to bench/results/publish.json, and from there into
BENCHMARKS.md, which bench/compare.py writes.
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
# They leave Redis a third of its CPU.
LOOPS = 2


def cpu_seconds(pid):
    """The CPU time of all threads of a process, exact to the nanosecond."""
    threads = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


class Processes:
    """Processes that are pinned to a CPU and end together."""

    def __init__(self):
        self.running = []

    def start(self, cpu, *command):
        pinned = ["taskset", "-c", cpu, *command]
        process = subprocess.Popen(pinned, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.running.append(process)
        return process.pid

    def stop(self):
        for process in reversed(self.running):
            process.terminate()
            process.wait()


def redis_cli(*arguments):
    command = ["redis-cli", "-p", str(REDIS_PORT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def measure(loops):
    """Measures redis-benchmark and Roomcast, with this many endless loops on the CPU of Redis.

    For each, returns the publishes per second, and the CPU time of Redis for a publish in microseconds.
    """
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
                # A loop also ends if this script is killed.
                processes.start("0", sys.executable, "-c", f"import os\nwhile os.getppid() == {os.getpid()}: pass")
            event = json.dumps({"published_at": "2026-01-02T03:04:05.678Z", "text": "x" * 128}, separators=(",", ":"))
            arguments = [event, "roomcast:{bench}:live", "1000", "3600000", "90000000", "1", "300000", "", "1048576", "2025-01-01T00:00:00.000Z"]
            command = ["EVALSHA", sha, "2", "roomcast:{bench}:head", "roomcast:{bench}:log", *arguments]
            benchmark = ["redis-benchmark", "-p", str(REDIS_PORT), "-c", str(CONNECTIONS), "-n", str(COUNT), "--csv", *command]
            before = cpu_seconds(redis)
            output = subprocess.run(["taskset", "-c", "1", *benchmark], capture_output=True, text=True, check=True).stdout
            # The column is counted from the right, because the command is in the first column and its quotes are not
            # escaped.
            *_, names, figures = (line.split('","') for line in output.splitlines())
            rate = float(figures[names.index("rps") - len(names)])
            redis_benchmark = rate, (cpu_seconds(redis) - before) / COUNT * 1e6
            fanbench = [str(compare.FANBENCH), "--url", f"http://127.0.0.1:{PORT}", *compare.ROOMCAST[2:]]
            fanbench += ["--publishers", str(CONNECTIONS), "--rate", "0", "--count", str(COUNT)]
            fanbench += ["--subscribers", "1", "--rooms", "1", "--json", "--quiet"]
            before = cpu_seconds(redis)
            output = subprocess.run(["taskset", "-c", "1", *fanbench], capture_output=True, text=True)
            result = json.loads(output.stdout)
            rate = result["publish"]["timing"]["per_second"]
            roomcast = rate, (cpu_seconds(redis) - before) / COUNT * 1e6
            assert result["publish"]["failed"] == 0 and result["delivery"]["lost"] == 0, result
            return {"redis_benchmark": redis_benchmark, "roomcast": roomcast}
        finally:
            processes.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, metavar="COUNT", help="repetitions; 5 by default")
    arguments = parser.parse_args()
    runs = []
    for _ in range(arguments.repeat):
        compare.wait_until_quiet()
        own = measure(0)
        compare.wait_until_quiet()
        shared = measure(LOOPS)
        share = min(rate * microseconds for rate, microseconds in shared.values()) / 1e6
        assert share > 0.8 / (LOOPS + 1), f"Redis was not the bottleneck: it used only {share:.2f} of a CPU"
        runs.append({"own": own, "shared": shared})
        print(runs[-1], flush=True)
    result = {"runs": len(runs), "connections": CONNECTIONS}
    for cpu in ("own", "shared"):
        for index, figure in enumerate(("per_second", "redis_us")):
            redis_benchmark = [run[cpu]["redis_benchmark"][index] for run in runs]
            roomcast = [run[cpu]["roomcast"][index] for run in runs]
            ratios = [through / direct for through, direct in zip(roomcast, redis_benchmark)]
            result[f"{cpu}_{figure}"] = {
                "redis_benchmark": statistics.median(redis_benchmark),
                "roomcast": statistics.median(roomcast),
                "ratio": statistics.median(ratios),
            }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
