"""The documents as a site: it builds without a warning, without PyTorch and without anything from outside; every link and
anchor in it, and in the Markdown files outside of it, leads somewhere; what is public has a docstring. Where Chromium is,
every page is opened at phone and desktop width, light and dark: no word on the console, nothing wider than the page, what is
wider than its box scrolls there, no text of the drawing overlaps another. Exits with 77 where requirements/docs.txt is
missing."""
import html.parser
import inspect
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse

SRC, BUILD = pathlib.Path(os.environ["DPI_SRC"]), pathlib.Path(os.environ["DPI_BUILD"])
PYTHON = os.environ.get("DPI_PYTHON", sys.executable)
failures = []


def check(good, text):
    if not good:
        failures.append(text)


class Reader(html.parser.HTMLParser):
    """Ids, links and what is loaded."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.loaded, self.bare_images = set(), [], [], []
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self.ids.add(told.get("id"))
        if tag == "a" and told.get("href"):
            self.links.append(told["href"])
        elif tag in ("img", "script", "iframe", "link") and (told.get("src") or told.get("href")):
            self.loaded.append(told.get("src") or told["href"])
        if tag == "img" and not told.get("alt"):
            self.bare_images.append(told.get("src"))


def build(site):
    """The site, by an interpreter that cannot import torch."""
    blocked = site.parent / "blocked"
    (blocked / "torch").mkdir(parents=True)
    (blocked / "torch/__init__.py").write_text("raise ImportError('the site must build without torch')\n")
    done = subprocess.run([SRC / "tools/build_docs.sh", PYTHON, site], capture_output=True, text=True, timeout=400,
                          env={**os.environ, "PYTHONPATH": str(blocked)})  # fmt: skip
    check(done.returncode == 0, f"the site does not build:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def check_links(site):
    pages = {page: Reader(page) for page in site.rglob("*.html")}
    for page, reader in pages.items():
        name = page.relative_to(site)
        check(not reader.bare_images, f"{name}: no alternative text for {reader.bare_images}")
        check(not [x for x in reader.loaded if re.match(r"(https?:)?//", x)], f"{name} loads {reader.loaded}")
        for link in [*reader.links, *reader.loaded]:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else page
            check(target.is_file(), f"{name}: {link} leads nowhere")
            if parts.fragment and target in pages:
                check(parts.fragment in pages[target].ids, f"{name}: {link}: there is no such place in the page")
    return sorted(page.relative_to(site) for page in pages)


def anchors(markdown):
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", markdown, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", t.replace("`", "")).strip().lower().replace(" ", "-") for t in titles}


def check_markdown_links():
    """As they lead on a forge, where the files are read as they are."""
    for page in [SRC / "README.md", *SRC.glob("docs/*.md"), SRC / "models/README.md", SRC / "data/digits/README.md"]:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, place = link.partition("#")
            if re.match(r"https?:", link):
                continue
            target = (page.parent / path) if path else page
            check(target.exists(), f"{page.name}: {link} leads nowhere")
            if place and target.suffix == ".md" and target.exists():
                check(place in anchors(target.read_text()), f"{page.name}: {link}: there is no such heading")


def public_names():
    sys.path.insert(0, str(SRC / "python"))
    import dpinfer

    return dpinfer, [name for name in dpinfer.__all__ if name != "__version__"]


def check_reference(site):
    """Every public name of Python, and every function of the header, has its place in the reference."""
    python, c = Reader(site / "python-reference.html"), Reader(site / "c-reference.html")
    _, names = public_names()
    for name in names:
        check({f"dpinfer.{name}", f"dpinfer.errors.{name}"} & python.ids, f"dpinfer.{name} is not in the Python reference")
    functions = set(re.findall(r"^DPI_API .*?\b(dpi_\w+)\(", (SRC / "include/dpinfer/dpinfer.h").read_text(), re.M))
    check(len(functions) > 25, f"{len(functions)} functions were found in the header")
    for name in functions:
        check(f"c.{name}" in c.ids, f"{name} is not in the C reference")


def check_docstrings():
    """Everything public says what it is."""
    dpinfer, names = public_names()
    for name in names:
        thing = getattr(dpinfer, name)
        check(inspect.getdoc(thing), f"dpinfer.{name} has no docstring")
        members = inspect.getmembers(thing) if inspect.isclass(thing) else []
        for member, value in members:
            public = not member.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))
            check(not public or inspect.getdoc(value), f"dpinfer.{name}.{member} has no docstring")


PROBE = """<script>
addEventListener('load', () => {
  const bad = [], root = document.documentElement;
  if (root.scrollWidth > innerWidth) bad.push('wider than ' + innerWidth);
  const scrolls = e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
  const boxed = e => { for (; e && e !== document.body; e = e.parentElement) if (scrolls(e)) return true; return false; };
  document.querySelectorAll('article *').forEach(e => {
    const b = e.getBoundingClientRect();
    if (b.width && b.height && (b.right > innerWidth + 1 || b.left < -1) && !boxed(e) && getComputedStyle(e).position !== 'absolute')
      bad.push('cut off: ' + e.tagName + ' ' + e.textContent.slice(0, 40));
    if (e.scrollWidth > e.clientWidth + 1 && ['hidden', 'clip'].includes(getComputedStyle(e).overflowX))
      bad.push('hidden: ' + e.tagName + ' ' + e.textContent.slice(0, 40));
    if (e.tagName === 'IMG' && !e.naturalWidth) bad.push('no picture: ' + e.src);
  });
  const texts = [...document.querySelectorAll('body > svg text')], box = document.querySelector('body > svg')?.getBoundingClientRect();
  const at = texts.map(t => t.getBoundingClientRect());
  at.forEach((a, i) => {
    if (a.left < box.left || a.right > box.right || a.bottom > box.bottom) bad.push('cut off: ' + texts[i].textContent);
    at.forEach((b, k) => { if (k > i && a.left < b.right && b.left < a.right && a.top + 4 < b.bottom && b.top + 4 < a.bottom)
      bad.push('overlap: ' + texts[i].textContent + ' / ' + texts[k].textContent); });
  });
  parent.postMessage(JSON.stringify({ width: innerWidth, page: PAGE, color: getComputedStyle(document.body).backgroundColor, bad }), '*');
});
</script></head>"""

# A window is at least 500 pixels wide: frames in it are as wide as they are told. One after another, all pages of a width.
FRAMES = """<!DOCTYPE html><meta charset="utf-8"><title>-</title><body><script>
const pages = %s, told = [], frame = document.createElement('iframe');
frame.width = %d; frame.height = 900; frame.style.border = 0; document.body.append(frame);
const next = () => { if (told.length < pages.length) frame.src = pages[told.length]; else document.title = 'PROBED ' + JSON.stringify(told); };
addEventListener('message', e => { told.push(JSON.parse(e.data)); next(); });
next();
</script>"""


def look(browser, site, pages):
    probed = []
    for page in pages:
        copy = site / page.with_name("probed-" + page.name)
        text = (site / page).read_text()
        copy.write_text(text.replace("</head>", PROBE.replace("PAGE", json.dumps(str(page))), 1))
        probed.append(str(copy.relative_to(site)))
    drawing = (site / "../drawing.svg").resolve()
    (site / "probed-drawing.html").write_text(
        "<!DOCTYPE html><html><head><title>-</title>" + PROBE.replace("PAGE", '"drawing"') + "<body>" + drawing.read_text())
    probed.append("probed-drawing.html")
    colors = {}
    for width in (375, 1200, 1600):
        frame = site / "frames.html"
        frame.write_text(FRAMES % (json.dumps(probed), width))
        for scheme in (0, 1):  # dark, light
            done = subprocess.run([browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars",
                                   "--allow-file-access-from-files", f"--user-data-dir={site.parent / 'browser'}",
                                   f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1700,1000",
                                   "--virtual-time-budget=60000", "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=400)  # fmt: skip
            console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
            check(not console, f"at {width}: {console[:3]}")
            found = re.search(r"<title>PROBED (.*?)</title>", done.stdout, re.S)
            told = json.loads(html.unescape(found[1])) if found else []
            check(len(told) == len(probed), f"at {width}: {len(told)} of {len(probed)} pages answered {done.stderr[-300:]}")
            for page in told:
                check(page["width"] == width and not page["bad"], f"{page['page']} at {width}: {page['bad'][:5]}")
                colors.setdefault(page["page"], set()).add(page["color"])
    check(all(len(c) == 2 for page, c in colors.items() if page != "drawing"), f"light and dark look alike: {colors}")


with tempfile.TemporaryDirectory(prefix="dpinfer-site-", ignore_cleanup_errors=True) as folder:
    site = pathlib.Path(folder).resolve() / "site"
    if not (SRC / ".deps/docs/sphinx").is_dir():
        print("skipped: requirements/docs.txt is not installed (tools/deps.sh docs)")
        sys.exit(77)
    check_markdown_links()
    check_docstrings()
    if build(site):
        check_reference(site)
        pages = check_links(site)
        check(len(pages) > 15, f"the site has {len(pages)} pages")
        browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if browser:
            shutil.copy(SRC / "docs/row.svg", site.parent / "drawing.svg")
            look(browser, site, pages)
        print(len(pages), "pages, looked at in", browser or "no browser: there is none")

for failure in failures:
    print(failure)
sys.exit(bool(failures))
