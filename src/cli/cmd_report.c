/* report: a page of what bench or run measured. Drawn by python/dpinfer/report.py, with matplotlib. */
#include "cli/cli.h"

#include "base/file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "dpinfer report RESULTS.json -o REPORT.html\n"
    "\n"
    "Makes one self-contained page of what `dpinfer bench --json FILE` or `dpinfer run --json FILE` wrote: scaling\n"
    "against ideal, throughput by batch size and over time, latency percentiles, where each device's time went, the\n"
    "machine, the command, and bad rows.\n"
    "\n"
    "    dpinfer bench resnet50.onnx --batch 8,16,32 --json results.json\n"
    "    dpinfer report results.json -o report.html\n"
    "\n"
    "    -o, --output FILE    the page\n"
    "\n"
    "It is drawn by Python 3.8 or newer with matplotlib (pip install matplotlib). DPINFER_PYTHON names another Python "
    "than\n"
    "the python3 that is found first, DPINFER_REPORT another script than the one that was installed.\n";

/* Where the script may be, seen from the program: in a build, installed, in a Python package. */
static const char *const places[] = {"dpinfer-report.py", "../libexec/dpinfer/report.py", "../report.py"};

static char *find_script(void)
{
    const char *named = getenv("DPINFER_REPORT");
    if (named && *named)
        return strdup(named);
    char *program = file_of_program(), *slash = program ? strrchr(program, '/') : NULL, *found = NULL;
    for (size_t i = 0; slash && !found && i < sizeof places / sizeof places[0]; i++) {
        found = text_format("%.*s/%s", (int)(slash - program), program, places[i]);
        if (found && access(found, R_OK) != 0) {
            free(found);
            found = NULL;
        }
    }
    free(program);
    return found;
}

static dpi_status parse(int argc, char **argv, const char **results, const char **output, dpi_error *error)
{
    *results = *output = NULL;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        bool is_output = strcmp(word, "-o") == 0 || strcmp(word, "--output") == 0;
        if (strncmp(word, "--output=", 9) == 0)
            *output = word + 9;
        else if (is_output && i + 1 < argc)
            *output = argv[++i];
        else if (is_output || (word[0] == '-' && word[1]))
            return error_set(error, DPI_E_ARGUMENT,
                             "report: the flag %s is unknown or lacks its value; see dpinfer report --help", word);
        else if (*results)
            return error_set(error, DPI_E_ARGUMENT, "report: \"%s\" is one word too many", word);
        else
            *results = word;
    }
    if (!*results || !*output)
        return error_set(error, DPI_E_ARGUMENT,
                         "report: which RESULTS.json, and -o which page? See dpinfer report --help");
    return DPI_OK;
}

int cmd_report(int argc, char **argv)
{
    const char *results, *output, *python = getenv("DPINFER_PYTHON");
    dpi_error error;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(help, stdout);
            return 0;
        }
    if (parse(argc, argv, &results, &output, &error))
        return cli_fail(&error);
    python = python && *python ? python : "python3";
    char *script = find_script();
    if (!script) {
        error_set(&error, DPI_E_ARGUMENT,
                  "report: its script is not beside the program; install dpinfer anew, or name "
                  "python/dpinfer/report.py in DPINFER_REPORT");
        return cli_fail(&error);
    }
    char *words[] = {(char *)(uintptr_t)python,
                     script,
                     (char *)(uintptr_t) "-o",
                     (char *)(uintptr_t)output,
                     (char *)(uintptr_t) "--",
                     (char *)(uintptr_t)results,
                     NULL};
    execvp(python, words);
    error_set_errno(&error, DPI_E_ARGUMENT, errno, "report: cannot start %s (DPINFER_PYTHON names another Python)",
                    python);
    free(script);
    return cli_fail(&error);
}
