/* The workers of protocol.pml, and how they end: worker_loop.c, worker_slice.c, worker_trial.c. */

/* ---- workers --------------------------------------------------------------------------------------------------- */

#define W_TOP 0
#define W_START 1
#define W_LOOK 2
#define W_OWN 3
#define W_TAKE_OWN 4
#define W_DEAL 5
#define W_DEALT 6
#define W_TAKE_DEALT 7
#define W_ORPHANS 8
#define W_SCAN 9
#define W_STEAL 10
#define W_TAKE_STOLEN 11
#define W_DOZE 12
#define W_SLEEP 13
#ifndef RINGS_IN_TWO
#undef W_DOZE
#define W_DOZE W_SLEEP
#endif
#define W_BLOCKED 14
#define W_RUN 15
#define W_FINISH 16
#define W_COUNT 17
#define W_RING 18
#define W_WAKE 19
#define W_SUSPECT 20
#define W_TELL 21
#define W_READ 22
#define W_RECHECK 23
#define W_BEGIN 24
#define W_TRY 25
#define W_ANSWER 26
#define W_OFF 27

/* As long as these hold, the rows of slice n are this worker's to write. */
#define MINE(n) (out_seq == L.seq && word[n].st == RUNNING && word[n].w == me && word[n].g == gen[me] && word[n].s == L.seq)
#define ON_TRIAL(n) (out_seq == L.seq && word[n].st == SUSPECT && word[n].s == L.seq && r_running && r_on == me && r_number == L.number)

#ifdef M_WORD_WITHOUT_SEQUENCE
#define OTHER_BATCH false
#define SAME (word[L.i].st == L.n_st && word[L.i].w == L.n_w && word[L.i].g == L.n_g)
#else
#define OTHER_BATCH (L.n_s != L.seq)
#define SAME (word[L.i].st == L.n_st && word[L.i].w == L.n_w && word[L.i].g == L.n_g && word[L.i].s == L.n_s)
#endif
#define TAKEABLE (!OTHER_BATCH && (L.n_st == FREE || L.n_st == CLAIMED))

inline load() { L.n_st = word[L.i].st; L.n_w = word[L.i].w; L.n_g = word[L.i].g; L.n_s = word[L.i].s }
inline forget_word() { L.n_st = 0; L.n_w = 0; L.n_g = 0; L.n_s = 0 }
inline forget_trial_read() { L.number = 0; L.first = 0; L.rows = 0; L.fill = false; L.end = 0; L.good = false }

#ifdef APART
#define STEAL L.pc = W_TAKE_STOLEN
#else
#define STEAL take(W_DOZE)
#endif
#define POISONED (POISON && L.i == 0)
#define POISON_TRIED (POISON && !L.fill && L.i == 0 && L.first == 0)

#ifdef M_COUNT_BEFORE_FINISH
#define AFTER_RUN W_COUNT
#define AFTER_COUNT W_FINISH
#define AFTER_FINISH W_RING
#else
#define AFTER_RUN W_FINISH
#define AFTER_FINISH W_COUNT
#define AFTER_COUNT W_RING
#endif

#if defined(SHARD) || defined(FIXED_SPLIT)
#define AFTER_SCAN W_DOZE
#else
#define AFTER_SCAN W_STEAL
#endif

inline count_one() /* T9 */
{
    if
    :: OF(left_s, L.seq) && left_n > 0 -> L.last = (left_n == 1); left_n--
    :: else
    fi
}

/* Nobody sees when within RUNNING rows are written; until FINISH they are this worker's. */
inline run_it()
{
#ifdef M_FLAGS_OF_BEFORE
    L.end = d_unsure;
#else
    L.end = 0;
#endif
    assert(out_seq == L.seq);
    if
    :: POISONED && POISON == 1 -> L.pc = W_RUN
    :: POISONED && POISON == 2 -> L.pc = AFTER_RUN
    :: else -> written[L.i] = ALL_ROWS; L.good = true; L.pc = AFTER_RUN
    fi
}

/* claim_move to RUNNING */
inline take(otherwise)
{
    if
#ifdef M_STORE_WITHOUT_COMPARING
    :: true -> word[L.i].st = RUNNING; word[L.i].w = me; word[L.i].g = gen[me]; run_it()
#else
    :: SAME -> put(L.i, RUNNING, me, gen[me]); run_it()
    :: else -> L.pc = otherwise
#endif
    fi;
    forget_word()
}

/* T18. What a process knew goes with it. */
inline die(v)
{
    alive[v] = false;
    l[v].pc = W_START; l[v].seq = 0; l[v].i = 0; l[v].end = 0; l[v].n_st = 0; l[v].n_w = 0; l[v].n_g = 0; l[v].n_s = 0;
    l[v].c_seq = 0; l[v].c_next = 0; l[v].c_orphans = 0; l[v].c_look = 0; l[v].seen_trial = 0; l[v].number = 0;
    l[v].first = 0; l[v].rows = 0; l[v].last = false; l[v].good = false; l[v].fill = false;
    blocked[v] = false
}

proctype worker(byte me)
{
end:
    do
    :: finished -> break
    :: d_step { alive[me] && L.pc == W_START -> report[me] = true; L.pc = W_TOP }
    :: d_step { alive[me] && (L.pc == W_TOP || L.pc == W_BLOCKED && !blocked[me]) && !shutdown ->
            rung[me] = false; /* seen = bell */
            sleeping[me] = false;
#ifdef APART
            L.pc = W_LOOK
        }
    :: d_step { alive[me] && L.pc == W_LOOK ->
#endif
            if
            :: t_number != 0 && t_number != L.seen_trial -> L.number = t_number; L.pc = W_READ
#ifndef M_UNADMITTED_MAY_RUN
            :: !(t_number != 0 && t_number != L.seen_trial) && !admitted[me] -> L.pc = W_DOZE
#endif
#ifdef REMOVE
            :: !(t_number != 0 && t_number != L.seen_trial) && admitted[me] && dismissed[me] -> L.pc = W_OFF
#endif
            :: else ->
                L.seq = d_sequence;
                if
                :: L.seq == 0 -> L.c_seq = 0; L.c_next = 0; L.c_orphans = 0; L.c_look = 0 /* it never comes back */
                :: L.seq != 0 && L.seq != L.c_seq -> L.c_seq = L.seq; L.c_next = 0; L.c_orphans = 0; L.c_look = S
                :: else
                fi;
#ifdef SHARD
                L.pc = (L.seq == 0 -> W_DOZE : W_DEAL)
#else
                L.i = (L.c_next < d_first[me] -> d_first[me] : L.c_next);
                L.end = d_first[me + 1];
                L.pc = (L.seq == 0 -> W_DOZE : W_OWN)
#endif
            fi
        }
#ifdef SHARD
    /* T10: from the queue */
    :: d_step { alive[me] && L.pc == W_DEAL ->
            if
            :: OF(next_s, L.seq) && next_n > 0 -> L.i = S - next_n; next_n--; L.pc = W_DEALT
            :: else -> L.pc = W_ORPHANS
            fi
        }
    :: d_step { alive[me] && L.pc == W_DEALT ->
            load();
            if
            :: TAKEABLE ->
#ifdef APART
                L.pc = W_TAKE_DEALT
#else
                take(W_DEAL)
#endif
            :: !TAKEABLE && OTHER_BATCH -> L.pc = W_ORPHANS; forget_word()
            :: else -> L.pc = W_DEAL; forget_word()
            fi
        }
    :: d_step { alive[me] && L.pc == W_TAKE_DEALT -> take(W_DEAL) } /* T2 */
#else
    /* planned for this worker */
    :: d_step { alive[me] && L.pc == W_OWN ->
            L.pc = W_ORPHANS;
            do
            :: L.i < L.end ->
                load();
                if
                :: OTHER_BATCH -> break /* not published yet, or another batch */
                :: TAKEABLE ->
#ifdef APART
                    L.pc = W_TAKE_OWN;
#else
                    L.c_next = L.i + 1;
                    take(W_OWN);
#endif
                    break
                :: else -> L.i++
                fi
            :: else -> break
            od;
            if
            :: L.pc == W_ORPHANS -> L.c_next = L.i; forget_word()
            :: else
            fi
        }
#ifdef APART
    :: d_step { alive[me] && L.pc == W_TAKE_OWN -> /* T2 */
            L.c_next = L.i + 1;
            take(W_OWN);
            if
            :: L.pc == W_OWN -> L.i++
            :: else
            fi
        }
#endif
#endif
    /* T14 */
    :: d_step { alive[me] && L.pc == W_ORPHANS ->
            L.i = 0;
#ifdef M_LOOK_GOES_ON
            L.end = d_orphans;
            L.c_look = (L.c_look == S && L.end != L.c_orphans -> 0 : L.c_look);
#else
            L.end = 0;
            L.c_look = (d_orphans != L.c_orphans -> 0 : L.c_look);
            L.c_orphans = d_orphans;
#endif
            L.pc = (L.c_look >= S -> AFTER_SCAN : W_SCAN)
        }
    :: d_step { alive[me] && L.pc == W_SCAN ->
            if
            :: L.c_look >= S ->
#ifdef M_LOOK_GOES_ON
                L.c_orphans = L.end;
#endif
                L.pc = AFTER_SCAN
            :: L.c_look < S && word[L.c_look].s == L.seq && word[L.c_look].st == FREE ->
                put(L.c_look, RUNNING, me, gen[me]); /* T2 */
                L.i = L.c_look;
                L.c_look++;
                run_it()
            :: else -> L.c_look++
            fi
        }
    /* any slice that is not planned for us, or none: when stealing pays is not the model's */
    :: d_step { alive[me] && L.pc == W_STEAL -> L.pc = W_DOZE }
    :: d_step { alive[me] && L.pc == W_STEAL && !(0 >= d_first[me] && 0 < d_first[me + 1]) && word[0].s == L.seq && UNSTARTED(0) ->
            L.i = 0; load(); STEAL }
#if S > 1
    :: d_step { alive[me] && L.pc == W_STEAL && !(1 >= d_first[me] && 1 < d_first[me + 1]) && word[1].s == L.seq && UNSTARTED(1) ->
            L.i = 1; load(); STEAL }
#endif
#if S > 2
    :: d_step { alive[me] && L.pc == W_STEAL && !(2 >= d_first[me] && 2 < d_first[me + 1]) && word[2].s == L.seq && UNSTARTED(2) ->
            L.i = 2; load(); STEAL }
#endif
    :: d_step { alive[me] && L.pc == W_TAKE_STOLEN -> take(W_DOZE) } /* T3 */
    /* T12 */
#ifdef RINGS_IN_TWO
    :: d_step { alive[me] && L.pc == W_DOZE ->
#ifndef M_SLEEP_UNANNOUNCED
            sleeping[me] = true;
#endif
            L.pc = W_SLEEP
        }
#endif
    :: d_step { alive[me] && L.pc == W_SLEEP ->
            L.i = 0; L.seq = 0; L.end = 0;
            if
#ifndef M_SLEEP_WITHOUT_COMPARING
            :: rung[me] -> L.pc = W_TOP
#endif
            :: else -> blocked[me] = true; L.pc = W_BLOCKED
            fi
        }

    /* ---- the slice is RUNNING, its rows are being computed (run_it) ---- */
    :: d_step { alive[me] && L.pc == W_RUN && POISON == 1 -> assert(MINE(L.i)); die(me) }
#ifdef ENGINE_FAILS
    :: d_step { alive[me] && L.pc == W_FINISH && L.good && fails == 0 -> fails++; engine_failed = true; L.good = false }
#endif
    :: d_step { alive[me] && L.pc == W_FINISH ->
            assert(MINE(L.i));
#ifdef SKIP
            if
            :: !L.good -> put(L.i, SUSPECT, me, gen[me]); L.pc = W_TELL /* T6 */
            :: else -> put(L.i, DONE, me, gen[me]); L.pc = AFTER_FINISH /* T4 */
            fi
#else
            put(L.i, (L.good -> DONE : BAD), me, gen[me]); /* T4 */
            L.pc = AFTER_FINISH
#endif
        }
    :: d_step { alive[me] && L.pc == W_TELL -> told[me] = true; L.pc = W_TOP }
    :: d_step { alive[me] && L.pc == W_COUNT -> count_one(); L.pc = AFTER_COUNT }
    :: d_step { alive[me] && L.pc == W_RING ->
#ifndef M_FLAGS_OF_BEFORE
            L.end = d_unsure;
#endif
#ifdef RINGS_IN_TWO
            w_rung = (w_rung || L.last || L.end || !L.good);
            L.pc = (L.last || L.end || !L.good -> W_WAKE : W_TOP);
#else
            if
            :: L.last || L.end || !L.good -> ring_waiter_now() /* T11 */
            :: else
            fi;
            L.pc = W_TOP;
#endif
#ifdef EVENT
#ifdef M_EVENT_OF_THE_LAST_ONLY
            event = (event || L.last);
#else
            event = (event || L.last || L.end);
#endif
#endif
            L.last = false; L.good = false; L.end = 0; L.i = 0; L.seq = 0
        }
    :: d_step { alive[me] && L.pc == W_WAKE -> w_blocked = (w_blocked && !w_waiting); L.pc = W_TOP }

#ifdef REMOVE
    :: d_step { alive[me] && L.pc == W_OFF -> die(me) } /* it leaves: T23 */
#endif

    /* ---- T16: a trial is asked for ---- */
    :: d_step { alive[me] && L.pc == W_READ ->
            L.i = t_slice; L.seq = t_seq; L.first = t_first; L.rows = t_rows; L.fill = t_fill;
            L.end = (t_worker == me);
            L.pc = W_RECHECK
        }
    :: d_step { alive[me] && L.pc == W_RECHECK ->
            if
#ifndef M_TRIAL_READ_ONCE
            :: t_number != L.number -> forget_trial_read(); L.pc = W_TOP
            :: t_number == L.number ->
#else
            :: true ->
#endif
                L.seen_trial = L.number;
                if
                :: !L.end -> forget_trial_read(); L.pc = W_TOP
                :: else -> L.pc = W_BEGIN
                fi
            fi
        }
    :: d_step { alive[me] && L.pc == W_BEGIN -> p_trial[me] = L.number; L.pc = W_TRY }
    :: d_step { alive[me] && L.pc == W_TRY ->
            assert(d_sequence == L.seq && ON_TRIAL(L.i));
            if
            :: POISON_TRIED && POISON == 1 -> die(me)
            :: POISON_TRIED && POISON == 2 -> L.pc = W_ANSWER
            :: else ->
                L.good = true;
                if
                :: L.fill -> left_out[L.i] = left_out[L.i] | (((1 << L.rows) - 1) << L.first)
                :: else -> written[L.i] = written[L.i] | (((1 << L.rows) - 1) << L.first)
                fi;
                L.pc = W_ANSWER
            fi
        }
    :: d_step { alive[me] && L.pc == W_ANSWER -> /* T17 */
            assert(ON_TRIAL(L.i));
            answer[me] = (L.good -> 1 : 2);
            forget_trial_read();
            L.pc = W_TOP
        }
    od
}

#define MAY_CRASH(v) (crashes < CRASHES && !shutdown && alive[v])
proctype fate()
{
end:
    do
    :: finished -> break
    :: d_step { MAY_CRASH(0) -> crashes++; die(0) } /* T18 */
    :: d_step { MAY_CRASH(1) -> crashes++; die(1) }
#if W > 2
    :: d_step { MAY_CRASH(2) -> crashes++; die(2) }
#endif
    od
}
