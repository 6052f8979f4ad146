"""Code blocks of Markdown pages, and what a test does with them.

A block's language says how it runs: `sh`, `python` and `c` do, `text`, `json` and `csv` are no code. A comment in front of
a block, invisible to readers, says what it needs:

    <!-- test: needs gpu -->            not run where that is missing (gpu, torch, cores: the first two CPUs), and counted
    <!-- test: not run: REASON -->      not run anywhere, and counted
    <!-- test: exit 3 -->               the exit code, where it is not 0
    <!-- test: file NAME -->            is saved under this name instead of run
    <!-- test: arguments a b -->        of a C program
    <!-- test: before SHELL -->         commands that run first, such as those that make the files it names; many lines
    <!-- test: python CODE -->          Python that runs first; many lines
    <!-- test: quick -->                `dpinfer bench` measures for a moment only
    <!-- test: shell FILE -->           the commands run in a shell that has read this file
    <!-- test: around C -->             a C program with the line BLOCK in it; many lines
    <!-- test: output -->               a `text` block: what the block before it wrote; `...` stands for anything
    <!-- test: output like -->          the same, and numbers may be others
    <!-- test: errors -->, errors like  what it wrote to standard error
"""
import pathlib
import re
from dataclasses import dataclass, field
from typing import List, Optional, Tuple

from markdown_it import MarkdownIt

CODE, PLAIN = ("sh", "python", "c"), ("text", "json", "csv")
NEEDS = ("gpu", "torch", "cores")


class PageError(Exception):
    """A page says something that cannot be run; the message has its place."""


@dataclass
class Block:
    """A fenced block and what the comments in front of it say."""

    page: str
    line: int
    language: str
    code: str
    needs: List[str] = field(default_factory=list)
    not_run: Optional[str] = None
    exit_code: int = 0
    file: Optional[str] = None
    arguments: List[str] = field(default_factory=list)
    before: List[str] = field(default_factory=list)
    preamble: Optional[str] = None
    shell: List[str] = field(default_factory=list)
    around: Optional[str] = None
    shows: Optional[str] = None  # "output" or "errors" of the block before
    like: bool = False  # numbers may be others

    @property
    def place(self) -> str:
        first = next((line for line in self.code.splitlines() if line.strip()), "")
        return f"{self.page}:{self.line}: {self.language}: {first.strip()[:70]}"


def _note(block: Block, text: str) -> bool:
    """Reads one comment; False where it is none that is known."""
    word, rest = re.match(r"(\S*)\s*(.*)", text, re.S).groups()
    if word == "needs" and rest in NEEDS:
        block.needs.append(rest)
    elif text.startswith("not run: ") and len(text) > len("not run: "):
        block.not_run = text[len("not run: ") :]
    elif word == "exit" and rest.isdigit():
        block.exit_code = int(rest)
    elif word == "file" and re.fullmatch(r"[\w.-]+", rest):
        block.file = rest
    elif word == "python" and rest:
        block.preamble = rest
    elif word == "shell" and re.fullmatch(r"[\w.-]+", rest):
        block.shell.append(rest)
    elif text == "quick":
        block.shell.append("tests/docs/quick.sh")
    elif word == "arguments" and rest:
        block.arguments = rest.split()
    elif word == "before" and rest:
        block.before.append(rest)
    elif word == "around" and re.search(r"^\s*BLOCK$", rest, re.M):
        block.around = rest
    elif word in ("output", "errors") and rest in ("", "like"):
        block.shows, block.like = word, rest == "like"
    else:
        return False
    return True


def _check(block: Block, before: Optional[Block]) -> None:
    if block.language not in CODE + PLAIN:
        known = ", ".join(CODE + PLAIN)
        raise PageError(f"{block.page}:{block.line}: a block of language {block.language!r}; say one of {known}")
    if block.shows and (block.language not in PLAIN or before is None or (before.language not in CODE and not before.shows)):
        raise PageError(f"{block.page}:{block.line}: output stands behind the block that writes it, as text")
    if block.language == "c" and "main(" not in (block.around or block.code) and not (block.not_run or block.file):
        raise PageError(f"{block.page}:{block.line}: C without main(): say `around`, so that it compiles")


def blocks_of(path: pathlib.Path) -> List[Block]:
    """A page's blocks in order. PageError for what would not be run: indented code, unknown languages and comments."""
    made: List[Block] = []
    notes: List[Tuple[int, str]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text()):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "code_block":
            raise PageError(f"{path.name}:{line}: indented code; fence it and name its language")
        if token.type == "html_block":
            for found in re.finditer(r"<!-- test: ?(.*?)-->", token.content, re.S):
                notes.append((line, found[1].strip()))
        elif token.type == "fence":
            block = Block(path.name, line, token.info.strip(), token.content)
            for at, text in notes:
                if not _note(block, text):
                    raise PageError(f"{path.name}:{at}: a comment for the test that is not known: {text!r}")
            _check(block, made[-1] if made else None)
            notes = []
            made.append(block)
        elif token.type == "heading_open" and notes:
            break
    if notes:
        raise PageError(f"{path.name}:{notes[0][0]}: a comment for the test without a block behind it")
    return made


def fits(shown: str, got: str, like: bool) -> bool:
    """Whether the output is what the page shows: `...` is anything; with `like`, numbers and the width of blanks may differ."""

    def pattern(line: str) -> str:
        parts = []
        for piece in re.split(r"(\.\.\.|\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?| +|-{2,})", line.strip()):
            if piece == "...":
                parts.append(".*?")
            elif like and re.match(r"\d", piece):
                parts.append(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
            elif like and piece.startswith("--"):
                parts.append("-+")
            elif piece.isspace():
                parts.append(" +")
            else:
                parts.append(re.escape(piece))
        return "".join(parts)

    lines = [line.strip() for line in got.strip().splitlines()]
    wanted = r"\n".join(pattern(line) for line in shown.strip().splitlines())
    return re.fullmatch(wanted, "\n".join(lines), re.S) is not None
