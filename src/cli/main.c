#include "cli/cli.h"

#include <string.h>

static const char usage[] =
    "dpinfer - data-parallel neural-network inference on every device of this machine\n"
    "\n"
    "    dpinfer run MODEL --input SOURCE --output SINK    a data set through a model\n"
    "    dpinfer bench MODEL                               what the hardware does: a table\n"
    "    dpinfer devices                                   what there is to run on\n"
    "    dpinfer inspect MODEL                             inputs, outputs, whether it can be split\n"
    "    dpinfer compile MODEL                             fill the engine cache\n"
    "    dpinfer cache list|clear                          look after the engine cache\n"
    "    dpinfer report RESULTS.json -o REPORT.html        a page of what bench or run measured\n"
    "    dpinfer top                                       what running sessions are doing\n"
    "\n"
    "Each takes --help, with examples. For instance:\n"
    "    dpinfer run digits.onnx --input images.npy --output classes.csv --top 3\n"
    "    dpinfer bench resnet50.onnx --batch 8,16,32\n"
    "\n"
    "Exit codes: 0 done, 1 a failure at run time, 2 a mistake in the call, 3 done but for bad rows, 130 and 143 after\n"
    "SIGINT and SIGTERM.\n";

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {{"run", cmd_run},         {"bench", cmd_bench}, {"devices", cmd_devices}, {"inspect", cmd_inspect},
                {"compile", cmd_compile}, {"cache", cmd_cache}, {"report", cmd_report},   {"top", cmd_top}};

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        fputs(usage, argc < 2 ? stderr : stdout);
        return argc < 2 ? 2 : 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("dpinfer %s\n", dpi_version());
        return 0;
    }
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "dpinfer: there is no command \"%s\"; dpinfer --help lists them\n", argv[1]);
    return 2;
}
