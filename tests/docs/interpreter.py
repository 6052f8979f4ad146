"""A page's Python, block by block in one interpreter, as a reader would type it. Reads one JSON object a line from standard
input; answers each with a line that begins with its mark and says whether the block ended well."""
import json
import linecache
import os
import sys
import traceback


def main() -> None:
    commands, sys.stdin = sys.stdin, open("/dev/null")
    sys.path[0] = os.getcwd()  # as for a program that stands there
    scope = sys.modules["__main__"].__dict__
    for line in commands:
        told = json.loads(line)
        name, code = told["name"], "\n" * told["line"] + told["code"]
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        good = True
        try:
            exec(compile(code, name, "exec"), scope)
        except BaseException:
            traceback.print_exc()
            good = False
        sys.stdout.flush()
        sys.stderr.flush()
        print(f"{told['mark']} {'good' if good else 'bad'}", flush=True)


if __name__ == "__main__":  # loader processes import it under another name
    main()
