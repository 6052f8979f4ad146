/* dpi_device_add and dpi_device_remove: which workers are meant; the supervisor does the rest (supervisor_change.c). */
#include "base/clock.h"
#include "runtime/session.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- taking turns ----------------------------------------------------------------------------------------------- */

/* Under the lock. */
static void wait_for_change(dpi_session *s, int64_t until_ns)
{
    struct timespec when = {.tv_sec = (time_t)(until_ns / 1000000000), .tv_nsec = (long)(until_ns % 1000000000)};
    if (until_ns == CLOCK_NEVER)
        pthread_cond_wait(&s->changed, &s->lock);
    else
        pthread_cond_timedwait(&s->changed, &s->lock, &when);
}

static dpi_status take_turn(dpi_session *s, int64_t deadline_ns, dpi_error *error)
{
    while (s->change.taken && !atomic_load(&s->failed)) {
        if (clock_now_ns() >= deadline_ns)
            return error_set(error, DPI_TIMEOUT, "another change of the session's devices took all the time");
        wait_for_change(s, deadline_ns);
    }
    if (atomic_load(&s->failed))
        return error_set(error, s->failure.status, "%s", s->failure.message);
    s->change.taken = true;
    return DPI_OK;
}

static void end_turn(dpi_session *s)
{
    s->change.taken = s->change.asked = s->change.given_up = false;
    pthread_cond_broadcast(&s->changed);
}

/* Has the supervisor make the change, and waits until it has. One that adds is given up at the deadline. */
static dpi_status make_change(dpi_session *s, bool adds, int64_t deadline_ns, dpi_error *error)
{
    session_change *c = &s->change;
    c->adds = adds;
    c->done = false;
    c->asked = true;
    supervisor_wake(s);
    while (!c->done && !atomic_load(&s->failed)) {
        if (adds && !c->given_up && clock_now_ns() >= deadline_ns) {
            c->given_up = true;
            supervisor_wake(s);
        }
        wait_for_change(s, adds && !c->given_up ? deadline_ns : CLOCK_NEVER);
    }
    const dpi_error *how = c->done ? &c->error : &s->failure;
    return how->status ? error_set(error, how->status, "%s", how->message) : DPI_OK;
}

/* ---- which workers ---------------------------------------------------------------------------------------------- */

static bool is_chosen(const session_change *c, size_t w)
{
    for (size_t i = 0; i < c->count; i++)
        if (c->workers[i] == w)
            return true;
    return false;
}

/* The last worker of this name whose device is in that state. */
static size_t find_worker(const dpi_session *s, const char *name, enum device_state state)
{
    for (size_t w = s->count; w-- > 0;)
        if (s->workers[w].device == state && strcmp(s->devices.items[w].name, name) == 0 && !is_chosen(&s->change, w))
            return w;
    return SESSION_NOBODY;
}

static dpi_status parse(const dpi_session *s, const char *text, device_list *list, dpi_error *error)
{
    topology machine;
    dpi_status status = topology_read(&machine, error);
    if (status)
        return status;
    status = device_list_parse(text, &machine, s->backend->device_kinds, list, error);
    topology_free(&machine);
    return status;
}

static dpi_status check_list(const dpi_session *s, const device_list *list, dpi_error *error)
{
    if (list->how[0])
        return error_set(error, DPI_E_ARGUMENT, "auto is for the opening of a session; name the devices to be added");
    for (size_t i = 0; i < list->count; i++)
        if (!backend_lists(s->backend->device_kinds, list->items[i].kind))
            return error_set(error, DPI_E_DEVICE, "the backend %s does not run on %s; it runs on: %s", s->backend->name,
                             list->items[i].name, s->backend->device_kinds);
    return DPI_OK;
}

/* ---- adding ----------------------------------------------------------------------------------------------------- */

/* A seat behind the others for a new device, which is moved there. Under the lock. */
static dpi_status place_new(dpi_session *s, size_t w, device *d, dpi_error *error)
{
    if (w >= LAYOUT_WORKERS)
        return error_set(error, DPI_E_DEVICE, "a session has at most %d devices, removed ones included; %s is too many",
                         LAYOUT_WORKERS, d->name);
    if (s->shares && !s->total_rows)
        return error_set(error, DPI_E_DEVICE,
                         "the session has a fixed split that names a share for each device, and none for %s; open it "
                         "anew",
                         d->name);
    if (w < s->devices.count) { /* of one that could not be added */
        free(s->devices.items[w].cpus);
        setup_free(&s->setups[w]);
    } else
        s->devices.count = w + 1;
    s->devices.items[w] = *d;
    d->cpus = NULL;
    dpi_status status = session_fill_setup(s, w, error);
    s->setups[w].batch_auto = false; /* the session's slices have their size */
    return status;
}

static dpi_status place_all(dpi_session *s, device_list *list, dpi_error *error)
{
    session_change *c = &s->change;
    size_t next = s->count;
    dpi_status status = DPI_OK;
    c->count = 0;
    for (size_t i = 0; i < list->count && !status; i++) {
        size_t w = find_worker(s, list->items[i].name, DEVICE_GIVEN_UP);
        if (w == SESSION_NOBODY)
            w = find_worker(s, list->items[i].name, DEVICE_REMOVED);
        if (w == SESSION_NOBODY)
            status = place_new(s, w = next++, &list->items[i], error);
        if (!status)
            c->workers[c->count++] = w;
    }
    return status;
}

dpi_status session_device_add(dpi_session *s, const char *devices, int64_t deadline_ns, dpi_error *error)
{
    device_list list = {0};
    dpi_status status = session_files_unchanged(s, error);
    if (!status)
        status = parse(s, devices, &list, error);
    if (status)
        return status;
    status = check_list(s, &list, error);
    pthread_mutex_lock(&s->lock);
    if (!status)
        status = take_turn(s, deadline_ns, error);
    if (!status) {
        status = place_all(s, &list, error);
        if (!status)
            status = make_change(s, true, deadline_ns, error);
        bool used[LAYOUT_WORKERS];
        for (size_t w = 0; w < LAYOUT_WORKERS; w++)
            used[w] = w < s->count && s->workers[w].device != DEVICE_REMOVED;
        core_locks_take(&s->locks, &s->devices, used, &s->log);
        end_turn(s);
    }
    pthread_mutex_unlock(&s->lock);
    device_list_free(&list);
    return status;
}

/* ---- removing --------------------------------------------------------------------------------------------------- */

/* One that is in use before one that is leaving already (to wait for it), and that before one that was given up. */
static dpi_status choose(dpi_session *s, const char *name, dpi_error *error)
{
    static const enum device_state order[] = {DEVICE_IN_USE, DEVICE_LEAVING, DEVICE_GIVEN_UP};
    size_t w = SESSION_NOBODY;
    for (size_t i = 0; i < sizeof order / sizeof order[0] && w == SESSION_NOBODY; i++)
        w = find_worker(s, name, order[i]);
    if (w == SESSION_NOBODY)
        return error_set(error, DPI_E_DEVICE, "%.200s is no device of this session", name);
    s->change.workers[s->change.count++] = w;
    return DPI_OK;
}

static dpi_status choose_all(dpi_session *s, const device_list *list, dpi_error *error)
{
    dpi_status status = DPI_OK;
    s->change.count = 0;
    for (size_t i = 0; i < list->count && !status; i++)
        status = choose(s, list->items[i].name, error);
    return status;
}

/* Under the lock. */
static dpi_status wait_until_gone(dpi_session *s, const size_t *workers, size_t count, int64_t deadline_ns,
                                  dpi_error *error)
{
    for (size_t i = 0; i < count; i++)
        while (s->workers[workers[i]].device == DEVICE_LEAVING) {
            if (atomic_load(&s->failed))
                return error_set(error, s->failure.status, "%s", s->failure.message);
            if (clock_now_ns() >= deadline_ns)
                return error_set(error, DPI_TIMEOUT, "%s is not done with what it has begun; it gets nothing new",
                                 s->devices.items[workers[i]].name);
            wait_for_change(s, deadline_ns);
        }
    return DPI_OK;
}

/* A device that has vanished from the machine (a core that went offline) is no device to the parser any more, but may
 * be removed all the same: by its name. */
static dpi_status parse_or_quote(const dpi_session *s, const char *text, device_list *list, dpi_error *error)
{
    dpi_status status = parse(s, text, list, error);
    bool known = false;
    for (size_t w = 0; w < s->count; w++)
        known |= strcmp(s->devices.items[w].name, text) == 0;
    if (!status || !known)
        return status;
    device *one = calloc(1, sizeof *one);
    if (!one)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    strcpy(one->name, text);
    *list = (device_list){.items = one, .count = 1};
    return DPI_OK;
}

dpi_status session_device_remove(dpi_session *s, const char *devices, int64_t deadline_ns, dpi_error *error)
{
    device_list list = {0};
    size_t workers[LAYOUT_WORKERS], count = 0;
    dpi_status status = parse_or_quote(s, devices, &list, error);
    if (status)
        return status;
    pthread_mutex_lock(&s->lock);
    status = take_turn(s, deadline_ns, error);
    if (!status) {
        status = choose_all(s, &list, error);
        if (!status)
            status = make_change(s, false, deadline_ns, error);
        count = s->change.count;
        memcpy(workers, s->change.workers, count * sizeof *workers);
        end_turn(s);
    }
    if (!status)
        status = wait_until_gone(s, workers, count, deadline_ns, error);
    pthread_mutex_unlock(&s->lock);
    device_list_free(&list);
    return status;
}
