#!/usr/bin/env python3
"""Tests the deployment of docker-compose.yml without Docker: three replicas, Redis, and the balancer.

It runs the real programs with deploy/nginx.conf, in a network namespace in which the addresses of the configuration are
free. nginx asks Docker's DNS server on 127.0.0.11, and this script answers. So replicas can appear and vanish under
traffic, as with `docker compose up --scale roomcast=N`.

    cargo build && python3 tests/topology.py

ROOMCAST_BIN names another binary. ROOMCAST_OUTAGE is the duration of the Redis outage in seconds, 5 by default.
The script needs redis-server, nginx, unshare, setpriv and mount (util-linux), ip (iproute2), and the clients that
tests/clients/README.md lists. Without PyYAML it does not check docker-compose.yml.
"""

import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = Path(os.environ.get("ROOMCAST_BIN", ROOT / "target/debug/roomcast")).resolve()
NGINX_CONF = ROOT / "deploy/nginx.conf"
INSIDE = "ROOMCAST_TOPOLOGY_INSIDE"

BALANCER = ("127.0.0.1", 8000)
WAIT = 30  # longest wait for anything, in seconds: a busy machine is slow
OUTAGE = int(os.environ.get("ROOMCAST_OUTAGE", 5))  # seconds
LIMIT = 200 + 2 * OUTAGE  # seconds for the whole run
# A query that must not be in any log, even if the gateway refuses the request.
SECRET = "access_token=SECRET"


# --- waiting -----------------------------------------------------------------------------------------------


def until(condition, what, seconds=WAIT):
    """Polls until the condition is true. Returns its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)
    return value


# --- the programs ------------------------------------------------------------------------------------------


class Programs:
    """Started programs. They all end when this script ends, even if it is killed."""

    def __init__(self, folder):
        self.folder = folder
        self.running = {}

    def start(self, name, *command, settings={}):
        # If this script is killed, the kernel sends SIGTERM to its children. With a process group of its own, nginx
        # can be killed together with its workers.
        command = ["setpriv", "--pdeathsig", "TERM", *map(str, command)]
        env = {key: value for key, value in os.environ.items() if not key.startswith("ROOMCAST_")} | settings
        with open(self.log(name), "ab") as log:
            self.running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=self.folder,
                start_new_session=True,
            )

    def log(self, name):
        return self.folder / f"{name}.log"

    def terminate(self, name):
        """Sends SIGTERM and waits for the end. Returns the exit code."""
        self.running[name].send_signal(signal.SIGTERM)
        return self.running.pop(name).wait(WAIT)

    def kill(self, name):
        program = self.running.pop(name)
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()

    def end_all(self):
        if "nginx" in self.running:
            self.terminate("nginx")  # only nginx can wait for its workers
        for name in list(self.running):
            self.kill(name)


def start_replica(programs, name, address):
    programs.start(
        name, BINARY, "--listen", f"{address}:8080", "--redis-url", "redis://127.0.0.1:6379", "--replica-id", name,
        "--insecure-allow-anonymous", "--trusted-proxy", "127.0.0.0/8", "--drain-delay", "1", "--drain-window", "2",
    )  # fmt: skip
    # /healthz is 200 once publishing works, not only listening.
    until(lambda: answers((address, 8080), "/healthz"), f"{name} to be healthy")


def start_redis(programs):
    programs.start("redis", "redis-server", "--appendonly", "yes", "--maxmemory-policy", "noeviction")
    until(lambda: accepts(("127.0.0.1", 6379)), "Redis")


def redis_info(section):
    return subprocess.run(["redis-cli", "INFO", section], capture_output=True, text=True, timeout=WAIT).stdout.split()


def start_nginx(programs):
    # nginx is compiled with the machine's folders for temporary files. In this mount namespace they are empty ones.
    for folder in ("/var/lib/nginx", "/var/cache/nginx"):
        if os.path.isdir(folder):
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    # A user namespace has only one user, root.
    options = f"daemon off; pid {programs.folder}/nginx.pid; user root;"
    programs.start("nginx", "nginx", "-p", programs.folder, "-e", "stderr", "-c", NGINX_CONF, "-g", options)
    until(lambda: accepts(BALANCER), "nginx")


class Dns(threading.Thread):
    """Docker's DNS server for one name, with Docker's long TTL, which the configuration has to override."""

    def __init__(self):
        super().__init__(daemon=True)
        self.addresses = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.11", 53))

    def run(self):
        while True:
            query, client = self.socket.recvfrom(512)
            name_end = query.index(0, 12) + 1
            question = query[12 : name_end + 4]
            known = question.startswith(b"\x08roomcast\x00") and self.addresses
            is_a = question[-4:-2] == b"\x00\x01"
            found = list(self.addresses) if known and is_a else []
            flags = 0x8180 if known else 0x8183  # no error, or no such name
            answer = query[:2] + struct.pack(">5H", flags, 1, len(found), 0, 0) + question
            for address in found:
                answer += struct.pack(">3HIH", 0xC00C, 1, 1, 600, 4) + socket.inet_aton(address)
            self.socket.sendto(answer, client)


# --- clients -----------------------------------------------------------------------------------------------


def accepts(address):
    try:
        socket.create_connection(address, timeout=1).close()
        return True
    except OSError:
        return False


def request(method, path, body=None, headers={}, address=BALANCER):
    connection = http.client.HTTPConnection(*address, timeout=WAIT)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def answers(address, path):
    try:
        return request("GET", path, address=address)[0] == 200
    except OSError:
        return False


def publish(room, data, query=""):
    body = json.dumps({"event": "tick", "data": data})
    return request("POST", f"/v1/rooms/{room}/events{query}", body, {"Content-Type": "application/json"})


def published(room, data):
    """Publishes, and repeats the publish while the answer says that nothing was stored. After a change of all replicas,
    each worker of nginx still uses the old addresses for up to a second."""

    def attempt():
        status, _, body = publish(room, data)
        answer = json.loads(body)
        assert status == 201 or answer.get("code") == "unavailable", f"publish answered {status}: {body}"
        return answer.get("id")

    return until(attempt, "a publish to be stored")


def problem(answer, status, code):
    """Asserts a problem document."""
    got, headers, body = answer
    assert got == status, f"{got} instead of {status}: {body}"
    assert headers["Content-Type"] == "application/problem+json", headers["Content-Type"]
    document = json.loads(body)
    assert (document["status"], document["code"]) == (status, code), document
    assert document["request_id"], document


class Publisher(threading.Thread):
    """Publishes until `stop`. Keeps the ids of stored events, and every other answer."""

    def __init__(self, room):
        super().__init__(daemon=True)
        self.room, self.ids, self.refusals, self.failures = room, [], [], []
        self.stopped = threading.Event()
        self.start()

    def run(self):
        # The pause limits the rate to what the machine can handle.
        while not self.stopped.wait(0.005):
            try:
                status, headers, body = publish(self.room, len(self.ids))
                if status == 201:
                    self.ids.append(json.loads(body)["id"])
                elif status == 503 and headers["Content-Type"] == "application/problem+json":
                    self.refusals.append(json.loads(body)["code"])
                else:
                    self.failures.append((status, body))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))

    def stop(self):
        self.stopped.set()
        self.join(WAIT)


def stored(publishers):
    return sum(len(publisher.ids) for publisher in publishers)


class Subscriber(threading.Thread):
    """An EventSource (HTML 9.2): it reopens the stream at its last id when the stream ends, and stops for good after
    any answer but 200."""

    def __init__(self, room, address=BALANCER):
        super().__init__(daemon=True)
        self.path, self.address = f"/v1/rooms/{room}/stream", address
        self.changed = threading.Condition()
        self.last_id, self.retry, self.response = "", 3.0, None
        self.ids, self.data, self.control = [], [], []
        self.gave_up = self.closed = None
        self.start()
        self.wait(lambda: self.named("stream.open"), "the stream to open")

    def run(self):
        while not self.closed and not self.gave_up:
            try:
                self.read_stream()
            except (OSError, http.client.HTTPException, AttributeError):
                pass  # refused or cut; AttributeError: http.client, when the connection is closed under it
            if not self.closed:
                # The pause that the gateway asks for, shortened to save time. No check depends on it.
                time.sleep(min(self.retry, 0.3))

    def read_stream(self):
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self.last_id:
            headers["Last-Event-ID"] = self.last_id
        try:
            connection.request("GET", self.path, headers=headers)
            self.response = connection.getresponse()
            if self.response.status != 200 or not self.response.headers["Content-Type"].startswith("text/event-stream"):
                with self.changed:
                    self.gave_up = self.response.status
                    self.changed.notify_all()
                return
            self.read_blocks(self.response)
        finally:
            connection.close()

    def read_blocks(self, lines):
        position, event, data = "", "", []  # the position is empty at the start of each stream
        while line := lines.readline():
            name, _, value = line.decode().rstrip("\r\n").partition(":")
            value = value.removeprefix(" ")
            if name == "id":
                position = value
            elif name == "event":
                event = value
            elif name == "data":
                data.append(value)
            elif name == "retry":
                self.retry = int(value) / 1000
            elif not name and line.strip() == b"":
                self.dispatch(position, event, "\n".join(data) if data else None)
                event, data = "", []

    def dispatch(self, position, event, data):
        with self.changed:
            self.last_id = position
            if data is not None and event.startswith("stream."):
                self.control.append((event, json.loads(data)))
            elif data is not None:
                self.ids.append(position)
                self.data.append(data)
            self.changed.notify_all()

    def wait(self, condition, what, seconds=WAIT):
        with self.changed:
            done = self.changed.wait_for(lambda: self.gave_up or condition(), seconds)
        assert not self.gave_up, f"EventSource gave up on status {self.gave_up}, waiting for {what}"
        assert done, f"waited {seconds} s for {what}; {len(self.ids)} events, control: {self.control[-3:]}"

    def named(self, event):
        return [data for name, data in self.control if name == event]

    def replica(self):
        return self.named("stream.open")[-1]["replica"]

    def close(self):
        self.closed = True
        # Ends the thread's read.
        try:
            self.response.fp.raw._sock.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):
            pass


def assert_complete(subscriber, ids, unknown=0):
    """Asserts that every stored event arrived once and in the log's order, and nothing else but writes with an unknown
    outcome."""
    order = [tuple(map(int, id.split("-"))) for id in subscriber.ids]
    assert all(a < b for a, b in zip(order, order[1:])), "events out of order, or repeated"
    missed = set(ids) - set(subscriber.ids)
    assert not missed, f"missed {len(missed)} of {len(ids)}: {sorted(missed)[:3]}"
    extra = len(set(subscriber.ids) - set(ids))
    assert extra <= unknown, f"{extra} events that no publisher has the id of"
    assert not subscriber.named("stream.gap"), subscriber.named("stream.gap")


# --- checks ------------------------------------------------------------------------------------------------


class Topology:
    """Three replicas at first. Each check but the last leaves a working topology, even if it fails."""

    def __init__(self, folder):
        self.programs = Programs(folder)
        self.dns = Dns()
        self.replicas = {f"replica-{number}": f"127.0.0.{number + 1}" for number in (1, 2, 3)}

    def start(self):
        self.dns.start()
        start_redis(self.programs)
        for name, address in self.replicas.items():
            start_replica(self.programs, name, address)
        self.dns.addresses = list(self.replicas.values())
        start_nginx(self.programs)

    def nginx_log(self):
        return self.programs.log("nginx").read_text(errors="replace")

    def one_order_everywhere(self):
        """every replica and the balancer give the same events in the same order"""
        readers = [Subscriber("order", (address, 8080)) for address in self.replicas.values()]
        readers += [Subscriber("order") for _ in range(2)]
        publishers = [Publisher("order") for _ in range(4)]
        until(lambda: stored(publishers) >= 300, "300 publishes", 20)
        for publisher in publishers:
            publisher.stop()
        for publisher in publishers:
            assert not publisher.failures + publisher.refusals, (publisher.failures + publisher.refusals)[:3]
        ids = [id for publisher in publishers for id in publisher.ids]
        for reader in readers:
            reader.wait(lambda: len(reader.ids) >= len(ids), "all events")
            assert_complete(reader, ids)
            assert reader.data == readers[0].data, "the same ids with other data"
            reader.close()

    def unbuffered(self):
        """each event passes the balancer before the next one is published"""
        reader = Subscriber("prompt")
        for number in range(20):
            id = published("prompt", number)
            reader.wait(lambda: id in reader.ids, f"event {number}", seconds=2)
        reader.close()

    def redis_outage(self):
        """during an outage of Redis writes are refused, and every EventSource recovers by itself, a browser's too"""
        env = {**os.environ, "ROOMCAST_URL": "http://{}:{}".format(*BALANCER)}
        script = subprocess.Popen(
            ["node", "outage.mjs"], cwd=ROOT / "tests/clients", env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        lines = []

        def read_until(start):
            for line in script.stdout:
                lines.append(line)
                if line.startswith(start):
                    return
            raise AssertionError("".join(lines))

        try:
            read_until("take Redis away")
            # On a slow disk, Redis acknowledges writes that are still in its own buffer. A kill would lose them and
            # cause a gap.
            until(lambda: "aof_buffer_length:0" in redis_info("persistence"), "Redis to write what it has acknowledged")
            self.programs.kill("redis")
            script.stdin.write("gone\n")
            script.stdin.flush()
            ends = time.monotonic() + OUTAGE
            refused = until(lambda: [answer] if (answer := publish("away", 1))[0] != 201 else None, "a refusal")[0]
            problem(refused, 503, json.loads(refused[2])["code"])
            assert json.loads(refused[2])["code"] in ("unavailable", "outcome_unknown"), refused[2]
            while time.monotonic() < ends:
                answer = publish("away", 1)
                problem(answer, 503, "unavailable")
                assert int(answer[1]["Retry-After"]) > 0
                for name, address in self.replicas.items():
                    assert answers((address, 8080), "/readyz"), f"{name} is unready"
                time.sleep(0.1)
            start_redis(self.programs)
            script.stdin.write("back\n")
            script.stdin.flush()
            until(lambda: all(answers((address, 8080), "/healthz") for address in self.replicas.values()), "health")
            read_until("recovered")
            assert script.wait(WAIT) == 0, lines[-5:]
        finally:
            script.kill()
            script.wait()
            if "redis" not in self.programs.running:
                start_redis(self.programs)

    def scale_out_and_in(self):
        """a replica starts and one shuts down under traffic: no publish fails, no event is missed or repeated"""
        readers = [Subscriber("travel") for _ in range(6)]
        publishers = [Publisher("travel") for _ in range(2)]
        try:
            self.replicas["replica-4"] = "127.0.0.5"
            start_replica(self.programs, "replica-4", "127.0.0.5")
            self.dns.addresses = list(self.replicas.values())
            until(lambda: '"replica":"127.0.0.5:8080"' in self.nginx_log(), "the balancer to find the new replica")

            # A replica with subscribers. DNS still lists it when it has ended, which is the harder case.
            leaving = readers[0].replica()
            moved = [reader for reader in readers if reader.replica() == leaving]
            del self.replicas[leaving]
            code = self.programs.terminate(leaving)
            assert code == 0, f"the drained replica exited with {code}"
            for reader in moved:
                reader.wait(lambda: reader.replica() != leaving, "a stream on another replica")
            self.dns.addresses = list(self.replicas.values())
            so_far = stored(publishers)
            until(lambda: stored(publishers) > so_far + 100, "traffic to go on")
        finally:
            for publisher in publishers:
                publisher.stop()
        for publisher in publishers:
            assert not publisher.failures, publisher.failures[:3]
            # A replica was always available, so the only failures are writes that were interrupted.
            assert set(publisher.refusals) <= {"outcome_unknown"}, publisher.refusals[:3]
        last = published("travel", "last")
        ids = [id for publisher in publishers for id in publisher.ids] + [last]
        for reader in readers:
            reader.wait(lambda: last in reader.ids, "the last event")
            assert_complete(reader, ids, unknown=sum(len(publisher.refusals) for publisher in publishers))
            reader.close()

    def cut_ends(self):
        """the balancer passes on how a stream ends: properly, or by a cut"""
        for query, cut in (("", False), ("&end=cut", True)):
            stream = http.client.HTTPConnection(*BALANCER, timeout=WAIT)
            stream.request("GET", f"/v1/rooms/ends/stream?subscriber=ann{query}")
            response = stream.getresponse()
            while response.readline().strip() != b"event: stream.open":
                pass
            assert request("DELETE", "/v1/rooms/ends/subscribers/ann")[0] == 204
            try:
                rest, was_cut = response.read(), False
            except http.client.IncompleteRead as error:
                rest, was_cut = error.partial, True
            assert b"event: stream.end" in rest and was_cut == cut, (rest, was_cut)
            stream.close()

    def no_replica(self):
        """without any replica, streams end with `later`, writes get a 503, and later all streams resume"""
        readers = [Subscriber("outage") for _ in range(3)]
        ids = [published("outage", number) for number in range(20)]
        for reader in readers:
            reader.wait(lambda: len(reader.ids) == len(ids), "the events before the outage")
        for name in self.replicas:
            self.programs.kill(name)
        try:
            for addresses in (list(self.replicas.values()), []):  # still known but dead, then unknown
                self.dns.addresses = addresses
                for reader in readers:
                    ends = len(reader.named("stream.end"))
                    reader.wait(lambda: len(reader.named("stream.end")) > ends, "stream.end")
                    assert reader.named("stream.end")[-1] == {"reason": "no_replica", "reconnect": "later"}
                    assert reader.last_id == ids[-1], f"the position became {reader.last_id!r}"
                refused = publish("outage", "nobody", f"?{SECRET}")
                problem(refused, 503, "unavailable")
                assert int(refused[1]["Retry-After"]) > 0
            try:
                answer = request("GET", "/v1/stream?room=a&end=cut")
                raise AssertionError(f"a stream with end=cut was answered with {answer[0]}")
            except http.client.RemoteDisconnected:
                pass
            for query in ("after=c1.AB-_", "lastEventId=c1.AB-_", "after=c1.OLD&lastEventId=c1.AB-_"):
                status, headers, body = request("GET", f"/v1/stream?room=a&{query}&{SECRET}")
                assert status == 200 and headers["Content-Type"] == "text/event-stream", (status, headers.items())
                assert b"retry: 3000\n" in body and b"id: c1.AB-_\n" in body, body
            assert "SECRET" not in self.nginx_log(), "a query was logged"
        finally:
            self.replicas = {"replica-5": "127.0.0.6"}
            start_replica(self.programs, "replica-5", "127.0.0.6")
            self.dns.addresses = list(self.replicas.values())
        ids += [published("outage", number) for number in range(20)]
        for reader in readers:
            reader.wait(lambda: ids[-1] in reader.ids, "the events after the outage")
            assert_complete(reader, ids)
            reader.close()

    def with_keys(self):
        """docker-compose.keys.yml: a replica needs tokens, which `roomcast token` makes, and its health check passes"""
        settings = {}
        for file in ("docker-compose.yml", "docker-compose.keys.yml"):
            settings |= compose_services(file)["roomcast"]["environment"]
        assert settings["ROOMCAST_JWT_HS256_SECRET"].startswith("${ROOMCAST_JWT_HS256_SECRET:?"), "a key in the file"
        settings |= {"ROOMCAST_JWT_HS256_SECRET": "0123456789abcdef" * 4}
        settings |= {"ROOMCAST_REDIS_URL": "redis://127.0.0.1:6379", "ROOMCAST_LISTEN": "127.0.0.9:8080"}
        self.programs.start("with-keys", BINARY, settings=settings)
        address = ("127.0.0.9", 8080)
        until(lambda: answers(address, "/healthz"), "the replica with keys")

        def roomcast(*arguments):
            command = [BINARY, *arguments]
            return subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout.strip()

        roomcast("health")
        problem(request("GET", "/v1/rooms/a", address=address), 401, "token_missing")
        authorization = {"Authorization": f"Bearer {roomcast('token', '--admin')}"}
        assert request("GET", "/v1/rooms/a", headers=authorization, address=address)[0] == 200
        assert self.programs.terminate("with-keys") == 0

    def no_repeated_post(self):
        """a POST that a replica received and did not answer is not sent again"""
        received = []

        def receive_and_close(listener):
            while True:
                connection, _ = listener.accept()
                received.append(connection.recv(65536))
                connection.close()

        for address in ("127.0.0.7", "127.0.0.8"):
            listener = socket.create_server((address, 8080))
            threading.Thread(target=receive_and_close, args=(listener,), daemon=True).start()
        self.dns.addresses = ["127.0.0.7", "127.0.0.8"]
        # Workers that still use other addresses answer differently, and send nothing here.
        until(lambda: b"outcome_unknown" in publish("once", 1)[2], "a POST without an answer")
        assert len(received) == 1, f"sent {len(received)} times"

    def refusals(self):
        """the balancer refuses other host names, pages of other sites and large bodies with a problem document"""
        problem(request("GET", "/livez", headers={"Host": "rebound.example"}), 403, "foreign_host")
        for page in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://elsewhere.example"}, {"Origin": "null"}):
            problem(request("POST", "/v1/rooms/a/events", "x", page), 403, "cross_site")
        own = {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8080"}
        assert request("GET", "/livez", headers=own)[0] == 200
        problem(request("POST", f"/v1/rooms/a/events?{SECRET}", b"x" * (2 * 1024 * 1024 + 1)), 413, "body_too_large")

    def request_ids(self):
        """the id of a request is passed on, and a harmful id is replaced"""
        status, headers, _ = request("GET", "/livez", headers={"X-Request-Id": "chosen-1"})
        assert (status, headers["X-Request-Id"]) == (200, "chosen-1"), headers["X-Request-Id"]
        _, headers, _ = request("GET", "/livez", headers={"X-Request-Id": 'a"b'})
        assert headers["X-Request-Id"] not in (None, 'a"b'), headers["X-Request-Id"]

    def secrets(self):
        """no query is logged"""
        stream = http.client.HTTPConnection(*BALANCER, timeout=WAIT)
        stream.request("GET", f"/v1/rooms/secret-stream/stream?{SECRET}")
        stream.getresponse()
        stream.close()
        publish("secret-post", 1, f"?{SECRET}")
        request("GET", f"/nowhere?{SECRET}")
        for path in ("/v1/rooms/secret-stream/stream", "/v1/rooms/secret-post/events", "/nowhere"):
            until(lambda: f'"path":"{path}"' in self.nginx_log(), f"{path} in the log")
        assert "SECRET" not in self.nginx_log(), "a query was logged"


def compose_services(file):
    import yaml

    return yaml.safe_load((ROOT / file).read_text())["services"]


def compose():
    """docker-compose.yml describes three replicas, a Redis that keeps its data, one port on loopback"""
    services = compose_services("docker-compose.yml")
    redis, roomcast, balancer = (services[name] for name in ("redis", "roomcast", "balancer"))
    assert "--appendonly yes" in redis["command"] and "--maxmemory-policy noeviction" in redis["command"]
    assert any(volume.endswith(":/data") for volume in redis["volumes"])
    assert roomcast["deploy"]["replicas"] == 3
    assert int(roomcast["stop_grace_period"].removesuffix("s")) > 5 + 10, "shorter than the drain"
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:8080:8000"], ports
    assert "./deploy/nginx.conf:/etc/nginx/nginx.conf:ro" in balancer["volumes"]


def main():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    def interrupt(number, _frame):
        sys.exit(f"ended by {signal.Signals(number).name}" + (f" after {LIMIT} s" if number == signal.SIGALRM else ""))

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(LIMIT)

    passed = failed = 0

    def check(check):
        nonlocal passed, failed
        try:
            check()
            passed += 1
            print(f"ok    {check.__doc__}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAIL  {check.__doc__}\n      {type(error).__name__}: {error}", flush=True)

    if importlib.util.find_spec("yaml"):
        check(compose)
    else:
        print("skip  docker-compose.yml: PyYAML is missing")

    with tempfile.TemporaryDirectory(prefix="roomcast-topology-") as folder:
        topology = Topology(Path(folder))
        try:
            topology.start()
            check(topology.one_order_everywhere)
            check(topology.unbuffered)
            check(topology.request_ids)
            check(topology.refusals)
            check(topology.secrets)
            check(topology.cut_ends)
            check(topology.redis_outage)
            check(topology.scale_out_and_in)
            check(topology.no_replica)
            check(topology.no_repeated_post)
            if importlib.util.find_spec("yaml"):
                check(topology.with_keys)
            if failed:
                for log in sorted(topology.programs.folder.glob("replica-*.log")):
                    print(f"--- the end of {log.name}", log.read_text(errors="replace")[-1500:], sep="\n")
        finally:
            topology.programs.end_all()
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    if INSIDE in os.environ:
        main()
    missing = [p for p in ("redis-server", "nginx", "unshare", "setpriv", "mount", "ip") if not shutil.which(p)]
    if missing:
        sys.exit(f"not found: {', '.join(missing)}")
    if not BINARY.is_file():
        sys.exit(f"no binary at {BINARY}: run `cargo build`, or set ROOMCAST_BIN")
    # Namespaces for network and mounts. Only root can create them without a user namespace.
    unshare = ["unshare", "--net", "--mount"] + (["--map-root-user"] if os.geteuid() else [])
    os.execvpe(unshare[0], [*unshare, sys.executable, __file__], {**os.environ, INSIDE: "1"})
