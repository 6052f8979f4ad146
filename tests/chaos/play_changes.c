/* Devices that come and go by plan, and what the session tells of them meanwhile. */
#include "play.h"

#include "base/clock.h"

#include <stdio.h>
#include <string.h>

#define NAMES_SIZE 512 /* of a list of devices */

/* ---- what is told ----------------------------------------------------------------------------------------------- */

void seats_open(play *y)
{
    pthread_mutex_init(&y->seats.lock, NULL);
    for (unsigned w = 0; w < y->p->workers; w++) {
        y->seats.state[w] = SEAT_TAKEN;
        plan_device(y->p, w, y->seats.name[w], SEAT_NAME);
    }
}

/* Under the lock. */
static void take_event(seats *t, const char *what, unsigned w, const char *name)
{
    enum seat_state now = t->state[w];
    if (strcmp(what, "added") == 0) {
        if (now == SEAT_TAKEN)
            plan_fail("worker %u was added twice", w);
        t->state[w] = SEAT_TAKEN;
        t->added++;
        snprintf(t->name[w], SEAT_NAME, "%s", name);
    } else if (strcmp(what, "removed") == 0) {
        if (now != SEAT_TAKEN && now != SEAT_GIVEN_UP)
            plan_fail("worker %u was removed twice", w);
        t->state[w] = SEAT_LEFT;
    } else if (strcmp(what, "retired") == 0) {
        if (now != SEAT_TAKEN)
            plan_fail("worker %u was given up although it is not there", w);
        t->state[w] = SEAT_GIVEN_UP;
        t->given_up++;
    } else if (strcmp(what, "started") == 0 && now != SEAT_TAKEN && !t->adding) {
        plan_fail("worker %u was started although its device is not there", w);
    } else if (strcmp(what, "died") == 0) {
        t->deaths++;
        snprintf(t->troubled, SEAT_NAME, "%s", name);
    }
}

void seats_hear_event(play *y, const char *json)
{
    char what[16], name[SEAT_NAME];
    unsigned w;
    if (sscanf(json, "{\"event\":\"%15[a-z_]\",\"worker\":%u,\"device\":\"%15[^\"]\"", what, &w, name) != 3)
        return;
    if (w >= PLAN_SEATS)
        plan_fail("a plan cannot have worker %u", w);
    pthread_mutex_lock(&y->seats.lock);
    take_event(&y->seats, what, w, name);
    pthread_mutex_unlock(&y->seats.lock);
}

void seats_hear_trouble(play *y, const char *line)
{
    char name[SEAT_NAME];
    if (sscanf(line, "%15[^ ] says: ", name) != 1)
        return;
    pthread_mutex_lock(&y->seats.lock);
    y->seats.troubles++;
    strcpy(y->seats.troubled, name);
    pthread_mutex_unlock(&y->seats.lock);
}

static seats look(play *y)
{
    pthread_mutex_lock(&y->seats.lock);
    seats now = y->seats;
    pthread_mutex_unlock(&y->seats.lock);
    return now;
}

static unsigned count_seats(const seats *t, enum seat_state state, const char *name)
{
    unsigned count = 0;
    for (unsigned w = 0; w < PLAN_SEATS; w++)
        count += t->state[w] == state && (!name || strcmp(t->name[w], name) == 0);
    return count;
}

/* In use or given up. */
static unsigned count_there(const seats *t, const char *name)
{
    return count_seats(t, SEAT_TAKEN, name) + count_seats(t, SEAT_GIVEN_UP, name);
}

bool seats_all_given_up(play *y, unsigned more_deaths)
{
    seats now = look(y);
    return count_seats(&now, SEAT_TAKEN, NULL) <= now.leaving && plan_may_give_up(y->p, now.given_up, more_deaths);
}

/* ---- one change ------------------------------------------------------------------------------------------------- */

typedef struct names {
    char list[NAMES_SIZE], each[PLAN_SEATS][SEAT_NAME];
    unsigned count;
} names;

static void name_one(names *n, const char *name)
{
    size_t used = strlen(n->list);
    snprintf(n->list + used, NAMES_SIZE - used, "%s%s", used ? "," : "", name);
    snprintf(n->each[n->count++], SEAT_NAME, "%s", name);
}

static names choose(play *y, const change *c, const seats *now)
{
    names n = {.count = 0};
    for (unsigned w = 0; w < PLAN_SEATS && c->whom == WHOM_ALL; w++)
        if (now->state[w] == SEAT_TAKEN)
            name_one(&n, now->name[w]);
    if (c->whom == WHOM_TROUBLED && now->troubled[0])
        name_one(&n, now->troubled);
    for (unsigned i = 0; i < c->count && !n.list[0]; i++) {
        char name[SEAT_NAME];
        plan_device(y->p, c->first + i, name, sizeof name);
        name_one(&n, name);
    }
    return n;
}

static unsigned times_named(const names *n, const char *name)
{
    unsigned count = 0;
    for (unsigned i = 0; i < n->count; i++)
        count += strcmp(n->each[i], name) == 0;
    return count;
}

static void judge_add(play *y, const change *c, const names *n, const seats *before, dpi_status status,
                      const dpi_error *error)
{
    seats after = look(y);
    unsigned added = after.added - before->added;
    if (added != (status ? 0 : n->count))
        plan_fail("%u devices were added, not %s: %s", added, n->list, dpi_status_name(status));
    y->r->added += added;
    y->r->too_late += status == DPI_TIMEOUT;
    if (!status || (status == DPI_TIMEOUT && c->timeout_ms))
        return;
    y->r->not_added++;
    if ((status != DPI_E_WORKER && status != DPI_E_MODEL) ||
        !(plan_may_not_add(y->p) || slow_hangs(y) || session_may_end(y, error)))
        plan_fail("dpi_device_add(%s): %s: %s", n->list, dpi_status_name(status), error->message);
}

/* Devices that have been asked to leave and were not waited for may be there or not. */
static void judge_removed(const names *n, const seats *before, const seats *after)
{
    for (unsigned i = 0; i < n->count; i++) {
        unsigned named = times_named(n, n->each[i]), there = count_there(after, n->each[i]);
        if (there + named > count_there(before, n->each[i]) + before->leaving)
            plan_fail("%s was removed and is there: %u now, %u before", n->each[i], there,
                      count_there(before, n->each[i]));
    }
}

static bool is_no_device(const names *n, const seats *before)
{
    for (unsigned i = 0; i < n->count; i++)
        if (count_there(before, n->each[i]) < times_named(n, n->each[i]) + before->leaving)
            return true;
    return false;
}

static bool is_refused(play *y, const names *n, const seats *before, const seats *after, const dpi_error *error)
{
    if (strstr(error->message, "no device left"))
        return count_seats(after, SEAT_TAKEN, NULL) <= n->count + before->leaving;
    return strstr(error->message, "is no device of this session") && is_no_device(n, before) && !y->ended;
}

static void judge_remove(play *y, const change *c, const names *n, const seats *before, dpi_status status,
                         const dpi_error *error)
{
    seats after = look(y);
    if (!status) {
        y->r->removed += n->count;
        judge_removed(n, before, &after);
    } else if (status == DPI_TIMEOUT && c->timeout_ms) {
        y->r->too_late++;
    } else if (status == DPI_E_DEVICE && is_refused(y, n, before, &after, error)) {
        y->r->refused++;
    } else if (!session_may_end(y, error)) {
        plan_fail("dpi_device_remove(%s): %s: %s", n->list, dpi_status_name(status), error->message);
    }
}

/* What others may find while the call is under way; those of a removal that was not waited for stay. */
static void set_under_way(play *y, bool adds, unsigned leaving)
{
    pthread_mutex_lock(&y->seats.lock);
    y->seats.adding = adds;
    y->seats.leaving = leaving;
    pthread_mutex_unlock(&y->seats.lock);
}

static void make_change(play *y, const change *c)
{
    dpi_error error = {0};
    seats before = look(y);
    names n = choose(y, c, &before);
    fprintf(stderr, "        %s %s, %d ms\n", c->adds ? "add" : "remove", n.list, c->timeout_ms);
    dpi_status status;
    set_under_way(y, c->adds, before.leaving + (c->adds ? 0 : n.count));
    if (c->adds) {
        status = dpi_device_add(y->s, n.list, c->timeout_ms, &error);
        judge_add(y, c, &n, &before, status, &error);
    } else {
        status = dpi_device_remove(y->s, n.list, c->timeout_ms, &error);
        judge_remove(y, c, &n, &before, status, &error);
    }
    set_under_way(y, false, before.leaving + (!c->adds && status == DPI_TIMEOUT ? n.count : 0));
    fprintf(stderr, "        %s %s: %s\n", c->adds ? "add" : "remove", n.list, error.message);
}

/* ---- all of them ------------------------------------------------------------------------------------------------ */

static void wait_for_its_time(play *y, const change *c)
{
    seats before = look(y), now = before;
    int64_t until_ns = clock_now_ns() + (int64_t)c->at_us * 1000;
    while (clock_now_ns() < until_ns && (c->when != WHEN_TROUBLE || now.troubles == before.troubles) &&
           (c->when != WHEN_DIED || now.deaths == before.deaths)) {
        clock_sleep_until_ns(c->when == WHEN_TIME ? until_ns : clock_now_ns() + 200000);
        now = look(y);
    }
}

static void *change_by_plan(void *argument)
{
    play *y = argument;
    for (size_t i = 0; i < y->p->change_count && !y->ended; i++) {
        wait_for_its_time(y, &y->p->changes[i]);
        make_change(y, &y->p->changes[i]);
    }
    return NULL;
}

void changer_start(play *y)
{
    if (pthread_create(&y->changer, NULL, change_by_plan, y) != 0)
        plan_fail("cannot start a thread");
}

void changer_stop(play *y) { pthread_join(y->changer, NULL); }

void seats_look_at_slices(play *y, uint64_t *slices)
{
    dpi_error error;
    dpi_worker_stats workers[PLAN_SEATS] = {0};
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    seats now = look(y);
    stats.workers = workers;
    stats.worker_count = PLAN_SEATS;
    if (dpi_stats(y->s, &stats, &error))
        plan_fail("%s", error.message);
    for (size_t w = 0; w < PLAN_SEATS; w++)
        slices[w] = now.state[w] == SEAT_LEFT ? workers[w].slices : UINT64_MAX;
}
