/* Any words as a command line: parsed or refused with a sentence. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#define MAX_WORDS 32

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1), *argv[MAX_WORDS + 2] = {(char *)(uintptr_t) "run"};
    int argc = 1;
    if (!text)
        return 0;
    memcpy(text, data, size);
    text[size] = 0;
    for (char *word = strtok(text, "\n"); word && argc < MAX_WORDS; word = strtok(NULL, "\n")) {
        if (strncmp(word, "--h", 3) == 0 || (word[0] == '-' && word[1] != '-' && strchr(word, 'h')))
            continue; /* --help exits */
        argv[argc++] = word;
    }
    static const unsigned kinds[] = {CLI_MODEL | CLI_RUN, CLI_MODEL | CLI_BENCH, CLI_MODEL, 0};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        cli_options *o = calloc(1, sizeof *o);
        dpi_error error;
        error_clear(&error);
        dpi_status status = o ? cli_parse(argc, argv, kinds[i], "", o, &error) : DPI_OK;
        if (status && (!error.message[0] || error.status != status))
            abort();
        if (o)
            cli_free(o);
        free(o);
    }
    free(text);
    return 0;
}
