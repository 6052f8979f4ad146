/*
 * The mailbox of strict isolation as a model for spin (tools/check_model.sh runs it): one worker, its courier, the
 * supervisor and the caller; ipc/mailbox.h, courier.c, worker_mailbox.c and worker_loop.c as they are. The words are those
 * of protocol.pml, whose worker the courier is: T2 start is its claim, T4 finish its end of a report.
 *
 *     M1 assign   M2 take   M3 report   M4 collect   M5 stop: the worker is dead, the last reports are taken, and what it
 *     had not taken is given back
 *
 * Each step is one access to what another process may change. A bell is a bit: "rung since it was last read". No wait has
 * a limit, so a lost wake-up is a state without an end. Each generation's numbers begin at 1 again.
 *
 * Checked: every slice is finished once, by a report of the generation that it was assigned to, when all its rows stand
 * in the private memory, and while nobody else may claim it; a worker takes what was assigned and nothing else; a
 * successor never writes beside its predecessor; all ends.
 *
 * N slices, SEATS, DEPTH of the engine (so many in hand), CRASHES. M_...: a wrong protocol each, which must be found.
 */
#ifndef N
#define N 3
#endif
#ifndef SEATS
#define SEATS 2
#endif
#ifndef DEPTH
#define DEPTH 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#define NUMBERS (N + 1)

#define NONE 0 /* not published */
#define CLAIMED 1
#define RUNNING 2
#define DONE 3

byte word[N], given[N];                      /* given: to which generation */
byte touched[N];                             /* which generation has begun it last */
byte private[N];                             /* whose rows stand there, 0: nobody's, or half of them */
byte out_number[SEATS], out_slice[SEATS];    /* control */
byte report[SEATS], shown;                   /* page. shown: how many assignments the worker has taken */
byte done;
bool rung_courier, rung_worker, over, quit;
bool alive, courier_alive;
byte generation, crashes = CRASHES;
byte writers;                                /* live workers: two would share the private memory */

inline ring(bell) { bell = true }

/* ---- the caller -------------------------------------------------------------------------------------------------- */

active proctype caller()
{
    byte i = 0;
    do
    :: i < N -> atomic { word[i] = CLAIMED }; ring(rung_courier); i++ /* T1 publish, T11 ring */
    :: else -> break
    od;
    done == N; /* it scans the words, which protocol.pml has */
    atomic { over = true; rung_courier = true; rung_worker = true }
}

/* ---- a worker ---------------------------------------------------------------------------------------------------- */

#define MAY_DIE crashes > 0 -> goto die

proctype worker(byte g)
{
    byte taken = 0, n = 0, in_hand = 0;
    byte number[N], rows[N]; /* number: of the assignment that is in hand, by slice; rows: how much of it is written */
    byte i;
    do
    :: true ->
        if :: MAY_DIE :: true fi;
        rung_worker = false; /* reads the bell */
        if
        :: over -> goto gone
        :: else
        fi;
        if
        :: in_hand < DEPTH && out_number[(taken + 1) % SEATS] == taken + 1 -> /* M2 take */
            atomic {
                i = out_slice[(taken + 1) % SEATS];
                assert(word[i] == RUNNING && given[i] == g);
                taken++;
                number[i] = taken;
                in_hand++
            }
#ifndef M_TAKEN_IS_SHOWN_LATE
            shown = taken
#endif
        :: !(in_hand < DEPTH && out_number[(taken + 1) % SEATS] == taken + 1) && in_hand == 0 ->
            rung_worker /* T12 sleep */
        :: in_hand > 0 -> /* in any order: one that fails at once is sooner than those before it */
            select(i : 0 .. (N - 1));
            if
            :: number[i] ->
#ifdef M_RING_BEFORE_REPORT
                ring(rung_courier);
#endif
#ifdef M_REPORT_BEFORE_ROWS
                report[number[i] % SEATS] = number[i];
#endif
                private[i] = 0;
                touched[i] = g;
                if :: MAY_DIE :: true fi;
                private[i] = g;
                if :: MAY_DIE :: true fi;
#ifdef M_TAKEN_IS_SHOWN_LATE
                shown = (number[i] > shown -> number[i] : shown);
#endif
#ifndef M_REPORT_BEFORE_ROWS
                report[number[i] % SEATS] = number[i]; /* M3 report */
#endif
                if :: MAY_DIE :: true fi;
#ifndef M_RING_BEFORE_REPORT
                ring(rung_courier); /* T11 ring */
#endif
                number[i] = 0;
                in_hand--
            :: else
            fi
        fi
    od;
die:
    crashes--;
gone:
    atomic { alive = false; writers-- }
}

/* ---- its courier ------------------------------------------------------------------------------------------------- */

inline collect()
{
    n = number + 1;
    do
    :: n <= number + SEATS ->
        if
        :: awaited[n % SEATS] && report[n % SEATS] == numbers[n % SEATS] -> /* M4 collect */
            i = slices[n % SEATS];
            assert(word[i] == RUNNING && given[i] == g && private[i] == g); /* the rows are copied: they are ours */
            atomic {
                assert(word[i] == RUNNING && given[i] == g); /* T4 finish */
                word[i] = DONE;
                done++
            }
            awaited[n % SEATS] = false;
            in_flight--;
            any = true
        :: else
        fi;
        n++
    :: else -> break
    od;
    n = 0
}

#ifdef M_SEAT_TAKEN_AGAIN
#define SEAT_FREE true
#else
#define SEAT_FREE (!awaited[(number + 1) % SEATS])
#endif

inline assign()
{
    i = 0;
    do
    :: i < N ->
        if
        :: in_flight <= DEPTH && SEAT_FREE && word[i] == CLAIMED -> /* T2 start: one to come beside what is in hand */
            atomic { word[i] = RUNNING; given[i] = g };
            number++;
            in_flight++;
            awaited[number % SEATS] = true;
            numbers[number % SEATS] = number;
            slices[number % SEATS] = i;
#ifdef M_NUMBER_FIRST
            out_number[number % SEATS] = number;
            out_slice[number % SEATS] = i;
#else
            out_slice[number % SEATS] = i;
            out_number[number % SEATS] = number; /* M1 assign */
#endif
            ring(rung_worker); /* T11 ring */
            any = true
        :: else
        fi;
        i++
    :: else -> break
    od;
    i = 0
}

proctype courier(byte g)
{
    byte number = 0, n = 0, in_flight = 0, i = 0;
    bool awaited[SEATS], any;
    byte numbers[SEATS], slices[SEATS];
    do
    :: true ->
        any = false;
#ifdef M_QUIT_READ_FIRST
        if :: quit || over -> break :: else fi;
#endif
#ifndef M_BELL_READ_LATE
        rung_courier = false; /* reads the bell */
#endif
#ifndef M_QUIT_READ_FIRST
        if :: quit || over -> break :: else fi;
#endif
        collect();
        assign();
#ifdef M_BELL_READ_LATE
        rung_courier = false;
#endif
        if
        :: any
        :: else -> rung_courier /* T12 sleep */
        fi
    od;
#ifndef M_LAST_REPORTS_ARE_LOST
    if :: quit -> collect() :: else fi; /* M5 stop */
    n = 0;
    do
    :: quit && n < SEATS ->
        if
        :: awaited[n] && numbers[n] > shown -> /* given back: nobody has begun it */
            i = slices[n];
            assert(touched[i] != g);
            atomic { assert(word[i] == RUNNING && given[i] == g); word[i] = CLAIMED }
        :: else
        fi;
        n++
    :: else -> break
    od;
#endif
    courier_alive = false
}

/* ---- the supervisor ---------------------------------------------------------------------------------------------- */

inline start()
{
#ifdef M_OLD_REPORTS
    atomic { i = 0; do :: i < SEATS -> out_number[i] = 0; i++ :: else -> i = 0; break od };
#else
    atomic { i = 0; do :: i < SEATS -> out_number[i] = 0; report[i] = 0; i++ :: else -> i = 0; break od };
#endif
    shown = 0;
    atomic {
        generation++;
        quit = false;
        courier_alive = true;
        alive = true;
        writers++;
        assert(writers == 1);
        run courier(generation);
        run worker(generation)
    }
}

active proctype supervisor()
{
    byte i = 0;
    bool reported;
    start();
    do
    :: over -> break
#ifdef M_NEXT_BEFORE_DEATH
    :: !over && (!alive || crashes > 0) ->
#else
    :: !alive && !over -> /* T19 see */
#endif
        quit = true;
        ring(rung_courier);
#ifndef M_FREE_BEFORE_STOP
        !courier_alive; /* M5 stop: joined */
#endif
        i = 0;
        do
        :: i < N -> /* T6 suspect, and its trial, which is protocol.pml's */
            atomic {
#ifdef M_LAST_REPORTS_ARE_LOST
                reported = report[0] && out_slice[0] == i && out_number[0] == report[0];
                assert(!(reported && word[i] == RUNNING)); /* what was computed is computed again */
#endif
                if :: word[i] == RUNNING -> word[i] = CLAIMED; given[i] = 0 :: else fi;
                i++
            }
        :: else -> i = 0; break
        od;
#ifdef M_FREE_BEFORE_STOP
        !courier_alive;
#endif
        start();
        ring(rung_courier)
    od
}
