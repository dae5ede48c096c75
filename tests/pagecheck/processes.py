"""Starts what the pages need, and ends it: servers, a bash for each page, background blocks."""

import contextlib
import os
import select
import shlex
import signal
import socket
import subprocess
import time

from pagecheck import Failure

# How many seconds may take: a block; the output of a background block, to appear; a background
# block, to end after Ctrl+C (a gateway drains for some seconds); a server, to listen; and what is
# killed, to be gone.
BLOCK_SECONDS, OUTPUT_SECONDS, STOP_SECONDS, SERVER_SECONDS, KILL_SECONDS = 20, 10, 20, 10, 2
POLL_SECONDS = 0.02

# Reads which groups run. When this script is gone, however it went, it kills those.
GUARD = """
declare -A groups
while read -r sign group; do
    if [ "$sign" = + ]; then groups[$group]=1; else unset "groups[$group]"; fi
done
for group in "${!groups[@]}"; do kill -KILL -- "-$group"; done
"""


def until(condition, seconds):
    """Waits until a condition holds; whether it does in time."""
    deadline = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return holds


def listens(address):
    """Whether something listens on an address."""
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
        return True
    return False


def demand_free(address):
    """Fails if something listens on an address, and is not what was killed just now."""
    if not until(lambda: not listens(address), KILL_SECONDS):
        raise Failure("something else listens on {}:{}; end it first".format(*address))


def send(group, number):
    """Sends a process group a signal, if there is such a group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def lives(group):
    """Whether a group's first process lives. (Others may wait, dead, for an init to reap them.)"""
    with contextlib.suppress(ProcessLookupError):
        os.kill(group, 0)
        return True
    return False


def quote(path):
    """A path as a word of the shell."""
    return shlex.quote(str(path))


def read(path):
    """What is in a file by now."""
    return path.read_text(errors="replace")


class Processes:
    """The process groups that were started. All end with this script, however it ends."""

    def __init__(self):
        self._groups = {}
        # In a session of its own, so that Ctrl+C does not reach it.
        self._guard = subprocess.Popen(
            ["bash", "-c", GUARD], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end_all()
        self._guard.stdin.close()
        self._guard.wait()

    def start(self, command, **options):
        """Starts a program in a group of its own."""
        child = subprocess.Popen(command, start_new_session=True, **options)
        self.add(child.pid, child)
        return child

    def start_server(self, command, address, log, environment):
        """Starts a program that is to listen on an address, and waits until it does."""
        demand_free(address)
        with open(log, "wb") as output:
            server = self.start(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        until(lambda: listens(address) or server.poll() is not None, SERVER_SECONDS)
        if server.poll() is not None or not listens(address):
            where = "{}:{}".format(*address)
            raise Failure(f"{command[0]} does not listen on {where}:\n{read(log)}")

    def add(self, group, child=None):
        """Takes on a group; `child` if it is this script's own."""
        self._groups[group] = child
        self._tell_guard("+", group)

    def end_all(self):
        """Kills all groups, and waits until they are gone."""
        # The newest first: a page's bash has to outlive its background blocks, to reap them.
        for group, child in reversed(list(self._groups.items())):
            send(group, signal.SIGKILL)
            if child:
                child.wait()
                for pipe in filter(None, (child.stdin, child.stdout)):
                    pipe.close()
            until(lambda group=group: not lives(group), KILL_SECONDS)
            self._tell_guard("-", group)
        self._groups.clear()

    def _tell_guard(self, sign, group):
        self._guard.stdin.write(f"{sign} {group}\n".encode())
        self._guard.stdin.flush()


class Shell:
    """One bash, fed block by block. What a block prints goes to a file, its result to a pipe."""

    def __init__(self, processes, folder, root, environment):
        self._processes, self._folder = processes, folder
        self._count, self._answers = 0, b""
        self._bash = processes.start(
            ["bash", "--noprofile", "--norc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, cwd=root, env=environment,
        )  # fmt: skip

    def run(self, text):
        """Runs a block to its end, and returns what it has printed. No command of it may fail."""
        script, output = self._files(text)
        # The trap sees commands before the last one. LINENO counts within the file that is read,
        # and there alone BASH_SOURCE is set.
        result = self._feed(f"""
            trap 'page_failed=${{page_failed:-"$? ${{BASH_SOURCE:+$LINENO}}"}}' ERR; page_failed=
            . {quote(script)} </dev/null >{quote(output)} 2>&1
            printf '%s %s\\n' "$?" "$page_failed"
        """, output)  # fmt: skip
        status, *failed = map(int, result.split())
        if status or failed:
            status, line = [*failed, 0][:2] if failed else (status, 0)
            raise Failure(f"exit code {status}; the block has printed:\n{read(output)}", line)
        return read(output)

    def start(self, text):
        """Starts a block in the background. Returns its group and the file that it prints to."""
        script, output = self._files(text)
        # With job control the block has a group of its own; bash is to report nothing of the job.
        result = self._feed(f"""
            set -m
            ( set +m; . {quote(script)} ) </dev/null >{quote(output)} 2>&1 &
            set +m; disown $!; printf '%s\\n' $!
        """, output)  # fmt: skip
        self._processes.add(int(result))
        return int(result), output

    def _files(self, text):
        self._count += 1
        script = self._folder / f"{self._count}.sh"
        script.write_text(text)
        output = script.with_suffix(".out")
        output.touch()
        return script, output

    def _feed(self, commands, output):
        """Gives bash commands, and returns the line that they print about a block."""
        deadline = time.monotonic() + BLOCK_SECONDS
        with contextlib.suppress(BrokenPipeError):
            self._bash.stdin.write(commands.encode())
            self._bash.stdin.flush()
        while b"\n" not in self._answers:
            left = max(0, deadline - time.monotonic())
            more = b""
            ready, _, _ = select.select([self._bash.stdout], [], [], left)
            if ready and (more := os.read(self._bash.stdout.fileno(), 4096)):
                self._answers += more
                continue
            wrong = "has ended the page's shell" if ready else f"did not end in {BLOCK_SECONDS} s"
            raise Failure(f"the block {wrong}; it has printed:\n{read(output)}", final=True)
        line, _, self._answers = self._answers.partition(b"\n")
        return line.decode()
