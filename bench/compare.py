#!/usr/bin/env python3
"""Measures Roomcast side by side with other servers, and writes BENCHMARKS.md and docs/growth.svg.

    bench/compare.py            all scenarios, five repetitions: about two hours
    bench/compare.py --repeat 1 --only 1k max --peers roomcast roomcast-redis
    bench/compare.py --report   writes BENCHMARKS.md from stored results, without measuring
    bench/publish.py            measures only how fast one Redis takes publishes

The yardstick is rawlimit, a server that does the least work that un-batched SSE fan-out takes.
All ratios are to its figures, so it takes part in every comparison.

A peer that lacks a program is left out, and the script says what to install. Nchan needs Debian's
nginx and libnginx-mod-nchan, Socket.IO needs Node.js with npm, and every peer with Redis needs
redis-server. MERCURE and CENTRIFUGO name the binaries of these two servers, and ROOMCAST names
another Roomcast binary than target/dist/roomcast. All processes use loopback and end with this
script. Results are added to bench/results/results.jsonl.

Each run starts a fresh server on CPU 0 and fanbench on CPU 1, with a raised priority if that is
allowed. In one repetition the peers run one after the other, so that the two runs of a ratio are
close in time. Before each run the script waits until the machine is quiet. A run that other
processes disturbed is repeated, at most twice, and the least disturbed run is kept. In the scenario
"rooms at once" rawlimit runs at the same time on the same CPU, so that a disturbance affects both.
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import textwrap
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results/results.jsonl"
PUBLISHES = HERE / "results/publish.json"
REPORT = ROOT / "BENCHMARKS.md"
GROWTH_PICTURE = ROOT / "docs/growth.svg"
FANBENCH = HERE / "target/release/fanbench"
BINARY = os.environ.get("ROOMCAST", str(ROOT / "target/dist/roomcast"))
SERVER_CPU, BENCH_CPU = "0", "1"
# A machine is quiet, and a run undisturbed, if other processes take less than this share of the CPU time.
QUIET_SHARE = 0.10
QUIET_TIMEOUT_S = 30
ATTEMPTS = 3
NICENESS = -15
WIDTH = 100  # of the report's lines, in columns

ROOMCAST = (
    "generic",
    8086,
    "--subscribe-url=/v1/rooms/{room}/stream",
    "--publish-url=/v1/rooms/{room}/events",
)
# Allows to publish and to subscribe. It is signed with the key that peers/mercure.sh sets.
MERCURE_TOKEN = (
    "eyJhbGciOiAiSFMyNTYiLCAidHlwIjogIkpXVCJ9."
    "eyJtZXJjdXJlIjogeyJwdWJsaXNoIjogWyIqIl0sICJzdWJzY3JpYmUiOiBbIioiXX19."
    "kr62YYXmg579ZHCd7qNPLOpmpUncY-s1Oa3NDt9w-Aw"
)

# peer: (script, settings of the script, fanbench target, port, further flags of fanbench)
PEERS = {
    "rawlimit": ("rawlimit.sh", {}, "raw-limit", 8081),
    "rawlimit-redis": ("rawlimit.sh", {"REDIS": "1"}, "raw-limit", 8087),
    "roomcast": ("roomcast.sh", {}, *ROOMCAST),
    "roomcast-redis": ("roomcast.sh", {"REDIS": "1"}, *ROOMCAST),
    "roomcast-several": (
        "roomcast.sh",
        {},
        *ROOMCAST[:2],
        "--subscribe-url=/v1/stream?room={room}&room=another",
        *ROOMCAST[3:],
    ),
    "nchan": ("nchan.sh", {}, "nchan", 8082),
    "nchan-redis": ("nchan.sh", {"REDIS": "1"}, "nchan", 8082),
    "socketio-redis": ("socketio.sh", {}, "socketio", 8083),
    "mercure": ("mercure.sh", {}, "mercure", 8084, f"--publish-header=Authorization: Bearer {MERCURE_TOKEN}"),
    "centrifugo-redis": ("centrifugo.sh", {"REDIS": "1"}, "centrifugo", 8085, "--api-key=bench"),
}
NAMES = {
    "rawlimit": "rawlimit",
    "rawlimit-redis": "rawlimit + Redis",
    "roomcast": "Roomcast, embedded",
    "roomcast-redis": "Roomcast + Redis",
    "roomcast-several": "Roomcast, streams of two rooms",
    "nchan": "Nchan",
    "nchan-redis": "Nchan + Redis",
    "socketio-redis": "Socket.IO + Redis",
    "mercure": "Mercure",
    "centrifugo-redis": "Centrifugo + Redis",
}
# Ratios and bytes measured with this tool on a machine that had the binaries of these peers.
MEASURED_ELSEWHERE = {
    "mercure": {
        "1k": 4.32, "10k": 2.93, "rooms": 3.88, "max": 2.88,
        "p50 1k": 4.6, "p50 rooms": 2.2, "idle": 48e3, "set-up": 12.5,
    },
    "centrifugo-redis": {
        "1k": 4.77, "10k": 4.91, "rooms": 5.15, "max": 4.56,
        "p50 1k": 5.2, "p50 rooms": 3.2, "idle": 64e3, "set-up": 16.7,
    },
}

SCENARIOS = {
    "1k": "--subscribers 1000 --rooms 1 --count 200 --rate 20",
    "10k": "--subscribers 10000 --rooms 1 --count 50 --rate 2",
    "rooms": "--subscribers 2000 --rooms 200 --count 2000 --rate 200",
    "max": "--subscribers 1000 --rooms 1 --count 1000 --rate 0",
    "idle": "--subscribers 10000 --count 0 --settle 10",
}
# In this scenario rawlimit runs at the same time as the peer, and gets events at a slightly different rate, so that
# neither server always gets its event first.
AT_ONCE = "rooms at once"
PEER_RATE, YARDSTICK_RATE = "--rate 200", "--rate 203"
SCENARIOS[AT_ONCE] = SCENARIOS["rooms"]
# These peers run in all scenarios.
MAIN_PEERS = ["rawlimit", "roomcast", "roomcast-redis"]
# Streams of two rooms. Each subscriber has a cursor of its own, so the subscribers share only the envelope.
TWO_ROOMS = "roomcast-several"
# The scenarios that show how cost grows. They have about 20,000 deliveries a second, except "10,000 rooms", where each
# publish is one delivery.
GROWTH = {
    "100 subscribers": "--subscribers 100 --rooms 1 --count 1000 --rate 200",
    "1,000 subscribers": "--subscribers 1000 --rooms 1 --count 200 --rate 20",
    "10,000 subscribers": "--subscribers 10000 --rooms 1 --count 30 --rate 2",
    "18,000 subscribers": "--subscribers 18000 --rooms 1 --count 20 --rate 1",
    "100 rooms": "--subscribers 10000 --rooms 100 --count 1000 --rate 200",
    "10,000 rooms": "--subscribers 10000 --rooms 10000 --count 5000 --rate 1000",
    "a slow tenth": "--subscribers 1000 --rooms 1 --count 200 --rate 20 --payload 1024 --slow 100 --allow-loss",
    "without it": "--subscribers 1000 --rooms 1 --count 200 --rate 20 --payload 1024",
}
ALL = SCENARIOS | GROWTH
COLOURS = {"roomcast": "#1f77b4", "roomcast-redis": "#d62728"}


# --- measuring -----------------------------------------------------------------------------------


def raise_priority():
    """Raises this script's priority. Servers and fanbench inherit it, so other processes disturb them less."""
    try:
        os.nice(NICENESS)
    except PermissionError:
        print("cannot raise the priority, so other processes may disturb the runs more", file=sys.stderr)


def cpu_ticks():
    """The machine's CPU time since it was started, in clock ticks: all of it, and the idle part."""
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    ticks = [int(field) for field in fields]
    return sum(ticks[:8]), ticks[3] + ticks[4]


def wait_until_quiet():
    """Waits for a second with little CPU use. Returns False if there was none in time."""
    end = time.monotonic() + QUIET_TIMEOUT_S
    while time.monotonic() < end:
        total, idle = cpu_ticks()
        time.sleep(1)
        total_after, idle_after = cpu_ticks()
        if 1 - (idle_after - idle) / max(1, total_after - total) < QUIET_SHARE:
            return True
    return False


class Server:
    """A peer that runs. Its script prints the pids of its processes and ends them."""

    def __init__(self, peer):
        script, settings, self.target, self.port, *self.flags = PEERS[peer]
        environment = {name: value for name, value in os.environ.items() if "REDIS" not in name}
        environment.update(settings, CPU=SERVER_CPU, PORT=str(self.port), ROOMCAST=BINARY)
        self.script = subprocess.Popen([HERE / "peers" / script], env=environment, stdout=subprocess.PIPE, text=True)
        self.pids = []
        for line in self.script.stdout:
            name, pid = line.strip().split("=")
            self.pids.append(pid)
            if name == "server_pid":
                break
        time.sleep(1)
        if self.script.poll() is not None:
            sys.exit(f"peers/{script} ended right after its start")

    def stop(self):
        self.script.terminate()
        self.script.wait()


class Load:
    """A run of fanbench against a server."""

    def __init__(self, server, label, settings):
        self.label = label
        command = ["taskset", "-c", BENCH_CPU, FANBENCH, "--target", server.target]
        command += ["--url", f"http://127.0.0.1:{server.port}", "--json", "--quiet"]
        command += ["--server-children", "--label", label, *server.flags]
        command += [f"--server-pid={pid}" for pid in server.pids]
        self.process = subprocess.Popen(
            command + settings.split(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def result(self):
        """Waits for fanbench and returns its report, or None if it could not carry out the run."""
        output, errors = self.process.communicate()
        if not output:
            print(f"{self.label}: {errors[-500:].strip()}", file=sys.stderr)
            return None
        return json.loads(output)


def measure(peer, scenario):
    """Returns the report of one run, or None if the run could not be carried out.

    In the scenario AT_ONCE the report also has the report of the yardstick, as `yardstick`.
    """
    server = Server(peer)
    try:
        if scenario != AT_ONCE:
            return Load(server, f"{peer} {scenario}", ALL[scenario]).result()
        yardstick = Server("rawlimit")
        try:
            settings = ALL[scenario].replace(PEER_RATE, YARDSTICK_RATE)
            yardstick_load = Load(yardstick, f"rawlimit beside {peer} {scenario}", settings)
            result = Load(server, f"{peer} {scenario}", ALL[scenario]).result()
            yardstick_result = yardstick_load.result()
        finally:
            yardstick.stop()
        return result and yardstick_result and result | {"yardstick": yardstick_result}
    finally:
        server.stop()


def disturbance(result):
    """The share of the machine's CPU time that other processes and the hypervisor took during the deliveries."""
    if result["settings"]["count"] == 0 or "yardstick" in result:
        return 0.0
    machine = result["machine"]
    taken = machine["other_seconds"] + machine["stolen_seconds"]
    return taken / max(0.01, result["delivery_timing"]["seconds"] * machine["cpus"])


def least_disturbed(peer, scenario):
    """Repeats a run until it is undisturbed, ATTEMPTS times at most, and returns the least disturbed result.

    None if no run could be carried out.
    """
    results = []
    for _ in range(ATTEMPTS):
        wait_until_quiet()
        if result := measure(peer, scenario):
            results.append(result)
            if disturbance(result) < QUIET_SHARE:
                break
    return min(results, key=disturbance, default=None)


def is_measured(peer, scenario):
    if scenario == AT_ONCE and peer == "rawlimit":
        return False
    if peer == TWO_ROOMS:
        return scenario in ("1k", "max", "idle")
    return peer in MAIN_PEERS or scenario in SCENARIOS


def run(scenarios, peers, repeat):
    raise_priority()
    RESULTS.parent.mkdir(exist_ok=True)
    start = datetime.datetime.now().isoformat(timespec="seconds")
    for scenario in scenarios:
        for repetition in range(repeat):
            for peer in [peer for peer in peers if is_measured(peer, scenario)]:
                progress = f"{scenario:18} {repetition + 1}/{repeat} {peer:16}"
                result = least_disturbed(peer, scenario)
                if result is None:
                    print(f"{progress} failed", flush=True)
                    continue
                result["run"] = {
                    "peer": peer,
                    "scenario": scenario,
                    "repetition": f"{start} {repetition}",
                    "disturbed": round(disturbance(result), 4),
                }
                with RESULTS.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                cost = result["server"]["cpu_us_per_delivery"]
                print(f"{progress} {cost or 0:7.2f} µs per delivery", flush=True)


# --- programs ------------------------------------------------------------------------------------


def missing_programs():
    """The peers that cannot be measured here, with what they need."""
    needs = {}
    if not shutil.which("nginx") or not pathlib.Path("/usr/lib/nginx/modules/ngx_nchan_module.so").exists():
        needs["nchan"] = needs["nchan-redis"] = "needs nginx with Nchan: apt-get install nginx libnginx-mod-nchan"
    if not shutil.which("npm"):
        needs["socketio-redis"] = "needs Node.js with npm"
    if not os.environ.get("MERCURE"):
        needs["mercure"] = "needs Mercure: set MERCURE to its binary"
    if not os.environ.get("CENTRIFUGO"):
        needs["centrifugo-redis"] = "needs Centrifugo: set CENTRIFUGO to its binary"
    if not shutil.which("redis-server"):
        redis = "needs Redis: apt-get install redis-server"
        needs |= {peer: redis for peer in PEERS if peer.endswith("-redis")}
    return needs


def build(peers):
    if "ROOMCAST" not in os.environ:
        subprocess.run([ROOT / "release/build", "--quiet"], check=True)
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=HERE, check=True)
    if "socketio-redis" in peers and not (HERE / "peers/socketio/node_modules").exists():
        subprocess.run(["npm", "ci", "--silent"], cwd=HERE / "peers/socketio", check=True)


def version(*command):
    """The first line that a command prints; None if there is no such command."""
    try:
        output = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return (output.stdout + output.stderr).strip().splitlines()[0]


# --- report --------------------------------------------------------------------------------------

# Figures of a result.
CPU = lambda result: result["server"]["cpu_us_per_delivery"]
P50 = lambda result: result["latency_ms"]["p50"]
P99 = lambda result: result["latency_ms"]["p99"]
PUBLISH_P50 = lambda result: result["publish"]["call_ms"]["p50"]
SET_UP = lambda result: result["server"]["connect_cpu_us_per_connection"]
IDLE = lambda result: result["server"]["rss_per_connection"]

# Descriptions of the scenarios.
MEANINGS = {
    "1k": "1,000 subscribers of one room, 20 events a second",
    "10k": "10,000 subscribers of one room, 2 events a second",
    "rooms": "2,000 subscribers in 200 rooms, 200 events a second",
    AT_ONCE: "the same, while `rawlimit` serves the same load on the same CPUs",
    "max": "1,000 subscribers of one room, events as fast as they are acknowledged",
    "idle": "10,000 subscribers of one room, no events",
}
# The ratios to rawlimit: (name, scenario, figure, key in MEASURED_ELSEWHERE, goal with Redis, goal embedded)
GOALS = [
    ("CPU, 1k", "1k", CPU, "1k", 1.15, 1.05),
    ("CPU, 10k", "10k", CPU, "10k", 1.20, 1.10),
    ("CPU, rooms", "rooms", CPU, "rooms", 2.0, 1.3),
    ("CPU, rooms at once", AT_ONCE, CPU, None, "", ""),
    ("CPU, max", "max", CPU, "max", 0.4, 0.2),
    ("p50, 1k", "1k", P50, "p50 1k", 1.3, 1.2),
    ("p50, rooms", "rooms", P50, "p50 rooms", 2.0, 1.3),
    ("p50, rooms at once", AT_ONCE, P50, None, "", ""),
    ("CPU per set-up", "idle", SET_UP, "set-up", 3, 3),
]
IDLE_NAME = "RSS a stream, idle"
IDLE_GOAL = 1024  # bytes


class Results:
    """The stored results: by scenario and peer, then by repetition."""

    def __init__(self):
        self.rows = {}
        for line in RESULTS.read_text().splitlines() if RESULTS.exists() else []:
            result = json.loads(line)
            key = result["run"]["scenario"], result["run"]["peer"]
            self.rows.setdefault(key, {})[result["run"]["repetition"]] = result
            if "yardstick" in result:
                repetition = f"{result['run']['repetition']} {result['run']['peer']}"
                self.rows.setdefault((AT_ONCE, "rawlimit"), {})[repetition] = result["yardstick"]

    def median(self, scenario, peer, figure):
        values = [figure(result) for result in self.rows.get((scenario, peer), {}).values()]
        return statistics.median(values) if values else None

    def ratios(self, scenario, peer, figure):
        """The ratios to rawlimit in the same repetition, or in AT_ONCE at the same time."""
        yardstick = self.rows.get((scenario, "rawlimit"), {})
        own = self.rows.get((scenario, peer), {})
        if scenario == AT_ONCE:
            return [figure(result) / figure(result["yardstick"]) for result in own.values()]
        return [figure(own[key]) / figure(yardstick[key]) for key in own if key in yardstick]

    def ratio(self, scenario, peer, figure):
        """The median of the ratios as text, with their range for Roomcast and rawlimit."""
        ratios = self.ratios(scenario, peer, figure)
        if not ratios:
            return None
        median = f"{statistics.median(ratios):.2f}"
        with_range = len(ratios) > 1 and peer.startswith(("roomcast", "rawlimit"))
        return f"{median} ({min(ratios):.2f} to {max(ratios):.2f})" if with_range else median

    def time_span(self, scenarios, peers):
        """When the first and the last repetition of these scenarios and peers began, as text."""
        times = [
            time
            for (scenario, peer), rows in self.rows.items() if scenario in scenarios and peer in peers
            for time in rows
        ]
        if not times:
            return "never"
        first, last = (time.split()[0][:16].replace("T", " ") for time in (min(times), max(times)))
        return f"{first} UTC" if first == last else f"{first} to {last} UTC"

    def faults(self):
        """The number of faults in all runs of the main peers."""
        return sum(
            sum(result["delivery"][fault] for fault in ("lost", "duplicated", "out_of_order"))
            + result["publish"]["failed"]
            for (_, peer), rows in self.rows.items() if peer in MAIN_PEERS
            for result in rows.values()
        )


def row(cells):
    return "| " + " | ".join(cells) + " |"


def table(heads, rows):
    """A table in Markdown. The first column has text, the others have figures."""
    rule = row(["---"] + ["---:"] * (len(heads) - 1))
    return [row(heads), rule, *[row(cells) for cells in rows], ""]


def wrap(text, first="", further=""):
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )


def prose(*sentences):
    return [*wrap(" ".join(sentences)), ""]


def bullets(items):
    return [line for item in items for line in wrap(item, "- ", "  ")] + [""]


def report():
    results = Results()
    measured = [peer for peer in PEERS if ("1k", peer) in results.rows]
    peers = [peer for peer in PEERS if peer in measured or peer in MEASURED_ELSEWHERE]
    peers = [peer for peer in peers if peer not in (*MAIN_PEERS, "rawlimit-redis", TWO_ROOMS)]
    lines = ["# Benchmarks", "", "<!-- Written by bench/compare.py; do not edit. -->", ""]
    lines += introduction(results, measured)
    lines += goals(results)
    lines += comparison(results, peers)
    lines += several_rooms(results)
    lines += publishing()
    lines += ["## Absolute figures", ""]
    lines += absolute(results, measured)
    lines += growth(results)
    lines += ["## Versions", ""]
    lines += bullets(f"{name}: {text}" for name, text in versions().items() if text)
    lines += ["## Repeat it", "", "```sh", "bench/compare.py", "```", ""]
    lines += prose(
        "`bench/compare.py --help` lists what it needs.",
        "[bench/README.md](bench/README.md#what-the-figures-mean) explains the figures.",
    )
    too_long = [line for line in lines if len(line) > WIDTH]
    assert not too_long, too_long
    REPORT.write_text("\n".join(lines))
    print(f"wrote {REPORT.relative_to(ROOT)}")


def introduction(results, measured):
    pairs = {
        scenario: "; ".join(
            f"{NAMES[peer]} {len(results.rows[scenario, peer])}"
            for peer in measured
            if peer not in ("rawlimit", TWO_ROOMS) and (scenario, peer) in results.rows
        )
        for scenario in ("1k", AT_ONCE)
    }
    return [
        *prose(
            "The figures compare the cost of one delivery with its cost in `rawlimit`, which is",
            "one thread, one epoll instance and one `send` of a ready-made frame to each socket.",
            "`rawlimit` has no history, no limits and no clustering.",
            "What a server costs above a ratio of 1 is its own work.",
            "A server gets below 1 by writing several events at once.",
            "A difference of a tenth in either direction may be chance.",
            "All server processes are counted, Redis included. Lower is better.",
        ),
        *prose(
            "`rawlimit + Redis` does the same, but first stores and announces each event in Redis with",
            "Roomcast's script, over one blocking connection.",
            "That is about the least work that this design takes, before there is a gateway.",
        ),
        *prose(
            "Every ratio is the median of pairs. A pair is two runs, some minutes apart, on one machine",
            f"({machine()}), with the server on one CPU and the load on the other.",
            "The range of the ratios is in brackets. The scenarios:",
        ),
        *bullets(f"**{scenario}**: {meaning}" for scenario, meaning in MEANINGS.items()),
        *prose(
            f"In `{AT_ONCE}` the two servers of a pair run at the same time and share both CPUs.",
            "The cost of so light a load depends on what else empties the CPU caches, and this disturbs",
            "both servers alike. But each server also empties the caches for the other,",
            "so the goals do not apply to these figures.",
        ),
        *bullets([
            f"Runs of Roomcast began: {results.time_span(SCENARIOS, [*MAIN_PEERS[1:], TWO_ROOMS])}",
            f"Runs of the others began: {results.time_span(SCENARIOS, set(PEERS) - {*MAIN_PEERS, TWO_ROOMS})}",
            *[f"Pairs in `{scenario}`: {text}" for scenario, text in pairs.items()],
        ]),
    ]


def goals(results):
    """Roomcast's ratios beside the goals, and the goals that it does not meet."""
    figures, above, own = [], [], ["roomcast", "roomcast-redis", "rawlimit-redis"]
    for name, scenario, figure, _, redis, embedded in GOALS:
        cells = [results.ratio(scenario, peer, figure) or "" for peer in own]
        figures.append([name, cells[0], str(embedded), cells[1], str(redis), cells[2]])
        for peer, goal in (("roomcast-redis", redis), ("roomcast", embedded)):
            ratios = results.ratios(scenario, peer, figure)
            if goal and ratios and statistics.median(ratios) > goal:
                above.append(f"{name}: {NAMES[peer]} {statistics.median(ratios):.2f}, goal {goal}")
    idle = {peer: results.median("idle", peer, IDLE) for peer in own}
    cells = {peer: f"{value:,.0f} B" if value is not None else "" for peer, value in idle.items()}
    goal = f"{IDLE_GOAL:,} B"
    figures.append([IDLE_NAME, cells[own[0]], goal, cells[own[1]], goal, cells[own[2]]])
    for peer in ("roomcast-redis", "roomcast"):
        if (idle[peer] or 0) > IDLE_GOAL:
            above.append(f"{IDLE_NAME}: {NAMES[peer]} {cells[peer]}, goal {goal}")
    lines = ["## Roomcast and its goals", ""]
    lines += prose(
        "Multiples of `rawlimit`. *CPU* is the server's CPU time per delivery, *p50* the median latency,",
        "*set-up* the opening of a stream. *RSS a stream* is in bytes, with 10,000 idle streams.",
    )
    heads = ["", "embedded", "goal", "with Redis", "goal", NAMES["rawlimit-redis"]]
    lines += table(heads, figures)
    lines += prose(
        "Lost, repeated and reordered events and failed publishes in all runs of Roomcast:",
        f"{results.faults()}.",
    )
    if above:
        lines += [
            "Above their goals:", "", *bullets(above),
            *prose(
                "[Decision 18](docs/decisions/0018-cost-of-a-publish.md) explains what a publish costs,",
                "[docs/capacity.md](docs/capacity.md) how to plan with it.",
            ),
        ]
    return lines


def comparison(results, peers):
    """The ratios of the other servers."""
    rows = []
    for name, scenario, figure, key, *_ in GOALS:
        cells = []
        for peer in peers:
            value = results.ratio(scenario, peer, figure)
            if value is None and key in MEASURED_ELSEWHERE.get(peer, {}):
                value = f"{MEASURED_ELSEWHERE[peer][key]} *"
            cells.append(value or "")
        rows.append([name, *cells])
    cells = []
    for peer in peers:
        value, elsewhere = results.median("idle", peer, IDLE), MEASURED_ELSEWHERE.get(peer)
        cells.append(
            f"{value:,.0f} B" if value is not None
            else f"{elsewhere['idle']:,.0f} B *" if elsewhere else ""
        )
    rows.append([IDLE_NAME, *cells])
    return [
        "## Peers", "", "The same multiples of `rawlimit` for the peers:", "",
        *table(["", *[NAMES[peer] for peer in peers]], rows),
        *prose(
            "\\* Measured earlier with the same tool on another machine of the same kind (Mercure 0.24,",
            "Centrifugo 6). Their binaries were available there;",
            "the package managers of this machine do not have them.",
            "`MERCURE=…` and `CENTRIFUGO=…` name binaries to measure in place.",
        ),
    ]


def several_rooms(results):
    """The cost of streams of several rooms."""
    ratios = {scenario: results.ratio(scenario, TWO_ROOMS, CPU) for scenario in ("1k", "max")}
    idle = results.median("idle", TWO_ROOMS, IDLE)
    if not all(ratios.values()) or idle is None:
        return []
    return [
        "## Streams of several rooms", "",
        *prose(
            "The envelope of an event is made once for all subscribers. The `id:` is a cursor of all rooms",
            "of a stream, so it is written for each subscriber. With two rooms a stream:",
        ),
        *bullets([
            f"CPU per delivery over that of `rawlimit`: 1k {ratios['1k']}, max {ratios['max']}",
            f"RSS a stream: {idle:,.0f} B",
        ]),
    ]


def publishing():
    """The results of bench/publish.py."""
    if not PUBLISHES.exists():
        return []
    stored = json.loads(PUBLISHES.read_text())
    shared, own = ("a third of a CPU", "Redis"), ("a CPU", "gateway and load tool")
    line = lambda name, where, key, digits: row([
        name, *where,
        *(f"{stored[key][way]:,.{digits}f}" for way in ("redis_benchmark", "roomcast")),
        f"{stored[key]['ratio']:.2f}",
    ])
    return [
        "## Publishing to Redis", "",
        *prose(
            f"A publish is one call of one script. {stored['connections']} connections publish events of 128",
            "bytes through Roomcast, and `redis-benchmark` calls the same script with the same arguments.",
            f"The figures are medians of {stored['runs']} runs, with Redis on one CPU and everything else",
            "on the other. The goal is 0.7 of the rate of `redis-benchmark` where Redis is the bottleneck.",
            "With one CPU, the gateway and the load tool cannot bring a CPU of Redis to its limit.",
            "They can when two endless loops beside Redis leave it a third of its CPU.",
        ),
        row([
            "Figure", "Redis has", "bottleneck with Roomcast", "redis-benchmark", "Roomcast", "ratio",
        ]),
        row(["---"] * 3 + ["---:"] * 3),
        line("publishes a second", shared, "shared_per_second", 0),
        line("publishes a second", own, "own_per_second", 0),
        line("Redis's CPU a publish, µs", shared, "shared_redis_us", 1),
        line("Redis's CPU a publish, µs", own, "own_redis_us", 1), "",
        *prose(
            "Each ratio is the median of the runs' ratios.",
            f"The loops make {stored['connections']} connections more expensive for Redis. The gateway has one",
            "connection, on which publishes that arrive meanwhile are sent together.",
            "With many replicas fewer publishes are sent together on each connection.",
        ),
    ]


def absolute(results, measured):
    """A table of each scenario, with a row for each server."""
    lines = []
    for scenario, flags in SCENARIOS.items():
        servers = [peer for peer in measured if (scenario, peer) in results.rows]
        if not servers:
            continue
        if scenario == "idle":
            figures = [("CPU per set-up, µs", SET_UP, ",.3g"), ("RSS a stream, B", IDLE, ",.0f")]
        else:
            figures = [
                ("CPU per delivery, µs", CPU, ",.3g"),
                ("p50, ms", P50, ",.3g"),
                ("p99, ms", P99, ",.3g"),
                ("publish p50, ms", PUBLISH_P50, ",.3g"),
            ]
        lines += [f"### {scenario}: `{flags}`", ""]
        lines += table(["", *[name for name, *_ in figures]], [
            [NAMES[peer], *[
                format(results.median(scenario, peer, figure), digits) for _, figure, digits in figures
            ]]
            for peer in servers
        ])
    return lines


def growth(results):
    """How cost grows with the numbers of subscribers and rooms."""
    present = [scenario for scenario in GROWTH if (scenario, "roomcast") in results.rows]
    if not present:
        return []
    number = lambda value: f"{value:,.3g}" if value is not None else ""
    costs, others = [], []
    for scenario in present:
        median = lambda peer, figure, scenario=scenario: results.median(scenario, peer, figure)
        costs.append([
            scenario,
            *[results.ratio(scenario, peer, CPU) or "" for peer in MAIN_PEERS[1:]],
            *[number(median(peer, CPU)) for peer in MAIN_PEERS[1:]],
        ])
        memory = [median(peer, IDLE) for peer in MAIN_PEERS[1:]]
        others.append([
            scenario,
            *[number(median(peer, P99)) for peer in MAIN_PEERS],
            *[f"{value:,.0f} B" if value is not None else "" for value in memory],
        ])
    draw_growth(results)
    with_slow, without = (
        {peer: results.median(scenario, peer, P99) for peer in MAIN_PEERS}
        for scenario in ("a slow tenth", "without it")
    )
    change = "; ".join(
        f"{NAMES[peer]} {with_slow[peer] / without[peer] - 1:+.0%}"
        for peer in MAIN_PEERS if with_slow[peer] and without[peer]
    )
    fewest = min(len(results.rows[scenario, "roomcast"]) for scenario in present)
    return [
        "## How cost grows", "",
        f"![CPU per delivery and memory a stream, by subscribers and by rooms]({GROWTH_PICTURE.relative_to(ROOT)})", "",
        *prose(
            f"The runs began: {results.time_span(GROWTH, MAIN_PEERS[1:])}.",
            f"Ratios are medians of at least {fewest} pairs. The loads:",
        ),
        *bullets(f"**{scenario}**: `{GROWTH[scenario]}`" for scenario in present),
        "CPU per delivery, over that of `rawlimit` and in µs:", "",
        *table(["", "embedded", "with Redis", "embedded, µs", "with Redis, µs"], costs),
        "Latency p99 and RSS a stream:", "",
        *table(
            [
                "", "p99 rawlimit, ms", "p99 embedded, ms", "p99 with Redis, ms",
                "RSS embedded", "RSS with Redis",
            ],
            others,
        ),
        *prose(
            "With 10,000 rooms each publish is one delivery, at a twentieth of the rate.",
            "That row shows what a publish costs.",
        ),
        *prose(
            "How the p99 of the other subscribers changes when a tenth of the subscribers never reads",
            f"(medians, runs minutes apart; goal: less than 10 %): {change}.",
        ),
    ]


def draw_growth(results):
    """Draws how cost grows, as an SVG picture."""
    by_subscribers = {
        scenario: int(scenario.split()[0].replace(",", "")) for scenario in GROWTH if scenario.endswith("subscribers")
    }
    by_rooms = {"10,000 subscribers": 1, "100 rooms": 100, "10,000 rooms": 10_000}
    cost = lambda scenario, peer: statistics.median(results.ratios(scenario, peer, CPU) or [0])
    memory = lambda scenario, peer: (results.median(scenario, peer, IDLE) or 0) / 1024
    width, height = 720, 560
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for column, (peer, colour) in enumerate(COLOURS.items()):
        parts.append(f'<text x="{60 + 160 * column}" y="18" fill="{colour}">{NAMES[peer]}</text>')
    rows = [("CPU per delivery over rawlimit's", cost, 0.5), ("RSS a stream, KiB", memory, 2)]
    columns = [("subscribers of one room", by_subscribers), ("rooms of 10,000 subscribers", by_rooms)]
    for row_index, (title, figure, step) in enumerate(rows):
        for column, (axis, counts) in enumerate(columns):
            lines = {
                peer: [(count, value) for scenario, count in counts.items() if (value := figure(scenario, peer))]
                for peer in COLOURS
            }
            parts += draw_panel(60 + 360 * column, 60 + 265 * row_index, title, axis, lines, step)
    GROWTH_PICTURE.parent.mkdir(exist_ok=True)
    GROWTH_PICTURE.write_text("\n".join([*parts, "</svg>", ""]))


def draw_panel(left, top, title, axis, lines, step):
    """Draws one line for each peer over a logarithmic axis. The line at 1 is the yardstick or the goal."""
    counts = sorted({count for line in lines.values() for count, _ in line})
    if len(counts) < 2:
        return []
    width, height = 270, 170
    top_value = max([value for line in lines.values() for _, value in line] + [3 * step]) * 1.1
    low, high = math.log10(counts[0]), math.log10(counts[-1])
    x = lambda count: left + (math.log10(count) - low) / (high - low) * width
    y = lambda value: top + height * (1 - value / top_value)
    parts = [f'<text x="{left}" y="{top - 10}">{title}</text>']
    while top_value / step > 7:
        step *= 2
    for value in {1, *[step * index for index in range(int(top_value / step) + 1)]}:
        dash = "" if value == 1 else ' stroke-dasharray="2 4"'
        parts.append(
            f'<line x1="{left}" x2="{left + width}" y1="{y(value):.0f}" y2="{y(value):.0f}" stroke="#999"{dash}/>'
        )
        position = f'x="{left + width + 4}"' if value == 1 else f'x="{left - 8}" text-anchor="end"'
        parts.append(f'<text {position} y="{y(value) + 4:.0f}">{value:g}</text>')
    for index, count in enumerate(counts):
        # The labels of the last two counts may be too close to each other.
        anchor = "end" if index == len(counts) - 2 and x(counts[-1]) - x(count) < 60 else "middle"
        parts.append(f'<text x="{x(count):.0f}" y="{top + height + 18}" text-anchor="{anchor}">{count:,}</text>')
    parts.append(f'<text x="{left + width / 2:.0f}" y="{top + height + 36}" text-anchor="middle">{axis}</text>')
    for peer, line in lines.items():
        path = " ".join(f"{x(count):.0f},{y(value):.0f}" for count, value in line)
        parts.append(f'<polyline fill="none" stroke="{COLOURS[peer]}" stroke-width="2" points="{path}"/>')
        parts += [
            f'<circle cx="{x(count):.0f}" cy="{y(value):.0f}" r="3" fill="{COLOURS[peer]}"/>'
            for count, value in line
        ]
    return parts


def machine():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    return f"{os.cpu_count()} CPUs, {model}, Linux {platform.release().split('-')[0]}"


def versions():
    socketio = json.loads((HERE / "peers/socketio/package.json").read_text()).get("dependencies", {})
    return {
        "Roomcast": version(BINARY, "--version"),
        "Redis": version("redis-server", "--version"),
        "Nchan": version("dpkg-query", "-W", "-f", "libnginx-mod-nchan ${Version}", "libnginx-mod-nchan"),
        "Socket.IO": ", ".join(f"{name} {number}" for name, number in socketio.items()),
        "Node.js": version("node", "--version"),
    }


def quoted(names):
    """Names as a shell takes them. Some have spaces, and all commas belong to them."""
    return " ".join(shlex.quote(name) for name in names)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, metavar="COUNT", help="repetitions; 5 by default")
    parser.add_argument(
        "--only", nargs="*", choices=ALL, metavar="SCENARIO", help=f"only these scenarios: {quoted(ALL)}"
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, metavar="PEER", help=f"only these peers: {quoted(PEERS)}")
    parser.add_argument("--report", action="store_true", help="write BENCHMARKS.md without measuring")
    arguments = parser.parse_args()
    if not arguments.report:
        missing = missing_programs()
        wanted = arguments.peers or list(PEERS)
        for peer in [peer for peer in wanted if peer in missing]:
            print(f"leaving out {NAMES[peer]}: it {missing[peer]}", file=sys.stderr)
        # The ratios need rawlimit.
        peers = [peer for peer in PEERS if peer == "rawlimit" or (peer in wanted and peer not in missing)]
        build(peers)
        run(arguments.only or list(ALL), peers, arguments.repeat)
        if "roomcast-redis" in peers and not arguments.only:
            subprocess.run([HERE / "publish.py", "--repeat", str(arguments.repeat)], check=True)
    report()


if __name__ == "__main__":
    main()
