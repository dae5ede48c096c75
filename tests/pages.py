#!/usr/bin/env python3
"""Runs the command blocks of README.md and docs/, and follows the links of all Markdown files.

    tests/pages.py                  all pages, and all links
    tests/pages.py docs/api.md      that page and its links
    tests/pages.py --links          only links, sizes and the length of lines; needs no binary
    tests/pages.py --binary PATH    with another binary than target/release/roomcast

Each page runs in one bash, from its first block to its last; what a block prints is compared with
what the page shows. The words behind a block's language say how:

    ```sh                    runs to its end, 20 s at most; none of its commands may fail
    ```sh background=NAME    runs until the page ends; has to print something within 10 s
    ```sh stop=NAME          runs when NAME was ended with Ctrl+C
    ```sh skip=REASON        does not run
    ```json output           what the block before has printed, or the next part of it
    ```text output=NAME      what NAME prints next, within 10 s

The working directory is the root of the repository. `roomcast`, target/release/roomcast and
`cargo run --release` are the binary. A page with the comment `<!-- needs: redis -->` has an empty
Redis on 127.0.0.1:6379. A page that starts no gateway has one on 127.0.0.1:8080, without keys.
pagecheck/compare.py says what may differ.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from pagecheck import links
from pagecheck.page import BUILT, Page
from pagecheck.processes import Processes

ROOT = Path(__file__).resolve().parent.parent


def parse(arguments):
    usage, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=usage, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    parser.add_argument("--binary", type=Path, help=f"by default {BUILT}")
    parser.add_argument("--links", action="store_true", help="do not run the pages")
    parser.add_argument("--root", type=Path, default=ROOT, help="another folder with pages")
    return parser.parse_args(arguments)


def check_links(root, files, pages):
    """Prints one line for all Markdown files; returns what is wrong."""
    checked = links.Links(root, files)
    failures = [failure for page in pages for failure in checked.failures(page)]
    end = f"; FAILED: {len(failures)}" if failures else ""
    print(f"links, sizes and lines: {len(pages)} files, {checked.followed} links followed{end}")
    return failures


def run_pages(root, pages, binary):
    """Runs pages, and prints a line for each as soon as it is done; returns what is wrong."""
    failures = []
    with Processes() as processes:
        for page in pages:
            result = Page(root, page, binary, processes).run()
            print(result, flush=True)
            failures += result.failures
    return failures


def main(arguments=None):
    options = parse(arguments)
    root = options.root.resolve()
    files = links.files_of(root)
    pages = [name for name in files if name.endswith(".md")]
    if options.pages:
        chosen = [os.path.relpath(page, root) for page in options.pages]
        if unknown := set(chosen) - set(pages):
            sys.exit(f"tests/pages.py: no Markdown file of the repository: {', '.join(unknown)}")
        pages = chosen
    failures = check_links(root, files, pages)
    if not options.links:
        binary = (options.binary or root / BUILT).resolve()
        if not binary.is_file():
            sys.exit(f"tests/pages.py: {binary} is missing; cargo build --release makes it")
        runnable = [page for page in pages if page == "README.md" or page.startswith("docs/")]
        failures += run_pages(root, runnable, binary)
    for failure in failures:
        print(f"\n{failure}")
    return 1 if failures else 0


def end(number, _):
    """Ends as an exception does, so that everything that was started is ended too."""
    sys.exit(128 + number)


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, end)
    sys.exit(main())
