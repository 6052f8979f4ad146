"""The documents as a site: `make docs`. Warnings are errors there."""
import pathlib
import re
import sys

from docutils import nodes

here = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(here / "_extensions"), str(here.parent / "python")]

project = "dpinfer"
author = "the dpinfer authors"
copyright = "the dpinfer authors; Apache 2.0"
release = version = re.search(r"project\(dpinfer VERSION (\S+)", (here.parent / "CMakeLists.txt").read_text())[1]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "c_header", "man_pages"]
exclude_patterns = ["_extensions"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_heading_anchors = 4
nitpicky = True
nitpick_ignore = [("c:identifier", name) for name in ("size_t", "int64_t", "uint64_t", "uint32_t", "bool")]
nitpick_ignore_regex = [("py:.*", r"(?!dpinfer\b).*")]  # other packages' names: their sites would have to be asked

default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = True

smartquotes = False

html_theme = "furo"
html_title = "dpinfer"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"


def setup(app):
    """Sphinx puts two hyphens between an argument and what is said of it, and leaves it to smart quotes to mend that."""

    def mend(_, tree, __):
        for field in tree.findall(nodes.field):
            for text in list(field.findall(lambda n: isinstance(n, nodes.Text) and n == " -- ")):
                text.parent.replace(text, nodes.Text(": "))

    app.connect("doctree-resolved", mend)
