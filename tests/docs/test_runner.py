"""The runner of code blocks itself: what is broken fails, by its place; what is skipped is named; output is compared."""
import os
import pathlib
import sys
import tempfile

sys.path.append(str(pathlib.Path(os.environ["DPI_SRC"]) / ".deps/docs"))
if os.environ.get("DPI_SANITIZE"):
    print("skipped: the sanitizer is not in the interpreter, nor in programs built from outside")
    sys.exit(77)
try:
    from pages import fits
    from runner import run_page
except ImportError as lacking:
    print(f"skipped: {lacking} (requirements/docs.txt)")
    sys.exit(77)

failures = []
C_MAIN = "#include <dpinfer/dpinfer.h>\nint main(void)\n{\n    %s\n}\n"


def fence(language, code):
    return f"```{language}\n{code.rstrip()}\n```\n\n"


def page(text, ran=0, skipped=0, says=None):
    """Runs a page; `says`: what its one failure begins with behind the page's name, or None where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "page.md")
        path.write_text("# A page\n\n" + text)
        report = run_page(path)
    good = (report.ran, len(report.skipped), len(report.failed)) == (ran, skipped, 0 if says is None else 1)
    if says is not None:
        good = good and all(part in report.failed[0] for part in says.split("|"))
    if not good:
        failures.append(f"{text}\n  ran {report.ran}, skipped {report.skipped}, failed {report.failed}; wanted {ran}, {skipped}, {says}")
    return report


# What is good, each language, in order, in one folder and one interpreter.
page(fence("sh", "echo 1 >a; dpinfer --version") + fence("python", "x = open('a').read()") + fence("python", "assert x == '1\\n'")
     + fence("c", C_MAIN % "return dpi_version()[0] != '0';") + fence("text", "not code"), ran=4)  # fmt: skip

# What is broken fails, with its place and its own words, and what is behind it does not run.
page(fence("sh", "echo so far\nnosuchprogram --x") + fence("sh", "true"), ran=1, says="page.md:3: sh|exit code 127|nosuchprogram|so far")
page(fence("sh", "false | true"), ran=1, says="exit code 1")
page(fence("sh", "dpinfer run --no-such-flag"), ran=1, says="exit code 2|no-such-flag")
page(fence("python", "\nraise ValueError('broken')"), ran=1, says='File "page.md", line 5|ValueError: broken')
page(fence("python", "def f(:"), ran=1, says="SyntaxError")
page(fence("python", "import os\nos._exit(0)"), ran=1, says="page.md:3: python")
page(fence("python", "raise SystemExit(0)"), ran=1, says="SystemExit")
page(fence("c", C_MAIN % "return dpi_open(0, 0);"), ran=1, says="too few arguments")
page(fence("c", C_MAIN % "int unused; return 0;"), ran=1, says="unused variable")
page(fence("c", C_MAIN % "return 3;"), ran=1, says="exit code 3, and 0 is expected")

# What would not run is refused.
page("text\n\n    dpinfer run\n", says="page.md:5: indented code")
page(fence("", "dpinfer run"), says="page.md:3: a block of language ''")
page(fence("bash", "true"), says="'bash'")
page(fence("c", "int x;"), says="C without main()")
page("<!-- test: needs a lot -->\n" + fence("sh", "true"), says="page.md:3: a comment for the test that is not known: 'needs a lot'")
page("<!-- test: exit 3 -->\n\n# Another title\n", says="without a block")
page("<!-- test: output -->\n" + fence("text", "x"), says="output stands behind the block that writes it")

# What the comments say.
page("<!-- test: exit 3 -->\n" + fence("sh", "exit 3"), ran=1)
page("<!-- test: exit 3 -->\n" + fence("sh", "true"), ran=1, says="exit code 0, and 3 is expected")
page("<!-- test: before\necho 7 >seven\n-->\n" + fence("sh", "grep 7 seven"), ran=1)
page("<!-- test: before false -->\n" + fence("sh", "true"), ran=1, says="before the block failed")
page("<!-- test: file a.py -->\n" + fence("python", "print(5)") + fence("sh", "python a.py | grep 5"), ran=2)
page("<!-- test: python y = 4 -->\n" + fence("python", "assert y == 4"), ran=1)
page("<!-- test: arguments a b -->\n" + fence("c", "int main(int argc, char **argv) { return argc == 3 && argv[2][0] == 'b' ? 0 : 1; }"), ran=1)
page("<!-- test: around\nint main(void)\n{\nBLOCK\n    return dpi_status_exit_code(status);\n}\n-->\n"
     + fence("c", "#include <dpinfer/dpinfer.h>\ndpi_status status = DPI_OK;"), ran=1)  # fmt: skip
report = page("<!-- test: needs gpu -->\n" + fence("sh", "false") + "<!-- test: not run: too long -->\n" + fence("sh", "sleep 9"), skipped=2)
for text, why in zip(report.skipped, ("needs a GPU", "too long")):
    if why not in text or "page.md:" not in text:
        failures.append(f"a block that was skipped is told as {text}")

# Output: as shown, or like it.
written = fence("sh", "echo 12 rows in 0.5 s; echo no >&2")
page(written + "<!-- test: output -->\n" + fence("text", "12 rows in 0.5 s"), ran=1)
page(written + "<!-- test: output -->\n" + fence("text", "13 rows in 0.5 s"), ran=1, says="it wrote something else|12 rows")
page(written + "<!-- test: output like -->\n" + fence("text", "1,300 rows in 7 s"), ran=1)
page(written + "<!-- test: errors -->\n" + fence("text", "no"), ran=1)
page(written + "<!-- test: output like -->\n" + fence("text", "13 rows"), ran=1, says="it wrote something else")
page(fence("python", "print('a')") + "<!-- test: output -->\n" + fence("text", "b"), ran=1, says="it wrote something else|a")
for shown, got, like, wanted in (
    ("a ... c", "a b c", False, True), ("a ... c", "a b d", False, False), ("...\nend", "1\n2\nend", False, True),
    ("x   5%", "x 77%", True, True), ("x 5", "x y", True, False), ("----", "--------", True, True), ("5", "55", False, False),
    ("a b", "a\nb", False, False), ("1e-07", "3.5e-08", True, True), ("(1)", "(2)", True, True), ("a.b", "axb", False, False),
):  # fmt: skip
    if fits(shown, got, like) != wanted:
        failures.append(f"fits({shown!r}, {got!r}, {like}) is not {wanted}")

print(*failures, sep="\n")
sys.exit(bool(failures))
