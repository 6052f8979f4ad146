"""The directive `man-page FILE`: what a page of man/ says, which tools/make_man.py took from the program's --help."""
import pathlib
import re
from typing import List

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ESCAPES = {"\\-": "-", "\\e": "\\", "\\(aq": "'", "\\&": ""}


def plain(page: str) -> str:
    """The synopsis and description of a page that tools/make_man.py wrote, without troff's marks."""
    synopsis, description = re.findall(r"^\.nf\n(.*?)^\.fi$", page, re.S | re.M)
    text = synopsis + "\n" + description.lstrip("\n")
    return re.sub(r"\\-|\\e|\\\(aq|\\&", lambda found: ESCAPES[found[0]], text).strip()


class ManPage(SphinxDirective):
    required_arguments = 1

    def run(self) -> List[nodes.Node]:
        path = pathlib.Path(self.env.srcdir, self.arguments[0]).resolve()
        self.env.note_dependency(str(path))
        text = plain(path.read_text())
        return [nodes.literal_block(text, text, language="text")]


def setup(app):
    app.add_directive("man-page", ManPage)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
