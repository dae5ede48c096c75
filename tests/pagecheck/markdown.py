"""Reads Markdown as far as the tests need it: fenced blocks, the text around them, anchors."""

import re
from dataclasses import dataclass, field

from pagecheck import Failure

FENCE = re.compile(r"([\s>]*)(`{3,}(?!.*`)|~{3,})(.*)")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# A code span opens and closes with equally many backticks, within one paragraph.
CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*$", re.MULTILINE)
# The words of an info string that have a meaning, and languages that look as if they were run.
COMMAND_WORDS, OTHER_WORDS = {"background", "skip", "stop"}, {"output"}
LIKE_SH = {"bash", "console", "shell", "terminal", "zsh"}


@dataclass
class Block:
    """A fenced block: the line of its fence, and the words behind its language with their values.

    A command block has the language sh.
    """

    line: int
    language: str
    words: dict = field(default_factory=dict)
    text: str = ""

    @property
    def is_command(self):
        return self.language == "sh"


def _classified(text):
    """Each line's number, text, kind (text, open, code, close), and the match of its open fence."""
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if fence is None:
            fence = match
            yield number, line, "open" if match else "text", match
        elif match and match[2].startswith(fence[2]) and not match[3].strip():
            yield number, line, "close", fence
            fence = None
        else:
            yield number, line, "code", fence


def blocks(text):
    """The fenced blocks of a page, in its order."""
    found, kind = [], "text"
    for number, line, kind, fence in _classified(text):
        if kind == "open":
            found.append(_open_block(number, fence[3].split()))
        elif kind == "code":
            # Indentation and quotation marks are taken away as far as the fence has them, too.
            own = len(line) - len(line.lstrip(" \t>"))
            found[-1].text += line[min(len(fence[1]), own) :] + "\n"
    if kind in ("open", "code"):
        raise Failure("this block is never closed", found[-1].line)
    return found


def _open_block(line, info):
    language, *words = info or [""]
    block = Block(line, language)
    if language in LIKE_SH:
        raise Failure(f"a {language} block is not run: write sh", line)
    for word in words:
        name, _, value = word.partition("=")
        if name not in (COMMAND_WORDS if block.is_command else OTHER_WORDS):
            raise Failure(f"{word!r} means nothing on a block of {language}", line)
        if not value and name != "output":
            raise Failure(f"{name}= lacks its value", line)
        block.words[name] = value
    return block


def outside_blocks(text):
    """The page with its fenced blocks emptied; lines keep their numbers."""
    return "\n".join(line if kind == "text" else "" for _, line, kind, _ in _classified(text))


def prose(text):
    """The page without fenced blocks, comments and code spans; lines keep their numbers."""
    text = outside_blocks(text)
    for pattern in (COMMENT, CODE_SPAN):
        text = pattern.sub(blank, text)
    return text


def blank(match):
    """Spaces in place of what was matched."""
    return re.sub(r"[^\n]", " ", match[0])


def anchors(text):
    """The anchors of a page, by GitHub's rule; headings are those with number signs."""
    text = COMMENT.sub("", outside_blocks(text))
    found, seen = set(re.findall(r'<[^>]*\b(?:id|name)="([^"]+)"', text)), {}
    for name in map(anchor, HEADING.findall(text)):
        found.add(f"{name}-{seen[name]}" if name in seen else name)
        seen[name] = seen.get(name, 0) + 1
    return found


def anchor(heading):
    """A heading's anchor: its text in lower case, hyphens for spaces, no other punctuation."""
    parts = re.split(r"(`[^`]*`)", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading))
    # Outside of code, underscores around words are emphasis.
    parts[::2] = [re.sub(r"(?<!\w)(__?)(\S.*?)\1(?!\w)", r"\2", part) for part in parts[::2]]
    return re.sub(r"[^\w\- ]", "", "".join(parts).lower()).replace(" ", "-")
