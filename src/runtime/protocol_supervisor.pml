/* The supervisor of protocol.pml: recovery.c, supervisor.c, supervisor_death.c, supervisor_start.c. */

/* ---- the supervisor -------------------------------------------------------------------------------------------- */

#define S_IDLE 0
#define S_BURY 1
#define S_WORDS 2
#define S_AFTER_WORDS 3
#define S_RINGS 5
#define S_ASK 7
#define S_ASKED 8
#define S_FINISH 9
#define S_COUNT 10
#define S_REPAIR 11
#define S_REPAIR_STORE 12
#define S_ANEW 13
#define S_FREE_ALL 14
#define S_FREE_STORE 15
#define S_FREED 16

/* T13 */
inline orphans_moved()
{
    d_unsure = true;
#ifndef M_ORPHANS_STAY
    d_orphans++
#endif
}

inline first_suspect()
{
    k_count = (q_count > 0 -> 1 : 0);
    k_first[0] = 0; k_rows[0] = (q_count > 0 -> ROWS : 0); k_fails[0] = 0; k_avoid[0] = NOBODY; k_fill[0] = false
}

inline enqueue(n)
{
    q_slice[q_count] = n; q_count++;
    if
    :: q_count == 1 -> first_suspect()
    :: else
    fi
}
#define LISTED(n) ((q_count > 0 && q_slice[0] == n) || (S > 1 && q_count > 1 && q_slice[1 % S] == n) || (S > 2 && q_count > 2 && q_slice[2 % S] == n))

inline drop_first()
{
    x = 0;
    do
    :: x + 1 < q_count -> q_slice[x] = q_slice[x + 1]; x++
    :: else -> break
    od;
    q_count--; q_slice[q_count] = 0; x = 0;
    probation = (q_count == 0 -> NOBODY : probation);
    first_suspect()
}

inline push(first_, rows_, fails_, avoid_, fill_)
{
    k_first[k_count] = first_; k_rows[k_count] = rows_; k_fails[k_count] = fails_; k_avoid[k_count] = avoid_;
    k_fill[k_count] = fill_; k_count++
}

inline end_trial(v)
{
    r_running = false; r_on = 0; p_trial[v] = 0;
    t_number = 0; t_worker = 0; t_slice = 0; t_first = 0; t_rows = 0; t_seq = 0; t_fill = false
}
inline forget_trial() { r_first = 0; r_rows = 0; r_fails = 0; r_avoid = 0; r_fill = false }

inline trial_failed(v)
{
    r_fails++;
    if
    :: r_fill -> push(r_first, r_rows, r_fails, NOBODY, true)
    :: !r_fill && r_rows > 1 ->
        push(r_first + r_rows / 2, r_rows - r_rows / 2, 0, NOBODY, false);
        push(r_first, r_rows / 2, 0, NOBODY, false)
    :: !r_fill && r_rows == 1 && r_fails < ROW_TRIALS -> push(r_first, 1, r_fails, v, false)
    :: else ->
        assert(POISON && q_slice[0] == 0 && r_first == 0); /* a good row is never judged */
#ifdef SKIP
        push(r_first, 1, 0, NOBODY, true)
#else
        verdict = true /* and recovery_step finishes the suspect */
#endif
    fi;
    forget_trial()
}

#define IS_THERE(v) (state[v] != RETIRED && state[v] != LEAVING)
#define OTHERS(v) ((0 != v && IS_THERE(0)) || (1 != v && IS_THERE(1)) || (W > 2 && 2 != v && IS_THERE(2 % W)))
/* choose_worker; which of several fit ones is left open. */
#define AVOID k_avoid[k_count - 1]
#define BOUND (probation != NOBODY && probation != AVOID && IS_THERE(probation % W) && state[probation % W] != WAITING)
#define FITS(v) (state[v] == READY && (BOUND -> probation == v : (v != AVOID || !OTHERS(AVOID))))
#define TRIAL_IS_DUE (q_count > 0 && !r_running && k_count > 0 && !verdict && !cancel_asked && !lock)

inline choose(n) /* T15, its beginning */
{
    lock = true;
    k_count--;
    r_first = k_first[k_count]; r_rows = k_rows[k_count]; r_fails = k_fails[k_count]; r_avoid = k_avoid[k_count];
    r_fill = k_fill[k_count];
    k_first[k_count] = 0; k_rows[k_count] = 0; k_fails[k_count] = 0; k_avoid[k_count] = 0; k_fill[k_count] = false;
    r_running = true; r_on = n; probation = n; r_number++;
    t_number = 0;
    v = n;
    pc = S_ASK
}

/* What no worker could have written by the rules: nothing ever is. */
#define GONE(v) (!ready[v] && state[v] != LEAVING)
#define SPOILT(n) (word[n].s != b_seq || word[n].st == NONE || (word[n].st == RUNNING && (GONE(word[n].w % W) || word[n].g != gen[word[n].w % W])))

#ifdef M_FREE_BEFORE_DEATH /* it hangs, or so it seems, and SIGKILL is on its way */
#define ENDED(v) (!alive[v] || (crashes < CRASHES && l[v].pc == W_FINISH))
#else
#define ENDED(v) (!alive[v])
#endif
#define DIED(v) (ENDED(v) && (state[v] == READY || state[v] == STARTING || state[v] == LEAVING) && !shutdown)

#define START(n) sleeping[n] = false; admitted[n] = false; gen[n]++; state[n] = STARTING; alive[n] = true
#define REPORTED(n) report[n] && state[n] == STARTING && !lock -> ready[n] = true; report[n] = false; state[n] = READY; admitted[n] = true; ring_now(n)
#define ADOPT(n) told[n] && (state[n] == READY || state[n] == LEAVING) && !lock -> told[n] = false; adopt(n)

/* adopt_suspects */
inline adopt(n)
{
    x = 0;
    do
    :: in_slot && x < S ->
        if
        :: word[x].s == b_seq && word[x].st == SUSPECT && word[x].w == n && !LISTED(x) -> y = x; enqueue(y)
        :: else
        fi;
        x++
    :: else -> break
    od;
    x = 0;
    y = 0
}

proctype supervisor()
{
    byte pc, v, i, x, y, to, by;
    bool freed, whole; /* whole: of T22 */
end:
    do
    :: finished -> break
    :: d_step { pc == S_IDLE && REPORTED(0) }
    :: d_step { pc == S_IDLE && REPORTED(1) }
    :: d_step { pc == S_IDLE && ADOPT(0) }
    :: d_step { pc == S_IDLE && ADOPT(1) }
    :: d_step { pc == S_IDLE && DIED(0) -> v = 0; pc = S_BURY } /* T19 */
    :: d_step { pc == S_IDLE && DIED(1) -> v = 1; pc = S_BURY }
    :: d_step { pc == S_IDLE && state[0] == WAITING && !alive[0] && !shutdown -> START(0) } /* T20 */
    :: d_step { pc == S_IDLE && state[1] == WAITING && !alive[1] && !shutdown -> START(1) }
    :: d_step { pc == S_IDLE && TRIAL_IS_DUE && FITS(0) -> choose(0) } /* T15 */
    :: d_step { pc == S_IDLE && TRIAL_IS_DUE && FITS(1) -> choose(1) }
#if W > 2
    :: d_step { pc == S_IDLE && REPORTED(2) }
    :: d_step { pc == S_IDLE && ADOPT(2) }
    :: d_step { pc == S_IDLE && DIED(2) -> v = 2; pc = S_BURY }
    :: d_step { pc == S_IDLE && state[2] == WAITING && !alive[2] && !shutdown -> START(2) }
    :: d_step { pc == S_IDLE && TRIAL_IS_DUE && FITS(2) -> choose(2) }
#endif
    :: d_step { pc == S_ASK -> t_worker = v; t_slice = q_slice[0]; t_first = r_first; t_rows = r_rows; t_fill = r_fill; t_seq = b_seq; pc = S_ASKED }
    :: d_step { pc == S_ASKED -> t_number = r_number; ring_now(v); lock = false; v = 0; pc = S_IDLE }

    /* ---- a trial's answer; of a dead worker it may be read, or lost with it ---- */
    :: d_step { pc == S_IDLE && !lock && r_running && answer[r_on] != 0 && (state[r_on] == READY || state[r_on] == LEAVING) ->
            lock = true;
            y = r_on;
            end_trial(y);
            x = answer[y];
            answer[y] = 0;
            pc = S_RINGS; v = NOBODY;
            if
            :: x == 2 -> x = 0; trial_failed(y)
            :: else -> x = 0; forget_trial();
                if
                :: k_count == 0 -> to = DONE; by = y; pc = S_FINISH
                :: else
                fi
            fi;
            y = 0
        }
    /* ---- T8 ---- */
    :: d_step { pc == S_IDLE && !lock && q_count > 0 && !r_running && (verdict || cancel_asked) ->
            lock = true; to = BAD; by = (verdict -> JUDGED : DROPPED); pc = S_FINISH }
    :: d_step { pc == S_FINISH ->
            assert(in_slot && word[q_slice[0]].st == SUSPECT && word[q_slice[0]].s == b_seq);
            put(q_slice[0], to, by, 0);
            to = 0; by = 0;
            pc = S_COUNT
        }
    :: d_step { pc == S_COUNT ->
            left_n = (left_s == b_seq && left_n > 0 -> left_n - 1 : left_n);
            drop_first();
            ring_waiters();
            lock = false;
            v = 0;
            pc = S_IDLE
        }

    /* ---- recovery_death ---- */
    :: d_step { pc == S_BURY && !lock ->
            lock = true;
            ready[v] = false; report[v] = false; told[v] = false; answer[v] = 0;
#ifdef M_ORPHANS_MOVE_FIRST
            d_orphans++;
#endif
#ifdef M_FREE_BEFORE_DEATH
            crashes = (alive[v] -> CRASHES : crashes);
#endif
            pc = (in_slot -> S_WORDS : S_AFTER_WORDS)
        }
    :: d_step { pc == S_WORDS ->
            if
            :: word[i].s == b_seq && word[i].w == v && word[i].st == CLAIMED -> put(i, FREE, 0, 0); freed = true /* T5 */
            :: word[i].s == b_seq && word[i].w == v && word[i].st == RUNNING && word[i].g == gen[v] ->
                if
                :: whole -> put(i, FREE, 0, 0); freed = true
                :: else -> put(i, SUSPECT, v, gen[v]); enqueue(i) /* T6 */
                fi
#ifndef M_UNTOLD_SUSPECTS
            :: word[i].s == b_seq && word[i].w == v && word[i].st == SUSPECT && !LISTED(i) -> enqueue(i)
#endif
            :: else
            fi;
            i++;
            if
            :: i == S -> i = 0; pc = S_AFTER_WORDS
            :: else
            fi
        }
    :: d_step { pc == S_AFTER_WORDS ->
            if
            :: in_slot ->
                d_unsure = true;
#if defined(SHARD) && !defined(M_DEALT_IS_LOST)
                freed = true; /* what it was dealt and had not begun */
#endif
                if
#ifndef M_ORPHANS_MOVE_FIRST
                :: freed -> orphans_moved()
#endif
                :: else
                fi;
                ring_waiters()
            :: else
            fi;
            freed = false;
            if
            :: r_running && r_on == v ->
#ifdef M_UNBEGUN_TRIALS_COUNT
                x = !whole;
#else
                x = (!whole && p_trial[v] == r_number);
#endif
                assert(!x || p_trial[v] == r_number); /* what was not begun has not failed */
                end_trial(v);
                if
                :: x -> trial_failed(v)
                :: else -> push(r_first, r_rows, r_fails, r_avoid, r_fill); forget_trial()
                fi;
                x = 0
            :: else
            fi;
            pc = S_RINGS
        }
    :: d_step { pc == S_RINGS && v == NOBODY -> lock = false; v = 0; pc = S_IDLE }
    :: d_step { pc == S_RINGS && v != NOBODY && (RETIRE < 2 || whole || !OTHERS(v)) ->
            lock = false;
            ring_all();
            state[v] = (state[v] == LEAVING -> RETIRED : WAITING);
            pc = (whole -> S_ANEW : S_IDLE);
            v = 0
        }
#if RETIRE
    :: d_step { pc == S_RINGS && v != NOBODY && !whole && state[v] != LEAVING && OTHERS(v) -> lock = false; ring_all(); state[v] = RETIRED; v = 0; pc = S_IDLE }
#endif

#ifdef REMOVE
    /* ---- T23: supervisor_change.c, dismiss ---- */
    :: d_step { pc == S_IDLE && removes == 0 && state[1] == READY && OTHERS(1) && !lock && !shutdown ->
            removes++;
            ready[1] = false;
            do
            :: in_slot && i < S ->
                if
                :: word[i].s == b_seq && word[i].w == 1 && word[i].st == CLAIMED -> put(i, FREE, 0, 0); freed = true /* T5 */
                :: else
                fi;
                i++
            :: else -> break
            od;
            i = 0;
            if
            :: freed -> orphans_moved()
            :: else
            fi;
            freed = false;
            ring_all();
            state[1] = LEAVING;
            dismissed[1] = true
        }
#endif
#ifdef TICK
    /* recovery_words_spoilt, once: a step that changed nothing could be taken for ever, and hide a state without end */
    :: d_step { pc == S_IDLE && looks == 0 && in_slot && !publishing && !lock ->
            looks++;
            x = 0;
            do
            :: x < S -> assert(!SPOILT(x)); x++
            :: else -> break
            od;
            x = 0
        }
#ifdef SHARD
    /* nudge: `next` stands at 0 beside a FREE word */
    :: d_step { pc == S_IDLE && ticks < TICK && d_sequence != 0 && next_n == 0 && !lock ->
            ticks++;
            v = d_sequence;
#ifndef M_REPAIR_UNLOCKED
            lock = true;
#endif
            pc = S_REPAIR
        }
    :: d_step { pc == S_REPAIR ->
            if
            :: i < S && !(word[i].s == v && word[i].st == FREE) -> i++
            :: else -> pc = S_REPAIR_STORE
            fi
        }
    :: d_step { pc == S_REPAIR_STORE ->
            if
            :: i < S -> next_s = v; next_n = S - i
            :: else
            fi;
#ifndef M_REPAIR_UNLOCKED
            lock = false;
#endif
            i = 0; v = 0;
            pc = S_IDLE
        }
#endif
#endif
#ifdef ANEW
    /* ---- T22: all are killed and buried, then what is open is FREE again ---- */
    :: d_step { pc == S_IDLE && anews == 0 && in_slot && !shutdown -> anews++; whole = true; die(0); die(1); pc = S_ANEW }
    :: d_step { pc == S_ANEW && (state[0] == READY || state[0] == STARTING) -> v = 0; pc = S_BURY }
    :: d_step { pc == S_ANEW && state[0] == WAITING && (state[1] == READY || state[1] == STARTING) -> v = 1; pc = S_BURY }
    :: d_step { pc == S_ANEW && state[0] == WAITING && state[1] == WAITING && !lock ->
            lock = true;
            do
            :: q_count > 0 -> drop_first()
            :: else -> break
            od;
            pc = (in_slot && !publishing -> S_FREE_ALL : S_FREED)
        }
    :: d_step { pc == S_FREE_ALL ->
            if
            :: i == S -> i = 0; orphans_moved(); ring_waiters(); pc = S_FREED
            :: i < S && TERMINAL_NOW(i) -> i++
#ifdef M_ANEW_STORES
            :: else -> pc = S_FREE_STORE
#else
            :: else -> put(i, FREE, 0, 0); i++
#endif
            fi
        }
    :: d_step { pc == S_FREE_STORE -> put(i, FREE, 0, 0); i++; pc = S_FREE_ALL }
    :: d_step { pc == S_FREED -> lock = false; whole = false; pc = S_IDLE }
#endif
    od
}
