"""Runs the command blocks of one page, and compares what they print with what the page shows."""

import os
import re
import shutil
import signal
import tempfile
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from pagecheck import Failure, compare, markdown
from pagecheck.processes import (
    OUTPUT_SECONDS, STOP_SECONDS, Shell, demand_free, listens, lives, quote, read, send, until,
)  # fmt: skip

GATEWAY, REDIS = ("127.0.0.1", 8080), ("127.0.0.1", 6379)
BUILT = "target/release/roomcast"
NEEDS_REDIS = re.compile(r"<!--\s*needs:\s*redis\s*-->")
# After so many failures the others of a page are likely their consequences.
MOST_FAILURES = 3

# A gateway's start: roomcast, where commands stand, and none of what only prints.
PRINTS = r"\s+(?:openapi|health|token|help|--help|-h|--version|-V)\b"
SERVES = re.compile(
    rf"(?:{BUILT}|(?:^|[;&|(]|\bexec)\s*(?:\w+=\S*\s+)*roomcast(?=\s|$))(?!{PRINTS})"
    rf"|\bcargo run\b(?! --release --{PRINTS})",
    re.MULTILINE,
)
LISTEN = re.compile(r"--listen[ =]([\d.]+):(\d+)")

# Takes the place of cargo on a page's PATH, so that running does not build.
CARGO = """#!/usr/bin/env bash
if [ "$1 $2" = "run --release" ] && { [ $# = 2 ] || [ "$3" = -- ]; }; then
    exec %(binary)s "${@:4}"
fi
PATH=%(path)s exec cargo "$@"
"""


@dataclass
class Output:
    """What a block prints: in the end, or in the background to a file.

    `shown` counts the lines that the page has shown so far. If that ended with `…`, the page may
    leave out those that follow (`cut`).
    """

    lines: list = field(default_factory=list)
    group: int = 0
    file: Path = None
    skipped: bool = False
    shown: int = 0
    cut: bool = False

    def is_running(self):
        return bool(self.group) and lives(self.group)

    def compare(self, text, whole):
        """Compares what comes next, or all the rest, with what the page shows."""
        expected = [compare.ANY] * self.cut + compare.lines(text.strip("\n"))
        if self.file:
            until(lambda: self._has_come(expected), OUTPUT_SECONDS)
        if (end := self._end(expected, whole)) is None:
            printed = self.lines[self._start() :]
            differ = compare.difference(expected, printed)
            raise Failure(f"the output is not the page's:\n{differ}")
        self.shown, self.cut = end, expected[-1].strip() == compare.ANY

    def _has_come(self, expected):
        """Whether a background block has printed what is expected, or can print no more."""
        is_running = self.is_running()
        *complete, last = compare.lines(read(self.file))
        self.lines = complete
        if is_running and self._end(expected, False) is not None:
            return True
        self.lines = [*complete, last]
        return not is_running

    def _start(self):
        """The first line, not yet shown, that is not blank."""
        blank = takewhile(lambda line: not line, self.lines[self.shown :])
        return self.shown + len(list(blank))

    def _end(self, expected, whole):
        start = self._start()
        end = compare.find_end(expected, self.lines[start:], whole)
        return None if end is None else start + end


class Page:
    """A page: its name within the folder `root`, and what came of running it."""

    def __init__(self, root, name, binary, processes, gateway=GATEWAY):
        self.root, self.name, self.binary = Path(root), name, Path(binary).resolve()
        self.processes, self.gateway = processes, gateway
        self.run_count = self.compared = 0
        self.skipped, self.failures = [], []
        self.outputs, self.last = {}, None

    def __str__(self):
        skipped = f" ({', '.join(self.skipped)})" if self.skipped else ""
        end = f"; FAILED: {len(self.failures)}" if self.failures else ""
        counts = f"{self.run_count} blocks run, {self.compared} outputs compared"
        return f"{self.name}: {counts}, {len(self.skipped)} skipped{skipped}{end}"

    def run(self):
        """Runs the page, and ends what that has started."""
        text = (self.root / self.name).read_text()
        with tempfile.TemporaryDirectory(prefix="roomcast-page-") as folder:
            try:
                blocks = markdown.blocks(text)
                if any(block.is_command for block in blocks):
                    self._prepare(Path(folder), blocks, NEEDS_REDIS.search(text))
                    self._run_blocks(blocks)
            except Failure as failure:
                self._fail(failure, 0)
            finally:
                self.processes.end_all()
        return self

    def _fail(self, failure, line):
        self.failures.append(f"{self.name}:{max(1, line + failure.line)}: {failure}")

    def _prepare(self, folder, blocks, needs_redis):
        """Starts the servers that the page takes as given, and its shell."""
        variables = environment(folder, self.binary)
        self.roomcast = folder / "bin/roomcast"
        demand_free(self.gateway)
        if needs_redis:
            for program in ("redis-server", "redis-cli"):
                if not shutil.which(program):
                    raise Failure(f"the page needs {program}, which is not installed")
            command = f"redis-server --bind {REDIS[0]} --port {REDIS[1]} --appendonly no --save"
            command = [*command.split(), "", "--dir", folder]
            self.processes.start_server(command, REDIS, folder / "redis.log", variables)
        commands = [block for block in blocks if block.is_command and "skip" not in block.words]
        if not any(served(block.text, self.gateway) for block in commands):
            command = [self.roomcast, "--listen", "{}:{}".format(*self.gateway)]
            self.processes.start_server(command, self.gateway, folder / "gateway.log", variables)
        self.shell = Shell(self.processes, folder, self.root, variables)

    def _run_blocks(self, blocks):
        for place, block in enumerate(blocks):
            try:
                if block.is_command:
                    self._command(block)
                elif "output" in block.words:
                    self._show(block, blocks[place + 1 :])
            except Failure as failure:
                self._fail(failure, block.line)
                if failure.final or len(self.failures) == MOST_FAILURES:
                    self.failures[-1] += "\n(the rest of the page was not run)"
                    return

    def _command(self, block):
        """Runs a block, and keeps its output."""
        name, skip, stop = map(block.words.get, ("background", "skip", "stop"))
        earlier = self.outputs.get(name)
        # The output of a block that fails is not compared either.
        self.last = Output(skipped=True)
        if name:
            self.outputs[name] = self.last
        if skip:
            self.skipped.append(skip)
            return
        if earlier and earlier.is_running():
            raise Failure(f"the background block {name} still runs")
        if stop:
            self._stop(stop)
        self.run_count += 1
        commands = block.text
        if self.binary != (self.root / BUILT).resolve():
            commands = re.sub(rf"(?:\./)?\b{BUILT}\b", quote(self.roomcast), commands)
        if name:
            self.last = self._start(name, commands, served(block.text, self.gateway))
            self.outputs[name] = self.last
        else:
            self.last = Output(compare.lines(self.shell.run(commands).rstrip()))

    def _start(self, name, commands, address):
        """Starts a background block. Waits until it has printed something, and listens if it is to
        serve on an address.
        """
        if address:
            demand_free(address)
        group, file = self.shell.start(commands)
        output = Output(group=group, file=file)

        def is_ready():
            return read(file) and (not address or listens(address))

        until(lambda: is_ready() or not output.is_running(), OUTPUT_SECONDS)
        if not is_ready():
            wrong = f"is not ready in {OUTPUT_SECONDS} s" if output.is_running() else "has ended"
            raise Failure(f"{name} {wrong}; it has printed:\n{read(file)}")
        return output

    def _stop(self, name):
        """Ends a background block as Ctrl+C does."""
        output = self._named(name)
        if output.is_running():
            send(output.group, signal.SIGINT)
            if not until(lambda: not output.is_running(), STOP_SECONDS):
                raise Failure(f"{name} did not end in {STOP_SECONDS} s after Ctrl+C")

    def _named(self, name):
        if name not in self.outputs:
            raise Failure(f"no background block is called {name}")
        return self.outputs[name]

    def _show(self, block, following):
        """Compares what a block of output shows."""
        name = block.words["output"]
        output = self._named(name) if name else self.last
        if output is None:
            raise Failure("there is no command block before this output")
        if not output.skipped:
            self.compared += 1
            # Several blocks may show a command's output, one part after another.
            more = takewhile(lambda other: not other.is_command, following)
            is_last = not any(other.words.get("output") == "" for other in more)
            output.compare(block.text, whole=is_last and not output.file)


def served(commands, default):
    """The address on which commands start a gateway; None if they do not."""
    if SERVES.search(commands):
        listen = LISTEN.search(commands)
        return (listen[1], int(listen[2])) if listen else default
    return None


def environment(folder, binary):
    """The variables of a page's shell; `roomcast`, `cargo` and curl's settings are in `folder`."""
    tools, temporary, path = folder / "bin", folder / "tmp", os.environ["PATH"]
    tools.mkdir()
    temporary.mkdir()
    (tools / "roomcast").symlink_to(binary)
    (tools / "cargo").write_text(CARGO % {"binary": quote(tools / "roomcast"), "path": quote(path)})
    (tools / "cargo").chmod(0o755)
    # On a terminal, curl shows its progress no more than here.
    (folder / ".curlrc").write_text("no-progress-meter\n")
    foreign = ("ROOMCAST_", "OTEL_", "BASH_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "PATH": f"{tools}:{path}", "CURL_HOME": str(folder), "TMPDIR": str(temporary),
        "LC_ALL": "C.UTF-8", "no_proxy": "127.0.0.1,localhost",
    }  # fmt: skip
