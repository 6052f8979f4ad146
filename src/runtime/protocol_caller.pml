/* The caller of protocol.pml: batch.c, batch_wait.c, batch_end.c. */

/* ---- the caller ------------------------------------------------------------------------------------------------ */

/* T7: one word of batch_drop_unstarted */
inline drop_word(n)
{
    if
    :: word[n].s == b_seq && UNSTARTED(n) ->
        put(n, BAD, DROPPED, 0);
        x = (left_s == b_seq && left_n == 1) || d_unsure;
        left_n = (left_s == b_seq && left_n > 0 -> left_n - 1 : left_n);
#ifdef EVENT
        event = (event || x);
#endif
        x = 0
    :: else
    fi
}

/* The words from the cursor on. */
inline scan_on()
{
    do
    :: cursor < S && TERMINAL_NOW(cursor) ->
        failed = (failed || (word[cursor].st == BAD && word[cursor].w != DROPPED));
        cursor++
    :: else -> break
    od
}

#define C_ENTER 0
#define C_OPEN 1
#define C_PUBLISH 2
#define C_RING 3
#define C_PLANNED 4
#define C_BELL 5
#define C_SCAN 6
#define C_DROP 7
#if defined(EVENT)
#define C_SLEEP C_BELL
#elif defined(RINGS_IN_TWO)
#define C_SLEEP 9
#else
#define C_SLEEP C_FUTEX
#endif
#define C_FUTEX 10
#define C_BLOCKED 11
#define C_SETTLE 12
#define C_LEAVE 13
#define C_WAKE 14

/* Slice `slice` of worker v in turn `turn` is the next to be published, or v == W: there is none. */
inline next_to_publish()
{
    do
    :: v < W && d_first[v] + turn < d_first[v + 1] -> break
    :: v < W && d_first[v] + turn >= d_first[v + 1] -> v++
    :: v >= W && turn + 1 < S -> v = 0; turn++
    :: else -> break
    od
}

#ifdef COPIES
#define RINGS_NOW true
#elif defined(M_RING_THE_FIRST_ONLY)
#define RINGS_NOW (turn == 0)
#else
#define RINGS_NOW (turn == 0 || d_first[v] + turn + 1 == d_first[v + 1])
#endif

proctype caller()
{
    byte pc, cursor, k, turn, v, x;
    bool freed;
    do
    :: finished -> break
    :: d_step { pc == C_ENTER && b_seq < NB && !lock ->
            lock = true;
            b_seq++;
            v = 0;
            do /* the cut differs from batch to batch */
            :: v <= W -> d_first[v] = (b_seq % 2 -> (v * S + W - 1) / W : (v * S) / W); v++
            :: else -> v = 0; break
            od;
            d_orphans = 0; d_unsure = false;
            failed = false; verdict = false; cancel_asked = false; engine_failed = false; event = false;
            do
            :: v < S ->
                written[v] = 0; left_out[v] = 0;
#ifdef SHARD
                publish_word(v, FREE, 0); /* T1 */
#endif
                v++
            :: else -> v = 0; break
            od;
            left_s = b_seq; left_n = S;
            next_s = b_seq;
#ifdef SHARD
            next_n = S;
#else
            next_n = 0; publishing = true;
#endif
            in_slot = true;
            out_seq = b_seq; /* memory for the results */
            pc = C_OPEN
        }
    :: d_step { pc == C_OPEN ->
            d_sequence = b_seq;
            lock = false;
#ifdef SHARD
            pc = C_RING
#else
            next_to_publish();
            pc = C_PUBLISH
#endif
        }
#ifdef SHARD
    :: d_step { pc == C_RING -> ring_all(); pc = C_BELL }
#else
    :: d_step { pc == C_PUBLISH -> /* T1 */
#ifdef M_RING_BEFORE_PUBLISH
            ring_now(v);
            pc = C_RING
        }
    :: d_step { pc == C_RING ->
#endif
            publish_word(d_first[v] + turn, CLAIMED, v);
#ifdef RINGS_IN_TWO
            pc = (RINGS_NOW -> C_RING : C_PUBLISH);
            if
            :: pc == C_PUBLISH -> v++; next_to_publish(); pc = (v == W -> C_PLANNED : C_PUBLISH)
            :: else
            fi
        }
#ifdef M_WAKE_BEFORE_RINGING
    :: d_step { pc == C_RING -> blocked[v] = (blocked[v] && !sleeping[v]); pc = C_WAKE }
    :: d_step { pc == C_WAKE -> rung[v] = true; v++; next_to_publish(); pc = (v == W -> C_PLANNED : C_PUBLISH) }
#else
    :: d_step { pc == C_RING -> rung[v] = true; pc = C_WAKE }
    :: d_step { pc == C_WAKE -> blocked[v] = (blocked[v] && !sleeping[v]); v++; next_to_publish(); pc = (v == W -> C_PLANNED : C_PUBLISH) }
#endif
#else
#ifndef M_RING_BEFORE_PUBLISH
            if
            :: RINGS_NOW -> ring_now(v)
            :: else
            fi;
#endif
            v++;
            next_to_publish();
            pc = (v == W -> C_PLANNED : C_PUBLISH)
        }
#endif
    /* T5: recovery_free_planned, under the lock */
    :: d_step { pc == C_PLANNED && !lock ->
            publishing = false;
            v = 0; turn = 0;
            do
            :: v < W && !ready[v] ->
                k = d_first[v];
                do
                :: k < d_first[v + 1] && word[k].s == b_seq && word[k].st == CLAIMED -> put(k, FREE, 0, 0); freed = true; k++
                :: k < d_first[v + 1] && !(word[k].s == b_seq && word[k].st == CLAIMED) -> k++
                :: else -> break
                od;
                v++
            :: v < W && ready[v] -> v++
            :: else -> break
            od;
            v = 0; k = 0;
            if
            :: freed -> orphans_moved(); ring_all()
            :: else
            fi;
            freed = false;
            pc = C_BELL
        }
#endif
    /* ---- batch_wait ---- */
#ifdef EVENT
    :: d_step { pc == C_BELL && event -> event = false; pc = C_SCAN }
#else
    :: d_step { pc == C_BELL || pc == C_BLOCKED && !w_blocked -> w_rung = false; w_waiting = false; pc = C_SCAN } /* seen = bell */
#endif
    :: d_step { pc == C_SCAN ->
#ifdef M_TRUST_THE_COUNT
            cursor = (left_n == 0 -> S : 0);
#else
            scan_on();
#endif
            k = (failed -> cursor : 0);
            pc = (failed -> C_DROP : (cursor == S -> C_SETTLE : C_SLEEP))
        }
    :: d_step { pc == C_DROP ->
            if
            :: k < S -> drop_word(k); k++
            :: else ->
                k = 0;
#ifndef M_SLEEP_AFTER_DROPPING
                scan_on();
#endif
                pc = (cursor == S -> C_SETTLE : C_SLEEP)
            fi
        }
#ifndef EVENT
#ifdef RINGS_IN_TWO
    :: d_step { pc == C_SLEEP -> w_waiting = true; pc = C_FUTEX } /* T12 */
#endif
    :: d_step { pc == C_FUTEX ->
            w_blocked = !w_rung;
            pc = (w_rung -> C_BELL : C_BLOCKED)
        }
#endif
    /* ---- T21: batch_settle; what the caller is given ---- */
    :: d_step { pc == C_SETTLE && !lock ->
            k = 0;
            do
            :: k < S ->
                assert(TERMINAL_NOW(k));
                if
                :: word[k].st == DONE ->
                    assert((written[k] | left_out[k]) == ALL_ROWS && (written[k] & left_out[k]) == 0);
                    assert(left_out[k] == 0 || (POISON && k == 0 && left_out[k] == 1))
                :: else -> assert(cancel_asked || verdict || engine_failed || POISON == 2)
                fi;
                k++
            :: else -> k = 0; break
            od;
            assert(q_count == 0);
            d_sequence = 0; in_slot = false; out_seq = 0; cursor = 0;
            pc = (b_seq < NB -> C_ENTER : C_LEAVE)
        }
    :: d_step { pc == C_LEAVE && !finished -> shutdown = true; ring_all(); finished = true }
    od
}

#ifdef CANCEL
proctype canceller()
{
    byte pc, k, x;
end:
    do
    :: finished -> break
    :: d_step { pc == 0 && in_slot && !publishing && !lock -> lock = true; cancel_asked = true; pc = 1 }
    :: d_step { pc == 1 ->
            if
            :: k < S -> drop_word(k); k++
            :: else -> k = 0; ring_waiter_now(); lock = false; pc = 2
            fi
        }
    od
}
#endif
