"""The directive `c-header FILE`: a C header's declarations with its own comments, section by section, in the C domain.

clang reads the header, so a comment belongs to what it belongs to for clang: the one before a declaration, or the one
behind a field. A function, type or macro without one is a warning. In comments, `word` is code, *word* stressed, a blank line
begins a paragraph, "- " a point of a list, a line over dashes is a title; names of the header become links.
"""
import pathlib
import re
from typing import Dict, List, NamedTuple, Optional

import clang.cindex as clang
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

log = logging.getLogger(__name__)
KIND = clang.CursorKind
SECTION = re.compile(r"/\* -{4} (.+?) -{4,} \*/")
BLAME = {"u": " (the user's mistake: exit code 2)", "r": " (a failure at run time: exit code 1)", "b": " (exit code 3)", "-": ""}
# What the compiler's and the system's headers would say, so that neither has to be installed.
SYSTEM = {
    "stdbool.h": "#define bool _Bool\n",
    "stddef.h": "typedef unsigned long size_t;\n",
    "stdint.h": "".join(f"typedef {t} int{n}_t; typedef unsigned {t} uint{n}_t;\n"
                        for t, n in (("char", 8), ("short", 16), ("int", 32), ("long", 64))),
}  # fmt: skip


class Entry(NamedTuple):
    """One declaration: where it stands, what it is in the C domain, and its comment."""

    line: int
    role: str
    name: str
    declaration: str
    comment: str
    members: List["Entry"]


class Header:
    """What clang finds in the header."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        files = [(f"/system/{name}", text) for name, text in SYSTEM.items()]
        arguments = ["-xc", "-std=c11", "-nostdinc", "-isystem", "/system", "-fparse-all-comments"]
        self.unit = clang.Index.create().parse(
            str(path), arguments, files, clang.TranslationUnit.PARSE_DETAILED_PROCESSING_RECORD
        )
        self.problems = [str(d) for d in self.unit.diagnostics]
        self.comments = {
            t.extent.end.line: t.spelling for t in self.unit.cursor.get_tokens() if t.kind == clang.TokenKind.COMMENT
        }
        self.lines = path.read_text().splitlines()
        self.sections = {n: found[1] for n, line in enumerate(self.lines, 1) if (found := SECTION.fullmatch(line))}
        self.introduction = _words(self.comments[min(self.comments)]) if self.comments else ""
        self.tables: Dict[str, List[str]] = {}  # of an X-macro: the name it makes, and what stands beside it
        self.entries = sorted(self._entries(), key=lambda entry: entry.line)

    def _here(self, cursor: clang.Cursor) -> bool:
        return cursor.location.file is not None and cursor.location.file.name == str(self.path)

    def _entries(self) -> List[Entry]:
        own = [c for c in self.unit.cursor.get_children() if self._here(c)]
        for cursor in own:
            if cursor.kind == KIND.MACRO_DEFINITION and cursor.spelling.endswith("_LIST"):
                text = " ".join(t.spelling for t in cursor.get_tokens())
                for row in re.findall(r"X \( (\w+ ,.*?) \)(?= X \(|$)", text):
                    name, *rest = row.split(" , ")
                    self.tables[name] = rest
        whole = {c.spelling for c in own if c.kind in (KIND.STRUCT_DECL, KIND.ENUM_DECL) and c.is_definition()}
        made = [self._entry(c) for c in own if not (c.kind == KIND.TYPEDEF_DECL and c.spelling in whole)]
        return [entry for entry in made if entry is not None]

    def _entry(self, cursor: clang.Cursor) -> Optional[Entry]:
        line, name = cursor.location.line, cursor.spelling
        comment = _words(cursor.raw_comment or "")
        if cursor.kind == KIND.FUNCTION_DECL:
            arguments = ", ".join(_declared(a) for a in cursor.get_arguments()) or "void"
            return Entry(line, "func", name, f"{_before(cursor.result_type.spelling)}{name}({arguments})", comment, [])
        if cursor.kind in (KIND.STRUCT_DECL, KIND.ENUM_DECL) and cursor.is_definition():
            role = "struct" if cursor.kind == KIND.STRUCT_DECL else "enum"
            return Entry(line, role, name, name, comment, [self._member(c) for c in cursor.get_children()])
        if cursor.kind == KIND.TYPEDEF_DECL:
            text = " ".join(t.spelling for t in cursor.get_tokens())
            declaration = re.sub(r"^typedef (struct )?", "", text)
            if declaration == f"{name} {name}":  # a structure that nobody sees into
                declaration = name
            return Entry(line, "type", name, re.sub(r"\( \* (\w+) \)", r"(*\1)", declaration), comment, [])
        if cursor.kind == KIND.MACRO_DEFINITION and name.startswith("DPI_") and name != "DPI_API":
            if name.endswith("_LIST") or re.search(r"_H$", name):
                return None
            above = self.comments.get(line - 1, "")
            written = self.lines[line - 1].removeprefix("#define ")  # with its arguments where a bracket follows at once
            called = re.match(r"\w+(\([\w, ]*\))?", written)[0]
            return Entry(line, "macro", name, called, _words(above), [])
        return None

    def _member(self, cursor: clang.Cursor) -> Entry:
        comment, name = _words(cursor.raw_comment or ""), cursor.spelling
        if cursor.kind == KIND.ENUM_CONSTANT_DECL:
            said = comment or _of_table(self.tables.get(name, []))
            return Entry(cursor.location.line, "enumerator", name, f"{name} = {cursor.enum_value}", said, [])
        return Entry(cursor.location.line, "member", name, _declared(cursor), comment, [])


def _of_table(row: List[str]) -> str:
    """What stands in a row of an X-macro behind the name: number, whose fault, meaning; or number, bytes, short name."""
    if len(row) != 3:
        return ""
    _, middle, text = row
    if middle.startswith("'"):
        return text.strip('"') + BLAME[middle.strip("'")]
    return f"{text}, {middle} byte{'s' if middle != '1' else ''}"


def _before(kind: str) -> str:
    return kind if kind.endswith("*") else kind + " "


def _declared(cursor: clang.Cursor) -> str:
    kind, brackets = re.fullmatch(r"([^\[]*)((?:\[\d*\])*)", cursor.type.spelling.replace("_Bool", "bool")).groups()
    return f"{_before(kind.rstrip())}{cursor.spelling}{brackets}"


def _words(comment: str) -> str:
    """A comment's text without its stars; empty for a section's line."""
    if SECTION.fullmatch(comment):
        return ""
    inside = re.sub(r"^/\*+|\*+/$", "", comment.strip())
    lines = [re.sub(r"^\s*\*( |$)", "", line).rstrip() for line in inside.splitlines()]
    return "\n".join(line if line.startswith("- ") else line.strip() for line in lines).strip()


class Text:
    """Comments as reStructuredText, with the header's names as links."""

    def __init__(self, entries: List[Entry]) -> None:
        self.roles = {entry.name: entry.role for entry in entries}
        self.roles.update({m.name: "enumerator" for e in entries if e.role == "enum" for m in e.members})
        self.members = {f"{e.name}.{m.name}" for e in entries if e.role == "struct" for m in e.members}
        self.own = ""  # the entry being described: it is no link to itself

    def inline(self, text: str) -> str:
        parts = re.split(r"`([^`]*)`", text)
        return "".join(self._plain(p) if i % 2 == 0 else f"\\ ``{p}``\\ " for i, p in enumerate(parts))

    def _plain(self, text: str) -> str:
        def linked(found: "re.Match[str]") -> str:
            word = found[0]
            if word in self.members:
                return f"\\ :c:member:`{word}`\\ "
            role = self.roles.get(word)
            return f"\\ :c:{role}:`{word}`\\ " if role and word != self.own else _escaped(word)

        out, at = "", 0
        for found in re.finditer(r"\b(?:dpi|DPI)_\w+(?:\.\w+)?|\*\w+\*", text):
            said = found[0] if found[0].startswith("*") else linked(found)
            out += _escaped(text[at : found.start()]) + said
            at = found.end()
        return out + _escaped(text[at:])

    def paragraphs(self, text: str, indent: str) -> List[str]:
        out: List[str] = []
        for block in re.split(r"\n\s*\n", text) if text else []:
            lines = block.splitlines()
            if len(lines) > 1 and re.fullmatch(r"-{4,}", lines[1]):
                out += [f"{indent}.. rubric:: {lines[0]}", ""]
                lines = lines[2:]
            points = re.split(r"\n(?=- )", "\n".join(lines)) if lines else []
            for point in points:
                dash = "- " if point.startswith("- ") else ""
                words = " ".join(point[len(dash) :].split())
                out += [f"{indent}{dash}{self.inline(words)}", ""]
        return out


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_|<>:])", r"\\\1", text)


class CHeader(SphinxDirective):
    """`.. c-header:: FILE`, relative to the documents."""

    required_arguments = 1
    option_spec = {}

    def run(self) -> List[nodes.Node]:
        path = pathlib.Path(self.env.srcdir, self.arguments[0]).resolve()
        self.env.note_dependency(str(path))
        header = Header(path)
        for problem in header.problems:
            log.warning("%s", problem, location=self.get_location())
        text = Text(header.entries)
        lines = text.paragraphs(header.introduction, "")
        sections = dict(header.sections)
        for entry in header.entries:
            for line in [n for n in sorted(sections) if n < entry.line]:
                title = sections.pop(line)
                title = title[0].upper() + title[1:]
                lines += [title, "-" * len(title), ""]
            if not entry.comment:
                log.warning("%s:%d: %s has no comment", path, entry.line, entry.name)
            lines += self._described(entry, text, "")
        parent = nodes.section()
        parent.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, str(path)), parent)
        return parent.children

    def _described(self, entry: Entry, text: Text, indent: str) -> List[str]:
        directive = {"func": "function"}.get(entry.role, entry.role)
        text.own = entry.name
        lines = [f"{indent}.. c:{directive}:: {entry.declaration}", ""]
        lines += text.paragraphs(entry.comment, indent + "   ")
        for member in entry.members:
            lines += self._described(member, text, indent + "   ")
        return lines


def setup(app):
    app.add_directive("c-header", CHeader)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
