#!/usr/bin/env python3
"""Measures Roomcast side by side with its peers and with rawlimit, the least work that fan-out takes, and writes BENCHMARKS.md.

    bench/compare.py                     everything, five times: some two hours
    bench/publish.py                     only how fast one Redis takes publishes
    bench/compare.py --repeat 1 --only 1k max --peers roomcast roomcast-redis
    bench/compare.py --report            writes BENCHMARKS.md from the results there are, and measures nothing

Peers whose programs are not there are left out, by name. Nchan needs Debian's nginx and libnginx-mod-nchan, Socket.IO needs npm, and
whatever is over Redis needs redis-server. Everything runs on loopback, ends with this script, and writes below bench/results only.

Every run gets a freshly started server on CPU 0 and has fanbench on CPU 1, with a raised priority if that is allowed. One repetition is
one run of every peer, one after the other, so that ratios are of runs that are close in time. Before each run it waits until the machine
is quiet; a run that other processes disturbed is repeated, a few times at most, and the least disturbed one is kept. In scenario "rooms
at once" rawlimit runs at the same time on the same CPU, so that whatever disturbs one disturbs both.
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results/results.jsonl"
PUBLISHES = HERE / "results/publish.json"
REPORT = ROOT / "BENCHMARKS.md"
PICTURE = ROOT / "docs/growth.svg"
FANBENCH = HERE / "target/release/fanbench"
BINARY = os.environ.get("ROOMCAST", str(ROOT / "target/release/roomcast"))
SERVER_CPU, BENCH_CPU = "0", "1"
QUIET_SHARE = 0.10  # of the machine's CPU time, used by others
PATIENCE_S = 30
ATTEMPTS = 3
NICENESS = -15

ROOMCAST = (
    "generic",
    8086,
    "--subscribe-url=/v1/rooms/{room}/stream",
    "--publish-url=/v1/rooms/{room}/events",
)
# Publishes and subscribes; signed with the key that peers/mercure.sh sets.
MERCURE_TOKEN = (
    "eyJhbGciOiAiSFMyNTYiLCAidHlwIjogIkpXVCJ9."
    "eyJtZXJjdXJlIjogeyJwdWJsaXNoIjogWyIqIl0sICJzdWJzY3JpYmUiOiBbIioiXX19."
    "kr62YYXmg579ZHCd7qNPLOpmpUncY-s1Oa3NDt9w-Aw"
)

# peer: (script, its environment, fanbench target, port, further flags)
PEERS = {
    "rawlimit": ("rawlimit.sh", {}, "raw-limit", 8081),
    "rawlimit-redis": ("rawlimit.sh", {"REDIS": "1"}, "raw-limit", 8087),
    "roomcast": ("roomcast.sh", {}, *ROOMCAST),
    "roomcast-redis": ("roomcast.sh", {"REDIS": "1"}, *ROOMCAST),
    "roomcast-several": ("roomcast.sh", {}, *ROOMCAST[:2], "--subscribe-url=/v1/stream?room={room}&room=another", *ROOMCAST[3:]),
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
# Measured once with this tool, where their binaries could be had; set MERCURE or CENTRIFUGO to measure them here.
ELSEWHERE = {
    "mercure": {"1k": 4.32, "10k": 2.93, "rooms": 3.88, "max": 2.88, "p50 1k": 4.6, "p50 rooms": 2.2, "idle": 48e3, "set-up": 12.5},
    "centrifugo-redis": {"1k": 4.77, "10k": 4.91, "rooms": 5.15, "max": 4.56, "p50 1k": 5.2, "p50 rooms": 3.2, "idle": 64e3, "set-up": 16.7},
}

SCENARIOS = {
    "1k": "--subscribers 1000 --rooms 1 --count 200 --rate 20",
    "10k": "--subscribers 10000 --rooms 1 --count 50 --rate 2",
    "rooms": "--subscribers 2000 --rooms 200 --count 2000 --rate 200",
    "max": "--subscribers 1000 --rooms 1 --count 1000 --rate 0",
    "idle": "--subscribers 10000 --count 0 --settle 10",
}
# Measured with rawlimit beside it, at a rate that is a little off, so that neither always comes first.
AT_ONCE, OFF_RATE = "rooms at once", ("--rate 200", "--rate 203")
SCENARIOS[AT_ONCE] = SCENARIOS["rooms"]
OURS = ["rawlimit", "roomcast", "roomcast-redis"]
# Its cursor differs from subscriber to subscriber, so nothing is shared but the envelope.
SEVERAL = "roomcast-several"
# How cost grows: about 20,000 deliveries a second, but for 10,000 rooms, where each publish is one.
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


# --- measuring ---------------------------------------------------------------------------------------------


def raise_priority():
    """Makes servers and fanbench, which inherit it, less prone to disturbance."""
    try:
        os.nice(NICENESS)
    except PermissionError:
        print("running without a raised priority", file=sys.stderr)


def cpu_ticks():
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    ticks = [int(field) for field in fields]
    return sum(ticks[:8]), ticks[3] + ticks[4]


def wait_until_quiet():
    """Waits until a second passes with little CPU use; False if that never is."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        total, idle = cpu_ticks()
        time.sleep(1)
        total_then, idle_then = cpu_ticks()
        if 1 - (idle_then - idle) / max(1, total_then - total) < QUIET_SHARE:
            return True
    return False


class Server:
    """A peer, started by its script and ended by its pid."""

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
            sys.exit(f"{script} has ended")

    def stop(self):
        self.script.terminate()
        self.script.wait()


class Load:
    """fanbench at work on a server."""

    def __init__(self, server, label, settings):
        self.label = label
        command = ["taskset", "-c", BENCH_CPU, FANBENCH, "--target", server.target]
        command += ["--url", f"http://127.0.0.1:{server.port}", "--json", "--quiet"]
        command += ["--server-children", "--label", label, *server.flags]
        command += [f"--server-pid={pid}" for pid in server.pids]
        self.process = subprocess.Popen(command + settings.split(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def result(self):
        """What fanbench says; None if it could not carry out the run."""
        output, errors = self.process.communicate()
        if not output:
            print(f"{self.label}: {errors[-500:].strip()}", file=sys.stderr)
            return None
        return json.loads(output)


def measure(peer, scenario):
    """What fanbench says, with what it says of a yardstick beside the peer; None if it could not carry out the run."""
    server = Server(peer)
    try:
        if scenario != AT_ONCE:
            return Load(server, f"{peer} {scenario}", ALL[scenario]).result()
        yardstick = Server("rawlimit")
        try:
            beside = Load(yardstick, f"rawlimit beside {peer} {scenario}", ALL[scenario].replace(*OFF_RATE))
            result, beside = Load(server, f"{peer} {scenario}", ALL[scenario]).result(), beside.result()
        finally:
            yardstick.stop()
        return result and beside and result | {"yardstick": beside}
    finally:
        server.stop()


def disturbance(result):
    """The share of the machine's CPU time that others took while events were delivered."""
    if result["settings"]["count"] == 0 or "yardstick" in result:
        return 0.0
    machine = result["machine"]
    taken = machine["other_seconds"] + machine["stolen_seconds"]
    return taken / max(0.01, result["delivery_timing"]["seconds"] * machine["cpus"])


def least_disturbed(peer, scenario):
    """The best of some runs; None if none could be carried out."""
    results = []
    for _ in range(ATTEMPTS):
        wait_until_quiet()
        if result := measure(peer, scenario):
            results.append(result)
            if disturbance(result) < QUIET_SHARE:
                break
    return min(results, key=disturbance, default=None)


def takes_part(peer, scenario):
    if scenario == AT_ONCE and peer == "rawlimit":
        return False
    return peer in OURS or (scenario in SCENARIOS and (peer != SEVERAL or scenario in ("1k", "max", "idle")))


def run(scenarios, peers, repeat):
    raise_priority()
    RESULTS.parent.mkdir(exist_ok=True)
    start = datetime.datetime.now().isoformat(timespec="seconds")
    for scenario in scenarios:
        for repetition in range(repeat):
            for peer in [peer for peer in peers if takes_part(peer, scenario)]:
                result = least_disturbed(peer, scenario)
                if result is None:
                    print(f"{scenario:18} {repetition + 1}/{repeat} {peer:16} left out", flush=True)
                    continue
                result["run"] = {
                    "peer": peer, "scenario": scenario, "repetition": f"{start} {repetition}", "disturbed": round(disturbance(result), 4),
                }
                with RESULTS.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                cost = result["server"]["cpu_us_per_delivery"]
                print(f"{scenario:18} {repetition + 1}/{repeat} {peer:16} {cost or 0:7.2f} µs a delivery", flush=True)


# --- what is there -----------------------------------------------------------------------------------------


def lacking():
    """Peers that can't be measured here, and why."""
    why = {}
    if not shutil.which("nginx") or not list(pathlib.Path("/usr/lib/nginx/modules").glob("ngx_nchan_module.so")):
        why["nchan"] = why["nchan-redis"] = "apt-get install nginx libnginx-mod-nchan"
    if not shutil.which("npm"):
        why["socketio-redis"] = "needs Node.js with npm"
    if not os.environ.get("MERCURE"):
        why["mercure"] = "set MERCURE to its binary"
    if not os.environ.get("CENTRIFUGO"):
        why["centrifugo-redis"] = "set CENTRIFUGO to its binary"
    if not shutil.which("redis-server"):
        why |= {peer: "apt-get install redis-server" for peer in PEERS if peer.endswith("-redis")}
    return why


def build(peers):
    subprocess.run([ROOT / "release/build", "--quiet"], check=True)
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=HERE, check=True)
    if "socketio-redis" in peers and not (HERE / "peers/socketio/node_modules").exists():
        subprocess.run(["npm", "ci", "--silent"], cwd=HERE / "peers/socketio", check=True)


def version(*command):
    try:
        output = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return (output.stdout + output.stderr).strip().splitlines()[0]


# --- the report --------------------------------------------------------------------------------------------

CPU = lambda result: result["server"]["cpu_us_per_delivery"]
P50 = lambda result: result["latency_ms"]["p50"]
P99 = lambda result: result["latency_ms"]["p99"]
SET_UP = lambda result: result["server"]["connect_cpu_us_per_connection"]
IDLE = lambda result: result["server"]["rss_per_connection"]

# What is compared, as ratios to rawlimit's: name, scenario, figure, its name elsewhere, and the goals, if it has any.
GOALS = [
    ("1k: 1,000 subscribers, 20/s", "1k", CPU, "1k", 1.15, 1.05),
    ("10k: 10,000 subscribers, 2/s", "10k", CPU, "10k", 1.20, 1.10),
    ("rooms: 2,000 in 200 rooms, 200/s", "rooms", CPU, "rooms", 2.0, 1.3),
    ("rooms, while rawlimit has them too", AT_ONCE, CPU, None, "", ""),
    ("max: 1,000, as fast as acknowledged", "max", CPU, "max", 0.4, 0.2),
    ("latency p50, 1k", "1k", P50, "p50 1k", 1.3, 1.2),
    ("latency p50, rooms", "rooms", P50, "p50 rooms", 2.0, 1.3),
    ("latency p50, rooms, while rawlimit has them too", AT_ONCE, P50, None, "", ""),
    ("CPU per set-up", "idle", SET_UP, "set-up", 3, 3),
]
# Bytes a stream.
IDLE_GOAL = 1024


class Results:
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
        """To rawlimit's, at the same time or in the same repetition."""
        yardstick = self.rows.get((scenario, "rawlimit"), {})
        own = self.rows.get((scenario, peer), {})
        if scenario == AT_ONCE:
            return [figure(result) / figure(result["yardstick"]) for result in own.values()]
        return [figure(own[key]) / figure(yardstick[key]) for key in own if key in yardstick]

    def ratio(self, scenario, peer, figure):
        ratios = self.ratios(scenario, peer, figure)
        if not ratios:
            return None
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 and peer.startswith(("roomcast", "rawlimit")) else ""
        return f"{statistics.median(ratios):.2f}{spread}"

    def when(self, scenarios, peers):
        """When runs of some peers in some scenarios were begun, first and last."""
        times = [time for (scenario, peer), rows in self.rows.items() if scenario in scenarios and peer in peers for time in rows]
        if not times:
            return "never"
        first, last = (time.split()[0][:16].replace("T", " ") for time in (min(times), max(times)))
        return f"{first} UTC" if first == last else f"{first} to {last} UTC"

    def faults(self):
        return sum(
            result["delivery"]["lost"] + result["delivery"]["duplicated"] + result["delivery"]["out_of_order"] + result["publish"]["failed"]
            for (scenario, peer), rows in self.rows.items() if peer in OURS for result in rows.values()
        )


def row(cells):
    return "| " + " | ".join(cells) + " |"


def report():
    results = Results()
    peers = [peer for peer in PEERS if peer not in ("rawlimit", SEVERAL) and (peer in ELSEWHERE or ("1k", peer) in results.rows)]
    peers.sort(key=lambda peer: not peer.startswith("roomcast"))
    lines = [
        "# Benchmarks", "",
        "<!-- Written by bench/compare.py; do not edit. -->", "",
        "What one delivery costs the server, as a multiple of what it costs `rawlimit`: one thread, one epoll instance and one `send` of a",
        "ready-made frame to each socket. It has no history, no limits and no clustering, so what is above it is the server's own work; below it",
        "comes who writes several events at once; a tenth to either side may be chance. All server processes are counted, Redis too. Lower is better.", "",
        "`rawlimit + Redis` is the same, but each event is first stored and announced by Roomcast's script in Redis, over one blocking connection:",
        "about the least that this way takes, before there is a gateway.", "",
        f"Medians of pairs, each of two runs some minutes apart, on one machine ({machine()}); server on one CPU, load on the other. In brackets the range.",
        "Where rawlimit has the rooms too, the two of a pair run at the same time and share both CPUs. So light a load is at the mercy of whatever",
        "else empties the caches, and then both are alike; but each also empties them for the other, so these figures are not to be held against the goals.",
        f"Begun: Roomcast's {results.when(SCENARIOS, [*OURS[1:], SEVERAL])}; the others' {results.when(SCENARIOS, set(PEERS) - {*OURS, SEVERAL})}.",
        *[f"Pairs in {of}: {', '.join(f'{NAMES[peer]} {len(results.rows[key])}' for peer in peers if (key := (of, peer)) in results.rows)}." for of in ("1k", AT_ONCE)], "",
        row(["CPU per delivery over rawlimit's", *[NAMES[peer] for peer in peers], "goal, Redis", "goal, embedded"]),
        row(["---"] + ["---:"] * (len(peers) + 2)),
    ]
    for name, scenario, figure, key, redis, embedded in GOALS:
        cells = []
        for peer in peers:
            value = results.ratio(scenario, peer, figure)
            if value is None and key in ELSEWHERE.get(peer, {}):
                value = f"{ELSEWHERE[peer][key]} *"
            cells.append(value or "")
        lines.append(row([name, *cells, str(redis), str(embedded)]))
    cells = []
    for peer in peers:
        value = results.median("idle", peer, IDLE)
        cells.append(f"{value:,.0f} B" if value is not None else f"{ELSEWHERE[peer]['idle']:,.0f} B *" if peer in ELSEWHERE else "")
    lines.append(row(["idle: RSS a stream at 10,000", *cells, f"{IDLE_GOAL:,} B", f"{IDLE_GOAL:,} B"]))
    lines += [
        "", "\\* Measured earlier with the same tool on another machine of the same kind (Mercure 0.24, Centrifugo 6), where their binaries could be",
        "had; no package manager here installs them. `MERCURE=…` or `CENTRIFUGO=…` measures them in place.", "",
        f"Events that were lost, repeated or out of order, and publishes that failed, in all runs of Roomcast: {results.faults()}.", "",
    ]
    lines += missed(results)
    lines += several(results)
    lines += publishes()
    lines += ["## Absolute figures", ""]
    lines += absolute(results, ["rawlimit", *[peer for peer in [*peers, SEVERAL] if ("1k", peer) in results.rows]])
    lines += growth(results)
    lines += ["## Versions", ""]
    lines += [f"- {name}: {text}" for name, text in versions().items() if text]
    lines += ["", "## Repeat it", "", "```sh", "bench/compare.py", "```", "", "`bench/compare.py --help` says what it needs; `bench/README.md` says what the figures mean.", ""]
    REPORT.write_text("\n".join(lines))
    print(f"wrote {REPORT.relative_to(ROOT)}")


def missed(results):
    """Which goals this run does not meet."""
    above = [
        f"{name.split(':')[0]} ({NAMES[peer]}, {statistics.median(ratios):.2f}, goal {goal})"
        for name, scenario, figure, _, *goals in GOALS
        for peer, goal in zip(("roomcast-redis", "roomcast"), goals)
        if goal and (ratios := results.ratios(scenario, peer, figure)) and statistics.median(ratios) > goal
    ]
    idle = {peer: results.median("idle", peer, IDLE) or 0 for peer in ("roomcast-redis", "roomcast")}
    above += [f"idle ({NAMES[peer]}, {value:,.0f} B, goal {IDLE_GOAL:,} B)" for peer, value in idle.items() if value > IDLE_GOAL]
    return [f"Above their goals: {'; '.join(above)}. What a publish costs, and why, `ARCHITECTURE.md` tells.", ""] if above else []


def several(results):
    """Streams of several rooms."""
    ratios = {scenario: results.ratio(scenario, SEVERAL, CPU) for scenario in ("1k", "max")}
    idle = results.median("idle", SEVERAL, IDLE)
    if not all(ratios.values()) or idle is None:
        return []
    return [
        "## Streams of several rooms", "",
        "Each event is enveloped once for everybody, but its `id:` is a cursor of all the rooms, so it is written for each subscriber. With two",
        f"rooms a stream, CPU per delivery over rawlimit's: 1k {ratios['1k']}, max {ratios['max']}; RSS a stream"
        f" {idle:,.0f} B.", "",
    ]


def publishes():
    """What bench/publish.py found."""
    if not PUBLISHES.exists():
        return []
    found = json.loads(PUBLISHES.read_text())
    line = lambda name, key, digits: row([
        name, *(f"{found[key][way]:,.{digits}f}" for way in ("bare", "through")), f"{found[key]['ratio']:.2f}"
    ])
    return [
        "## Publishing to Redis", "",
        f"A publish is one call of one script. {found['connections']} connections publish events of 128 bytes through Roomcast, and `redis-benchmark` calls the same",
        f"script with the same arguments; medians of {found['runs']} runs, Redis on one CPU, everything else on the other. The goal is 0.7 of redis-benchmark's",
        "rate where Redis is what ends it. One CPU of gateway and load tool does not bring one of Redis to its limit; it does when two endless loops beside",
        "Redis leave it a third of its CPU.", "",
        row(["", "redis-benchmark", "through Roomcast", "ratio"]), row(["---", "---:", "---:", "---:"]),
        line("publishes a second, Redis has a third of a CPU and is what ends it", "shared_per_second", 0),
        line("publishes a second, Redis has a CPU, and gateway and load tool end it", "own_per_second", 0),
        line("Redis's CPU a publish beside the loops, µs", "shared_redis_us", 1),
        line("Redis's CPU a publish, µs", "own_redis_us", 1), "",
        "Ratios are medians of each run's. The loops make 64 connections dearer for Redis, and the gateway has one, on which publishes that come",
        "meanwhile go together; from many replicas less goes together on each.", "",
    ]


def absolute(results, peers):
    lines = []
    for scenario in SCENARIOS:
        present = [peer for peer in peers if (scenario, peer) in results.rows]
        if not present:
            continue
        lines += [f"### {scenario}: `{SCENARIOS[scenario]}`", "", row(["", *[NAMES[peer] for peer in present]]), row(["---"] + ["---:"] * len(present))]
        figures = [("CPU per set-up, µs", SET_UP), ("RSS a stream, B", IDLE)] if scenario == "idle" else [
            ("CPU per delivery, µs", CPU), ("latency p50, ms", P50), ("latency p99, ms", P99),
            ("publish p50, ms", lambda result: result["publish"]["call_ms"]["p50"]),
        ]
        for name, figure in figures:
            lines.append(row([name, *[f"{results.median(scenario, peer, figure):,.3g}" if figure is not IDLE else f"{results.median(scenario, peer, figure):,.0f}" for peer in present]]))
        lines.append("")
    return lines


def growth(results):
    present = [scenario for scenario in GROWTH if (scenario, "roomcast") in results.rows]
    if not present:
        return []
    lines = ["## How cost grows", "", f"![CPU per delivery over rawlimit's, and memory a stream, by subscribers and by rooms]({PICTURE.relative_to(ROOT)})", ""]
    lines += [row(["", "CPU over rawlimit's, embedded", "with Redis", "µs, embedded", "with Redis", "p99 ms, rawlimit", "embedded", "with Redis", "RSS a stream, embedded", "with Redis"])]
    lines += [row(["---"] + ["---:"] * 9)]
    for scenario in present:
        cells = [results.ratio(scenario, peer, CPU) or "" for peer in OURS[1:]]
        for figure, of in ((CPU, OURS[1:]), (P99, OURS)):
            for peer in of:
                value = results.median(scenario, peer, figure)
                cells.append(f"{value:,.3g}" if value is not None else "")
        for peer in OURS[1:]:
            value = results.median(scenario, peer, IDLE)
            cells.append(f"{value:,.0f} B" if value is not None else "")
        lines.append(row([f"{scenario} (`{GROWTH[scenario]}`)", *cells]))
    draw(results)
    with_slow, without = (
        {peer: results.median(scenario, peer, P99) for peer in OURS} for scenario in ("a slow tenth", "without it")
    )
    change = "; ".join(
        f"{NAMES[peer]} {with_slow[peer] / without[peer] - 1:+.0%}" for peer in OURS if with_slow[peer] and without[peer]
    )
    return lines + [
        "", f"Begun: {results.when(GROWTH, OURS[1:])}. Medians of pairs, {min(len(results.rows[scenario, 'roomcast']) for scenario in present)} at least.",
        "With 10,000 rooms each publish is one delivery, at a twentieth of the rate, so that is what a publish costs.", "",
        f"What a tenth of subscribers that never read does to the others' p99 (medians, minutes apart; goal: less than 10 %): {change}.", "",
    ]


def draw(results):
    """How cost grows, as a picture without any library."""
    by_subscribers = {scenario: int(scenario.split()[0].replace(",", "")) for scenario in GROWTH if scenario.endswith("subscribers")}
    by_rooms = {"10,000 subscribers": 1, "100 rooms": 100, "10,000 rooms": 10_000}
    cost = lambda scenario, peer: statistics.median(results.ratios(scenario, peer, CPU) or [0])
    memory = lambda scenario, peer: (results.median(scenario, peer, IDLE) or 0) / 1024
    width, height = 720, 560
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for column, (peer, colour) in enumerate(COLOURS.items()):
        parts.append(f'<text x="{60 + 160 * column}" y="18" fill="{colour}">{NAMES[peer]}</text>')
    for row_of, (title, figure, step) in enumerate([("CPU per delivery over rawlimit's", cost, 0.5), ("RSS a stream, KiB", memory, 2)]):
        for column, (axis, counts) in enumerate([("subscribers of one room", by_subscribers), ("rooms of 10,000 subscribers", by_rooms)]):
            lines = {
                peer: [(count, value) for scenario, count in counts.items() if (value := figure(scenario, peer))] for peer in COLOURS
            }
            parts += panel(60 + 360 * column, 60 + 265 * row_of, title, axis, lines, step)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text("\n".join([*parts, "</svg>", ""]))


def panel(left, top, title, axis, lines, step):
    """Points by their counts' logarithms. At 1 is the yardstick, or the goal."""
    counts = sorted({count for line in lines.values() for count, _ in line})
    if len(counts) < 2:
        return []
    width, height = 270, 170
    most = max([value for line in lines.values() for _, value in line] + [3 * step]) * 1.1
    low, high = math.log10(counts[0]), math.log10(counts[-1])
    x = lambda count: left + (math.log10(count) - low) / (high - low) * width
    y = lambda value: top + height * (1 - value / most)
    parts = [f'<text x="{left}" y="{top - 10}">{title}</text>']
    while most / step > 7:
        step *= 2
    for value in {1, *[step * index for index in range(int(most / step) + 1)]}:
        dash = "" if value == 1 else ' stroke-dasharray="2 4"'
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y(value):.0f}" y2="{y(value):.0f}" stroke="#999"{dash}/>')
        place = f'x="{left + width + 4}"' if value == 1 else f'x="{left - 8}" text-anchor="end"'
        parts.append(f'<text {place} y="{y(value) + 4:.0f}">{value:g}</text>')
    for index, count in enumerate(counts):
        # The last two may be close.
        anchor = "end" if index == len(counts) - 2 and x(counts[-1]) - x(count) < 60 else "middle"
        parts.append(f'<text x="{x(count):.0f}" y="{top + height + 18}" text-anchor="{anchor}">{count:,}</text>')
    parts.append(f'<text x="{left + width / 2:.0f}" y="{top + height + 36}" text-anchor="middle">{axis}</text>')
    for peer, line in lines.items():
        path = " ".join(f"{x(count):.0f},{y(value):.0f}" for count, value in line)
        parts.append(f'<polyline fill="none" stroke="{COLOURS[peer]}" stroke-width="2" points="{path}"/>')
        parts += [f'<circle cx="{x(count):.0f}" cy="{y(value):.0f}" r="3" fill="{COLOURS[peer]}"/>' for count, value in line]
    return parts


def machine():
    model = next((line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=ALL, metavar="SCENARIO", help=", ".join(ALL))
    parser.add_argument("--peers", nargs="*", choices=PEERS, metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if not arguments.report:
        without = lacking()
        wanted = arguments.peers or list(PEERS)
        for peer in [peer for peer in wanted if peer in without]:
            print(f"without {NAMES[peer]}: {without[peer]}", file=sys.stderr)
        # Ratios are to rawlimit's.
        peers = [peer for peer in PEERS if peer == "rawlimit" or (peer in wanted and peer not in without)]
        build(peers)
        run(arguments.only or list(ALL), peers, arguments.repeat)
        if "roomcast-redis" in peers and not arguments.only:
            subprocess.run([HERE / "publish.py", "--repeat", str(arguments.repeat)], check=True)
    report()


if __name__ == "__main__":
    main()
