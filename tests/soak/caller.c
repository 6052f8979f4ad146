/*
 * Somebody who uses dpinfer and is killed for it: test_caller_kills.py runs this.
 *
 *     caller batches|open
 *         batches   opens a session of three sim devices and computes batch after batch, for ever
 *         open      opens and closes sessions whose workers take a while to compile, for ever
 */
#include "api/sim_kit.h"

#include <stdio.h>

#define TEXT "input x float32 N 5\noutput y float32 N 3\noutput z int32 N\nfixed_us 500\ndepth 2\n"

static void batches(void)
{
    kit *k = kit_open(TEXT, "sim:0*3", NULL);
    kit_batch *b = kit_batch_new(k, 100, 1, 3);
    for (uint64_t i = 0;; i++) {
        dpi_error error = {0};
        dpi_ticket ticket;
        kit_assert_ok(kit_submit(k, b, true, 0, &ticket, &error), error);
        kit_forward(k, 60, i);
        kit_assert_ok(dpi_wait(k->s, ticket, 0, NULL, 0, &error), error);
        kit_assert_ok(dpi_release(k->s, ticket, &error), error);
    }
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "batches") == 0)
        batches();
    while (argc == 2 && strcmp(argv[1], "open") == 0)
        kit_close(kit_open(TEXT "compile_ms 50\n", "sim:0*3", NULL));
    fprintf(stderr, "usage: caller batches|open\n");
    return 2;
}
