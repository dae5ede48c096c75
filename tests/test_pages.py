"""Tests of tests/pages.py: python3 -m unittest discover tests -p 'test_*.py'"""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path
from unittest import mock

import pages
from pagecheck import Failure, compare, links, markdown
from pagecheck.page import Page, served
from pagecheck.processes import Processes, listens, until

# A script in a shell's background ignores Ctrl+C, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).resolve().parent
SECONDS = 10
ID, UUID = "1795572211462130-3", "06efabed-9887-4a75-be8f-7dbebef79c52"

# Takes the place of the gateway: listens, and says so.
GATEWAY = f"""#!{sys.executable}
import socket, sys
if "token" in sys.argv:
    sys.exit(print("a token"))
where = sys.argv[sys.argv.index("--listen") + 1]
listener = socket.create_server(("127.0.0.1", int(where.split(":")[1])))
print("listens on", where, flush=True)
while True:
    listener.accept()
"""


def lives(process):
    """Whether a process lives; a dead one that nobody has reaped does not."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def matches(page, printed, whole=True):
    expected = compare.lines(page)
    return compare.find_end(expected, compare.lines(printed), whole) is not None


class Comparing(unittest.TestCase):
    def test_what_differs_from_run_to_run_may_be_any(self):
        for here, there in [
            ('{"id":"1795572211462130-3"}', '{"id":"1800000000000000-71"}'),
            ("epoch 1795572211462130.", "epoch 1795572211462131."),
            (UUID, "11111111-2222-3333-4444-555555555555"),
            ("at 2026-11-25T02:03:31.976Z", "at 2027-01-01T00:00:00Z"),
            ('"replica":"1d328c4cb7ac"', '"replica":"d81c853fe540"'),
            ("id: c1.bcVx-_a", "id: c1.QQQQQ"),
        ]:
            self.assertTrue(matches(here, there), here)

    def test_all_else_must_be_equal(self):
        for here, there in [
            ("data: hello", "data: hallo"), ("1-5", "1-6"), (ID, "1-6"), (ID, UUID), ("a.c", "abc"),
            ("a\nb", "a"), ("a", "a\nb"), ("a\n\nb", "a\nb"), ("status 200", "status 201"),
        ]:  # fmt: skip
            self.assertFalse(matches(here, there), here)

    def test_an_ellipsis_is_any_text_of_its_line(self):
        self.assertTrue(matches('{"a":…,"z":1}', '{"a":[1,2],"y":{},"z":1}'))
        self.assertFalse(matches('{"a":…,"z":1}', '{"a":[1,2]\n,"z":1}'))
        for cut in ["1795572211462130-…", "17955…", "06efabed-…", "2026-11-25T…", "c1.…"]:
            other = "c1.QQ" if cut.startswith("c1") else "1800000000000000-1"
            self.assertTrue(matches(f"id: {cut}", f"id: {other}"), cut)

    def test_an_ellipsis_alone_is_any_lines(self):
        for printed in ["a\nz", "a\nb\nz", "a\nb\n\nc\nz"]:
            self.assertTrue(matches("a\n…\nz", printed))
        self.assertFalse(matches("a\n…\nz", "a\nb"))
        self.assertTrue(matches("…", ""))

    def test_part_of_what_was_printed_is_as_short_as_can_be(self):
        printed = compare.lines("a\nb\na\nb")
        self.assertEqual(compare.find_end(["…", "b"], printed, whole=False), 2)
        self.assertEqual(compare.find_end(["…", "b"], printed, whole=True), 4)

    def test_white_space_and_heartbeats_do_not_count(self):
        self.assertTrue(matches("HTTP/1.1 200 OK\na: b", "HTTP/1.1 200 OK\r\na: b  "))
        self.assertTrue(matches("id: 1\n\nid: 2", "id: 1\n\n:\n\nid: 2"))

    def test_one_json_document_may_begin_a_line_behind_another(self):
        self.assertTrue(matches('{"a":1}\n{"b":2}', '{"a":1}{"b":2}'))

    def test_the_diff_names_what_may_be_any_and_marks_only_what_differs(self):
        page, printed = f"id: {ID}\ndata: hello\n…", "id: 1800000000000000-9\ndata: hallo\nmore"
        shown = compare.difference(compare.lines(page), compare.lines(printed)).splitlines()
        self.assertIn("  id: <id>", shown)
        self.assertIn("- data: hello", shown)
        self.assertIn("+ data: hallo", shown)


class ReadingMarkdown(unittest.TestCase):
    def test_blocks_have_their_lines_words_and_text(self):
        text = "a\n```sh background=x stop=y\nls\n```\n"
        text += "1. b\n\n   ````text output\n   ```\n   ````\n"
        first, second = markdown.blocks(text)
        self.assertEqual((first.line, first.language, first.text), (2, "sh", "ls\n"))
        self.assertEqual(first.words, {"background": "x", "stop": "y"})
        self.assertEqual((second.text, second.words), ("```\n", {"output": ""}))

    def test_blocks_that_would_not_be_tested_are_refused(self):
        for block in ["```bash", "```sh skip", "```sh skip=", "```sh output", "```json outptu"]:
            with self.assertRaises(Failure, msg=block) as caught:
                markdown.blocks(f"\n{block}\nx\n```\n")
            self.assertEqual(caught.exception.line, 2)
        with self.assertRaisesRegex(Failure, "never closed"):
            markdown.blocks("```sh\nls\n")

    def test_anchors_are_githubs(self):
        text = """
            # Routes & *errors*: what's `POST /v1/a_b`?
            ## [A link](x.md) and _emphasis_
            ## Same
            ## Same
            <a id="own"></a>
            ```sh
            # No heading
            ```
        """
        self.assertEqual(
            markdown.anchors(textwrap.dedent(text)),
            {"routes--errors-whats-post-v1a_b", "a-link-and-emphasis", "same", "same-1", "own"},
        )

    def test_a_gateways_start_is_told_from_other_commands(self):
        for commands, port in [
            ("cargo run --release", 8080), ("cargo run --release -- --listen 127.0.0.1:81", 81),
            ("A=b roomcast --listen=127.0.0.1:82 &", 82), ("target/release/roomcast", 8080),
            ("roomcast token --sub ann", None), ("target/release/roomcast health", None),
            ("cargo run --release -- token", None), ("redis-cli --user roomcast", None),
        ]:  # fmt: skip
            expected = port and ("127.0.0.1", port)
            self.assertEqual(served(commands, ("127.0.0.1", 8080)), expected, commands)


class InFolder(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path


class RunningPages(InFolder):
    def setUp(self):
        super().setUp()
        self.binary = self.write("gateway", GATEWAY)
        self.binary.chmod(0o755)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.address = listener.getsockname()
        self.port = self.address[1]

    def run_page(self, text):
        self.write("page.md", text)
        with Processes() as processes:
            page = Page(self.root, "page.md", self.binary, processes, self.address).run()
        self.assertFalse(listens(self.address))
        return page

    def passes(self, text):
        page = self.run_page(text)
        self.assertEqual(page.failures, [])
        return page

    def fails(self, text, *parts):
        """The page fails, once, in a way that its text says."""
        (failure,) = self.run_page(text).failures
        for part in parts:
            self.assertIn(part, failure)
        return failure

    def test_variables_functions_and_the_folder_live_on(self):
        page = self.passes("""
            ```sh
            export A=1; b=2; f() { echo "f$1"; }; cd /
            ```
            ```sh background=other
            echo "$A $b $(f 3) $PWD"
            ```
            ```text output=other
            1 2 f3 /
            ```
            ```sh
            echo "$A $b"; f 4 >&2
            ```
            ```text output
            1 2
            f4
            ```
            """)
        self.assertEqual(str(page), "page.md: 3 blocks run, 2 outputs compared, 0 skipped")

    def test_other_output_than_the_pages_fails_with_its_line_and_a_diff(self):
        text = "# Page\n\n```sh\nprintf 'a\\nx\\n'\n```\n\n```text output\na\nb\n```\n"
        failure = self.fails(text, "page.md:7: ", "  a\n- b\n+ x")
        self.assertEqual(failure.count("\n"), 5)

    def test_a_command_that_fails_is_named_by_its_line(self):
        self.fails("```sh\necho a\nfalse\necho b\n```\n", "page.md:3: exit code 1", "a\nb\n")
        self.fails("\n```sh\necho a\n(exit 7)\n```\n", "page.md:4: exit code 7")
        self.fails("```sh\nif\n```\n", "page.md:1: exit code", "syntax error")

    def test_a_page_ends_with_its_shell(self):
        self.fails("```sh\nexit 0\n```\n```sh\nfalse\n```\n", "page.md:1: ", "ended the page's")

    @mock.patch("pagecheck.processes.BLOCK_SECONDS", 0.3)
    def test_a_block_has_a_deadline(self):
        self.fails("```sh\necho a; sleep 60\n```\n", "page.md:1: ", "did not end", "a\n")

    def test_a_background_block_is_shown_part_by_part(self):
        self.passes("""
            ```sh background=log
            echo one; until [ -e go ]; do sleep 0.01; done; echo; echo two; echo three; sleep 60
            ```
            ```text output
            one
            ```
            ```sh
            touch go
            ```
            ```text output=log
            two
            …
            ```
            ```text output=log
            three
            ```
            """)

    @mock.patch("pagecheck.page.OUTPUT_SECONDS", 0.3)
    def test_background_output_that_does_not_come_fails(self):
        block = "```sh background=log\necho one; sleep 60\n```\n"
        self.fails(f"{block}```text output=log\ntwo\n```\n", "page.md:4: ", "- two\n+ one")
        self.fails("```sh background=log\nsleep 60\n```\n", "page.md:1: ", "not ready")
        self.fails("```sh background=log\ntrue\n```\n", "page.md:1: ", "has ended")
        self.fails("```sh\ntrue\n```\n```text output=log\n```\n", "is called log")

    def test_a_stopped_block_has_ended(self):
        self.passes("""
            ```sh background=log
            trap 'echo bye; exit' INT; echo "$BASHPID" | tee pid; while true; do sleep 0.01; done
            ```
            ```sh stop=log
            ! kill -0 "$(cat pid)" 2>&1 | grep -v 'No such process'
            ```
            ```text output=log
            …
            bye
            ```
            """)

    def test_skipped_blocks_do_not_run_and_are_counted(self):
        page = self.passes("""
            ```sh skip=needs-docker
            false
            ```
            ```text output
            x
            ```
            """)
        self.assertIn("0 blocks run, 0 outputs compared, 1 skipped (needs-docker)", str(page))

    def test_parts_of_an_output_are_all_of_it(self):
        text = "```sh\necho a; echo b\n```\n```text output\na\n```\n"
        self.passes(f"{text}```text output\nb\n```\n")
        self.fails(text, "page.md:4: ", "+ b")

    def test_a_page_that_starts_no_gateway_has_one(self):
        page = f"```sh\n(exec 3<>/dev/tcp/127.0.0.1/{self.port})\nroomcast token\n```\n"
        self.passes(f"{page}```text output\na token\n```\n")

    def test_a_pages_own_gateway_is_the_binary(self):
        for command in ["cargo run --release --", "target/release/roomcast", "roomcast"]:
            self.passes(f"""
                ```sh background=gateway
                {command} --listen 127.0.0.1:{self.port}
                ```
                ```text output
                listens on 127.0.0.1:{self.port}
                ```
                """)

    def test_a_port_that_is_taken_is_said_plainly(self):
        with mock.patch("pagecheck.processes.KILL_SECONDS", 0.2):
            with socket.create_server(self.address):
                self.write("page.md", "```sh\ntrue\n```\n")
                with Processes() as processes:
                    page = Page(self.root, "page.md", self.binary, processes, self.address).run()
        self.assertIn(f"something else listens on 127.0.0.1:{self.port}", page.failures[0])

    def test_all_ends_with_the_script_however_it_ends(self):
        for number in [signal.SIGTERM, signal.SIGINT, signal.SIGKILL]:
            with self.subTest(number):
                self.end_amid_a_page(number)

    def end_amid_a_page(self, number):
        self.write("page.md", """
            ```sh background=sleeper
            echo "$BASHPID" > group; echo started; sleep 60 | cat
            ```
            ```sh
            echo "$$" > shell.new; mv shell.new shell; sleep 60
            ```
            """)  # fmt: skip
        program = f"""if True:
            import signal, sys
            sys.path.insert(0, {str(TESTS)!r})
            import pages
            from pagecheck.page import Page
            from pagecheck.processes import Processes
            signal.signal(signal.SIGTERM, pages.end)
            with Processes() as processes:
                Page({str(self.root)!r}, "page.md", {str(self.binary)!r}, processes,
                     {self.address!r}).run()
        """
        command = [sys.executable, "-c", program]
        # A script that is killed leaves its temporary files.
        environment = os.environ | {"TMPDIR": str(self.root)}
        script = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
        shell = self.root / "shell"
        self.assertTrue(until(shell.exists, SECONDS))
        groups = [int((self.root / name).read_text()) for name in ("group", "shell")]
        self.assertTrue(all(map(lives, groups)) and listens(self.address))
        script.send_signal(number)
        self.assertNotEqual(script.wait(SECONDS), 0)
        self.assertTrue(until(lambda: not any(map(lives, groups)), SECONDS))
        self.assertTrue(until(lambda: not listens(self.address), SECONDS))
        shell.unlink()


class FollowingLinks(InFolder):
    def setUp(self):
        super().setUp()
        self.write("docs/other.md", "# Other\n## Part one\n")
        self.write("src/a.rs", "one\ntwo\n")

    def failures(self, text, name="README.md"):
        self.write(name, text)
        subprocess.run(["git", "init", "--quiet"], cwd=self.root, check=True)
        return list(links.Links(self.root, links.files_of(self.root)).failures(name))

    def test_links_that_lead_somewhere_are_followed(self):
        text = """
            # Top
            [a](docs/other.md) [b](docs/other.md#part-one "title") [`c`](#top) ![e](src/a.rs)
            [wrapped
            text](<docs/other.md>) [d](src) [f][g] <https://example.org> http://127.0.0.1:8080.
            [](https://example.org/a_(b)?c=d#e)
            [h](src/a.rs#L2) [g](mailto:a@example.org) `[i](none.md)` <!-- [j](none.md) -->

            [g]: docs/other.md
            ```text
            [k](none.md)
            ```
        """
        self.assertEqual(self.failures(text), [])

    def test_links_that_lead_nowhere_are_found_with_their_lines(self):
        self.write(".gitignore", "ignored.md\n")
        self.write("ignored.md", "")
        for link, wrong in [
            ("[a](none.md)", "no such file"), ("![a](docs/none.svg)", "no such file"),
            ("[a](docs/other.md#part-two)", "no such heading"), ("[a](#none)", "no such heading"),
            ("[a](../README.md)", "outside"), ("[a](/docs/other.md)", "relative"),
            ("[a](ignored.md)", "git ignores"), ("[a][none]", "no such heading"),
            ("[a](docs/Other.md)", "no such file"), ("[a](src/a.rs#L3)", "no such heading"),
            ("[a](https://)", "well-formed"), ("<http://a..b>", "well-formed"),
            ("http://a:b/", "well-formed"), ("[a](ftp://example.org)", "well-formed"),
        ]:  # fmt: skip
            (failure,) = self.failures(f"# Top\n\n{link}\n")
            self.assertTrue(failure.startswith("README.md:3: "), failure)
            self.assertIn(wrong, failure)

    def test_long_lines_are_found_but_for_lone_urls(self):
        url = "https://example.org/" + "a" * 100
        self.assertEqual(self.failures(f"{'é' * 100}\n{url}\n- <{url}>\n"), [])
        (failure,) = self.failures(f"a\n\n{'b' * 101}\n| {'c' * 100} |\n")
        self.assertEqual(failure, "README.md:3: over 100 columns: 2 lines (3, 4)")
        self.assertEqual(len(self.failures(f"see {url}\n")), 1)

    def test_large_pages_are_found(self):
        pages = [("README.md", 8_000), ("docs/a/b.md", 14_000), ("CONTRIBUTING.md", 14_000)]
        for name, size in pages:
            self.assertEqual(self.failures("a\n" * (size // 2), name), [])
            self.assertIn("bytes", self.failures("a\n" * (size // 2) + "b", name)[0])
        self.assertEqual(self.failures("a\n" * 20_000, "bench/README.md"), [])

    def test_the_summary_lists_every_page(self):
        self.write("docs/new.md", "")
        failures = self.failures("- [Other](other.md)\n", "docs/SUMMARY.md")
        self.assertEqual(failures, ["docs/SUMMARY.md:1: docs/new.md is not listed"])

    def test_the_command_tells_its_findings_by_its_exit_code(self):
        for text, code in [("[a](docs/other.md)", 0), ("[a](none.md)", 1)]:
            self.failures(text)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                self.assertEqual(pages.main(["--links", "--root", str(self.root)]), code)
            self.assertIn("2 files, 1 links followed", printed.getvalue())


if __name__ == "__main__":
    unittest.main()
