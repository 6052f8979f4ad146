"""Commands that stand in sentences, in the pages and in --help's examples: programs, subcommands, flags, make's targets and
files of the project that they name are there. (Those in code blocks run: test_blocks.py.) Exits with 77 where
requirements/docs.txt is missing."""
import os
import pathlib
import re
import shlex
import subprocess
import sys

SRC, BUILD = pathlib.Path(os.environ["DPI_SRC"]), pathlib.Path(os.environ["DPI_BUILD"])
sys.path.append(str(SRC / ".deps/docs"))
try:
    from markdown_it import MarkdownIt
except ImportError as lacking:
    print(f"skipped: {lacking} (requirements/docs.txt)")
    sys.exit(77)

COMMANDS = ("run", "bench", "devices", "inspect", "compile", "cache", "report", "top")
WHERE_AND_HOW = ("bench", "inspect", "compile")  # take the flags of run on where and how
FOLDERS = ("bench", "build", "data", "docs", "examples", "include", "man", "models", "python", "requirements", "src", "tests", "tools")
failures = []


def help_of(*words):
    return subprocess.run([os.environ["DPINFER"], *words, "--help"], capture_output=True, text=True, check=True).stdout


HELP = {command: help_of(command) for command in COMMANDS}
HELP[""] = help_of()
TARGETS = set(re.findall(r"^([\w-]+):", (SRC / "Makefile").read_text(), re.M))


def fail(place, text):
    failures.append(f"{place}: {text}")


def check_dpinfer(place, words):
    command = words[0] if words and not words[0].startswith("-") else ""
    if not re.fullmatch(r"[a-z]*", command):
        return  # COMMAND, MODEL: a word for any
    if command not in HELP:
        fail(place, f"there is no `dpinfer {command}`")
        return
    known = HELP[command] + (HELP["run"] if command in WHERE_AND_HOW else "")
    flags = set(re.findall(r"--[a-z][a-z-]*", known)) | {"--help", "--version", "--quiet", "--verbose"}
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in flags:
            fail(place, f"dpinfer {command} has no {flag}")


def check_file(place, word, yours=()):
    """A word that begins like a path of the project, or of its src/: that is there. build/NAME is a program of the build."""
    path = re.match(r"(?:\./)?((?:%s)/[\w./*-]*[\w*/])" % "|".join(FOLDERS), word)
    if path is None or "build/site" in word:
        return
    top, _, rest = path[1].rstrip("/").partition("/")
    folders = [BUILD] if top == "build" else [SRC / top, SRC / "src" / top]
    if rest and path[1] not in yours and not any(list(f.glob(rest + end)) for f in folders for end in ("", ".c")):
        fail(place, f"{path[1]} is not there")


def check_command(place, text, yours=()):
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        words = text.split()
    words = [w for w in words if w != "|"]
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # settings in front
        words = words[1:]
    if not words:
        return
    if words[0] == "make":
        for target in (w for w in words[1:] if re.fullmatch(r"[a-z-]+", w)):
            if target not in TARGETS:
                fail(place, f"there is no `make {target}`")
    elif words[0] in ("dpinfer", "build/dpinfer"):
        check_dpinfer(place, words[1:])
    for word in words:
        check_file(place, word, yours)


def inline_code(page):
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        for child in token.children or ():
            if child.type == "code_inline":
                yield f"{page.name}:{token.map[0] + 1 if token.map else 0}", child.content


checked = 0
for page in [SRC / "README.md", *sorted((SRC / "docs").glob("*.md")), SRC / "models/README.md", SRC / "data/digits/README.md"]:
    yours = re.findall(r"\S+", " ".join(re.findall(r"<!-- files that the reader makes: (.*?)-->", page.read_text(), re.S)))
    for place, text in inline_code(page):
        check_command(place, text.replace("\n", " "), yours)
        checked += 1
for command, text in HELP.items():
    for line in re.findall(r"^    (?:\w+ \| )?(dpinfer .*)", text, re.M):
        check_command(f"dpinfer {command} --help", re.split(r" {3,}", line)[0])
        checked += 1
if checked < 200:
    failures.append(f"only {checked} commands and names were found")
print(checked, "names and commands in sentences")
print(*failures, sep="\n")
sys.exit(bool(failures))
