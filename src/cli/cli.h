/* The command line: one file per subcommand, and what they share. */
#ifndef DPI_CLI_CLI_H
#define DPI_CLI_CLI_H

#include "base/error.h"
#include "base/text.h"

#include <dpinfer/dpinfer.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>

#define CLI_MAX_LIST 64

/* What the flags say. Strings point into argv, lists are fixed: nothing to free but `broadcast` data (cli_free). */
typedef struct cli_options {
    dpi_options open;
    const char *model;
    const char *inputs[CLI_MAX_LIST], *outputs[CLI_MAX_LIST];
    size_t input_count, output_count;
    dpi_key_value backend_options[CLI_MAX_LIST], provider_options[CLI_MAX_LIST];
    dpi_tensor broadcast[CLI_MAX_LIST];
    void *broadcast_data[CLI_MAX_LIST];
    char *owned[4 * CLI_MAX_LIST]; /* pieces of KEY=VALUE */
    size_t owned_count;
    const char *output_names[CLI_MAX_LIST];
    size_t shares[256], batches[CLI_MAX_LIST];
    size_t batch_count;
    uint64_t row_begin, row_end, rows, top, repeats;
    json_t *command; /* the words of the call; CLI_RUN and CLI_BENCH */
    const char *labels, *accuracy, *events, *json_path, *modes, *positional;
    bool json, dry_run, no_overwrite, restart, no_journal, quiet, seconds_given, scaling;
    uint32_t journal_interval_ms;
    double seconds;
    dpi_preprocess preprocess;
    bool preprocess_given, on_bad_row_given;
    double mean[3], std[3];
    uint32_t loader_threads;
    uint64_t spool_max_bytes;
    char **folders[CLI_MAX_LIST]; /* of the sources of images: source_folders */
    const char *data_folders[CLI_MAX_LIST * 64];
} cli_options;

/* Which flags a subcommand takes beside those of every model command. */
typedef enum cli_flags {
    CLI_MODEL = 1, /* a MODEL and how to open it */
    CLI_RUN = 2,   /* sources and sinks */
    CLI_BENCH = 4, /* sweeps */
} cli_flags;

/* Parses argv (argv[0] is the subcommand). DPI_E_ARGUMENT for what is wrong. --help prints `help` and exits. */
dpi_status cli_parse(int argc, char **argv, unsigned flags, const char *help, cli_options *o, dpi_error *error);
void cli_free(cli_options *o);

/* Prints "dpinfer: MESSAGE" and returns the exit code for it. */
int cli_fail(const dpi_error *error);
/* Prints a JSON value (stolen) to standard output. */
void cli_print_json(json_t *json);
/* Writes a JSON value (stolen) to where --json says: a file, or standard output. */
dpi_status cli_write_json(const char *path, json_t *json, dpi_error *error);
/* "1,234,567" */
const char *cli_grouped(uint64_t number, char buffer[32]);

/* SIGINT and SIGTERM: the number of the one that came, or 0. */
void cli_catch_signals(void);
int cli_signal(void);

/* A progress bar on a terminal, plain lines elsewhere; for dpi_run. */
typedef struct cli_progress {
    const dpi_description *description;
    bool terminal, quiet;
    double next_line_s;
    const char *output;        /* for the line about an earlier run */
    bool resumed_shown, whole; /* whole: all rows have been shown as done */
    uint64_t rows_done;        /* last seen */
} cli_progress;
void cli_progress_start(cli_progress *p, const dpi_description *description, bool quiet);
int cli_progress_show(void *context, const dpi_progress *progress);

/* Share of rows whose best class is the label, read from a finished output (the only member of an archive). */
dpi_status cli_accuracy(const char *output, const char *labels, uint64_t row_begin, double *share, uint64_t *rows,
                        dpi_error *error);

/* JSON and text of a session's facts. */
json_t *cli_describe_json(const dpi_description *d);
json_t *cli_tensor_json(const dpi_tensor *t);
json_t *cli_machine_json(void);
/* The words of a command; argv[0] is the subcommand. */
json_t *cli_command_json(int argc, char **argv);
void cli_shape_text(const dpi_tensor *t, char *out, size_t size);

int cmd_run(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_devices(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_compile(int argc, char **argv);
int cmd_cache(int argc, char **argv);
int cmd_report(int argc, char **argv);
int cmd_top(int argc, char **argv);

#endif
