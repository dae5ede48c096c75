"""Compares what a page shows with what was printed.

Ids, epochs, cursors, UUIDs, RFC 3339 times and names of replicas may be any. `…` in the page is
any text on that line, and a line with only `…` any lines. White space at the end of a line does
not count, nor do blank lines around the whole, nor a stream's heartbeats. The gateway ends JSON
without a line break, so a page may break a line where one document follows another: `}{`.
"""

import difflib
import re

ANY = "…"
# What may be any: its name in a diff, and its form.
VARIABLES = {
    "time": r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)",
    "uuid": r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b",
    "cursor": r"\bc1\.[\w-]+",
    "id": r"\b\d{15,17}-\d+\b",
    "epoch": r"\b\d{15,17}\b",
    "replica": r"\b[0-9a-f]{12}\b",
    # `…` with the beginning of a time, an id or a UUID that it cuts short.
    "any": r"(?:\b(?:\d{4}-\d\d-[\dT:.-]*|1[78]\d{2,15}-?|[0-9a-f]{8}-[0-9a-f-]*))?…",
}
VARIABLE = re.compile("|".join(f"(?P<{name}>{form})" for name, form in VARIABLES.items()))
# As many lines of a long output are shown where it is not as expected.
SHOWN_LINES = 60


def lines(text):
    """A text as lines to compare. The last one may be incomplete."""
    text = text.replace("\r\n", "\n").replace("}{", "}\n{")
    text = re.sub(r"^:\n(?:\n|\Z)", "", text, flags=re.MULTILINE)
    return [line.rstrip() for line in text.split("\n")]


def pattern(line):
    """The pattern of the page's line that a printed line has to match."""
    parts, end = [], 0
    for match in VARIABLE.finditer(line):
        form = ".*" if match.lastgroup == "any" else VARIABLES[match.lastgroup]
        parts += [re.escape(line[end : match.start()]), form]
        end = match.end()
    return re.compile("".join(parts) + re.escape(line[end:]))


def find_end(expected, printed, whole):
    """How many of the printed lines are what is expected; None if they are not.

    With `whole` these are all; otherwise they are as few as can be.
    """
    ends = {0}
    for line in expected:
        if line.strip() == ANY:
            ends = set(range(min(ends), len(printed) + 1))
        else:
            form = pattern(line)
            ends = {n + 1 for n in ends if n < len(printed) and form.fullmatch(printed[n])}
        if not ends:
            return None
    return min(ends) if not whole else len(printed) if len(printed) in ends else None


def difference(expected, printed):
    """A diff of what is expected and what was printed; names stand for what may be any."""
    shown = []
    printed = "\n".join(printed).rstrip("\n").split("\n")
    for line in printed[:SHOWN_LINES]:
        twins = (twin for twin in expected if twin.strip() != ANY and pattern(twin).fullmatch(line))
        shown.append(_named(next(twins, line)))
    if more := len(printed) - len(shown):
        shown.append(f"({more} more lines)")
    compared = difflib.ndiff([_named(line) for line in expected], shown)
    return "\n".join(line for line in ["- page", "+ printed", *compared] if line[0] != "?")


def _named(line):
    return VARIABLE.sub(lambda m: ANY if m.lastgroup == "any" else f"<{m.lastgroup}>", line)
