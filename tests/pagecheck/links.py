"""Follows the links of Markdown files, and checks how long files and lines are. Fetches nothing."""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

from pagecheck import markdown

COLUMNS = 100
# Bytes that a file may have: README.md, and each of the other pages.
README_BYTES, PAGE_BYTES = 8_000, 14_000
SHOWN_LINES = 5

DESTINATION = r"(?:<([^<>\n]*)>|((?:[^\s()]|\([^\s()]*\))*))"
INLINE = re.compile(rf"\]\(\s*{DESTINATION}(?:\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[([^\]\n]+)\]:\s*<?([^\s>]+)>?.*$", re.MULTILINE)
REFERENCE = re.compile(r"\[([^\[\]]+)\]\[([^\[\]]*)\]")
HTML = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=\"([^\"]*)\"")
BARE = re.compile(r"https?://[^\s<>\"'`)\]]+")
# A line that is one address alone can't be broken.
LONE_URL = re.compile(r"\s*(?:[-*]\s+|\[[^\]]+\]:\s+)?<?https?://\S+>?\s*")
ADDRESS = re.compile(
    r"https?://(?:[\w-]+(?:\.[\w-]+)*|\[[0-9a-f:.]+\])(?::\d{1,5})?(?:[/?#]\S*)?"
    r"|mailto:[^@\s]+@[^@\s]+"
)


def files_of(root):
    """All files that git tracks or would take on, as paths within `root`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return sorted({name for name in listed.split("\0") if name and (Path(root) / name).exists()})


class Links:
    """The files of a repository, and what their links may lead to."""

    def __init__(self, root, files):
        self.root, self.files = Path(root), set(files)
        self.folders = {str(folder) for name in files for folder in Path(name).parents}
        self.followed = 0
        self._anchors = {}

    def failures(self, name):
        """What is wrong with a Markdown file, a line each."""
        text = (self.root / name).read_text()
        yield from too_long(name, text)
        for line, target in targets(text):
            self.followed += 1
            if problem := self.problem(name, target):
                yield f"{name}:{line}: link to {target}: {problem}"
        if name == "docs/SUMMARY.md":
            yield from self._unlisted(text)

    def problem(self, name, target):
        """What is wrong with a link in the file `name`; None if nothing is."""
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", target):
            return None if ADDRESS.fullmatch(target) else "this is not a well-formed address"
        path, _, anchor = target.partition("#")
        if path.startswith("/"):
            return "write a relative path"
        folder = os.path.dirname(name)
        to = os.path.normpath(os.path.join(folder, unquote(path))) if path else name
        if to.startswith(".."):
            return "this is outside of the repository"
        if to not in self.files and to not in self.folders:
            ignored = (self.root / to).exists()
            return "git ignores this file" if ignored else "there is no such file"
        if "#" in target and not self._has_anchor(to, unquote(anchor)):
            return f"{to} has no such heading"
        return None

    def _has_anchor(self, name, anchor):
        if name not in self._anchors:
            text = (self.root / name).read_text() if name in self.files else ""
            is_page = name.endswith(".md")
            lines = {f"L{n}" for n in range(1, text.count("\n") + 1)}
            self._anchors[name] = markdown.anchors(text) if is_page else lines
        return anchor in self._anchors[name]

    def _unlisted(self, text):
        """The site has only the pages that its summary lists."""
        listed = {os.path.normpath(f"docs/{target}") for _, target in targets(text)}
        for name in sorted(self.files - listed - {"docs/SUMMARY.md"}):
            if name.startswith("docs/") and name.endswith(".md"):
                yield f"docs/SUMMARY.md:1: {name} is not listed"


def targets(text):
    """Each link of a page: its line, and where it leads."""
    text, found, labels = markdown.prose(text), [], set()

    def take(match, target):
        found.append((text.count("\n", 0, match.start()) + 1, target))
        return markdown.blank(match)

    def define(match):
        labels.add(match[1].lower())
        return take(match, match[2])

    text = INLINE.sub(lambda match: take(match, match[1] or match[2] or ""), text)
    text = DEFINITION.sub(define, text)
    text = HTML.sub(lambda match: take(match, match[1]), text)
    for match in REFERENCE.finditer(text):
        label = match[2] or match[1]
        if label.lower() not in labels:
            take(match, f"#[{label}]")
    BARE.sub(lambda match: take(match, match[0].rstrip(".,;:!?*_")), text)
    return sorted(found)


def too_long(name, text):
    """Whether a file or its lines are too long."""
    limit = most_bytes(name)
    size = len(text.encode())
    if limit and size > limit:
        yield f"{name}:1: {size:,} bytes; at most {limit:,} are allowed"
    lines = text.splitlines()
    long = [(n, line) for n, line in enumerate(lines, 1) if len(line) > COLUMNS]
    wide = [str(n) for n, line in long if not LONE_URL.fullmatch(line)]
    if wide:
        shown = ", ".join(wide[:SHOWN_LINES]) + (", …" if wide[SHOWN_LINES:] else "")
        yield f"{name}:{wide[0]}: over {COLUMNS} columns: {len(wide)} lines ({shown})"


def most_bytes(name):
    """How many bytes a page may have; None where that is not limited."""
    if name == "README.md":
        return README_BYTES
    is_page = name.startswith("docs/") or name in ("ARCHITECTURE.md", "CONTRIBUTING.md")
    return PAGE_BYTES if is_page else None
