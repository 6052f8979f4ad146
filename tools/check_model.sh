#!/usr/bin/env bash
# Runs the models of the protocol (src/runtime/protocol.pml, mailbox.pml) through spin: every configuration to its end, where nothing may
# be found, and every wrong protocol (M_...), where something must. One line each: name, result, states, transitions, depth.
# usage: tools/check_model.sh [quick]     quick: a few small ones, in some ten seconds
# Exit code 77 when spin is not installed. Each run takes at most MODEL_MEMORY (default 7000) MB.
set -uo pipefail
cd "$(dirname "$0")/.."
command -v spin >/dev/null && command -v gcc >/dev/null || {
    echo "spin is not installed: tools/deps.sh test"
    exit 77
}
protocol=$PWD/src/runtime/protocol.pml mailbox=$PWD/src/runtime/mailbox.pml model=$protocol
memory=${MODEL_MEMORY:-7000}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
bad=0
mode=SAFETY

# run NAME FLAGS...: builds and runs one; sets errors, states, transitions, depth, what, seconds
run() {
    local began=$EPOCHREALTIME
    rm -rf "$folder/run" && mkdir "$folder/run"
    (cd "$folder/run" && spin -a "${@:2}" "$model" >spin.log 2>&1 &&
        gcc -O2 -D"$mode" -DCOLLAPSE -DNOFAIR -DNOCLAIM -DMEMLIM="$memory" -w -o pan pan.c &&
        ./pan $([ $mode = NP ] && echo -l) -m1000000 >pan.log 2>&1)
    local log=$folder/run/pan.log
    seconds=$(echo "$EPOCHREALTIME $began" | awk '{printf "%.0f", $1 - $2}')
    errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' "$log")
    depth=$(sed -n 's/.*depth reached \([0-9]*\).*/\1/p' "$log")
    states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' "$log")
    transitions=$(sed -n 's/^ *\([0-9.e+]*\) transitions.*/\1/p' "$log")
    what=$(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' "$log" | cut -c1-60)
    grep -qE 'out of memory|Search not completed|max search depth too small' "$log" && [ "${errors:-1}" = 0 ] && errors=incomplete
    [ -n "${errors:-}" ] || { errors=none && cat "$folder/run/spin.log" "$log" 2>/dev/null | tail -n 5; }
}
holds() { # NAME FLAGS...: nothing may be found
    run "$@"
    local result=${result:-holds}
    [ "$errors" = 0 ] || { result="FAILS: $errors $what" && bad=1; }
    printf '%-34s %-12s %12s states %12s transitions, depth %4s, %4s s   %s\n' "$1" "$result" "$states" "$transitions" "$depth" \
        "$seconds" "${*:2}"
}
ends() { # NAME FLAGS...: nor may it ever go round in a circle
    local mode=NP result=ends
    holds "$@"
}
caught() { # M_NAME FLAGS...: something must be found
    run "$1" "-D$1" "${@:2}"
    local result="found"
    [ "$errors" = 1 ] || { result="NOT FOUND" && bad=1; }
    printf '%-34s %-12s %s   %s\n' "$1" "$result" "${what:-}" "${*:2}"
}

if [ "${1:-}" = quick ]; then
    holds "slots are used again" -DAPART -DS=1 -DCRASHES=0
    holds "rings in two steps" -DRINGS_IN_TWO -DAPART -DNB=1 -DCRASHES=0
    holds "a death" -DEVENT -DFIXED_SPLIT -DNB=1 -DS=1
    caught M_WORD_WITHOUT_SEQUENCE -DAPART -DS=1 -DCRASHES=0
    caught M_HINT_WITHOUT_SEQUENCE -DS=1 -DCRASHES=0
    caught M_WAKE_BEFORE_RINGING -DRINGS_IN_TWO -DNB=1 -DCRASHES=0
    caught M_TRUST_THE_COUNT -DNB=1 -DS=1
    model=$mailbox
    holds "mailbox, a death" -DN=2
    caught M_QUIT_READ_FIRST
    caught M_BELL_READ_LATE
    exit $bad
fi

echo "== every run of these ends well"
holds "slots are used again" -DAPART -DS=1 -DCRASHES=0
holds "rings in two steps" -DRINGS_IN_TWO -DAPART -DNB=1 -DCRASHES=0
holds "cancelled" -DCANCEL -DNB=1 -DCRASHES=0
holds "all started anew" -DENGINE_FAILS -DANEW -DNB=1 -DS=1 -DCRASHES=0
holds "the queue's hint repaired" -DSHARD -DTICK=1 -DS=1 -DCRASHES=0
holds "a death, one slice" -DTICK=1 -DNB=1 -DS=1
holds "a death, event loop" -DEVENT -DNB=1 -DS=1
holds "a death, shard mode" -DSHARD -DNB=1 -DS=1
holds "a row that kills" -DPOISON=1 -DROWS=2 -DNB=1 -DS=1 -DCRASHES=0
holds "a row that kills is left out" -DPOISON=1 -DROWS=2 -DSKIP -DNB=1 -DS=1 -DCRASHES=0
holds "a slice fails, all started anew" -DENGINE_FAILS -DANEW -DNB=1 -DCRASHES=0
holds "a death, two slices" -DNB=1
holds "a death, two batches" -DS=1
holds "a death, fixed split, retired" -DFIXED_SPLIT -DRETIRE=1 -DNB=1
holds "a death, rings in two steps" -DRINGS_IN_TWO -DAPART -DNB=1 -DS=1
holds "a death, shard mode, two slices" -DSHARD -DNB=1
holds "a death, event loop, two slices" -DEVENT -DFIXED_SPLIT -DNB=1
holds "a death, cancelled" -DCANCEL -DFIXED_SPLIT -DNB=1
holds "a row fails, a death, left out" -DPOISON=2 -DSKIP -DNB=1 -DS=1
holds "a row kills, a death, left out" -DPOISON=1 -DSKIP -DNB=1 -DS=1
holds "a device removed, a death" -DREMOVE -DNB=1 -DS=1
holds "two deaths" -DCRASHES=2 -DNB=1 -DS=1
holds "three workers, two retired" -DW=3 -DS=3 -DCRASHES=2 -DFIXED_SPLIT -DRETIRE=2 -DNB=1
ends "a death, no circle" -DNB=1 -DS=1
ends "a death, shard mode, no circle" -DSHARD -DNB=1 -DS=1
ends "a row kills, no circle" -DPOISON=1 -DROWS=2 -DSKIP -DNB=1 -DS=1 -DCRASHES=0
model=$mailbox
holds "mailbox, a death" -DN=3
holds "mailbox, two deaths" -DN=2 -DCRASHES=2
holds "mailbox, one in hand" -DN=3 -DDEPTH=1 -DCRASHES=2

echo "== something is wrong with each of these, and it is found"
model=$protocol
caught M_FREE_BEFORE_DEATH -DNB=1
caught M_WORD_WITHOUT_SEQUENCE -DAPART -DS=1 -DCRASHES=0
caught M_HINT_WITHOUT_SEQUENCE -DS=1 -DCRASHES=0
caught M_STORE_WITHOUT_COMPARING -DAPART -DNB=1 -DCRASHES=0
caught M_RING_BEFORE_PUBLISH -DNB=1 -DCRASHES=0
caught M_RING_THE_FIRST_ONLY -DNB=1 -DS=3 -DCRASHES=0
caught M_SLEEP_WITHOUT_COMPARING -DNB=1 -DCRASHES=0
caught M_SLEEP_UNANNOUNCED -DRINGS_IN_TWO -DNB=1 -DCRASHES=0
caught M_WAKE_BEFORE_RINGING -DRINGS_IN_TWO -DNB=1 -DCRASHES=0
caught M_COUNT_BEFORE_FINISH -DNB=1 -DCRASHES=0
caught M_TRUST_THE_COUNT -DNB=1 -DS=1
caught M_SLEEP_AFTER_DROPPING -DENGINE_FAILS -DNB=1 -DCRASHES=0
caught M_ANEW_STORES -DANEW -DENGINE_FAILS -DNB=1 -DCRASHES=0
caught M_ORPHANS_STAY -DFIXED_SPLIT -DRETIRE=1 -DNB=1
caught M_ORPHANS_MOVE_FIRST -DFIXED_SPLIT -DRETIRE=1 -DNB=1
caught M_FLAGS_OF_BEFORE -DNB=1
caught M_EVENT_OF_THE_LAST_ONLY -DEVENT -DFIXED_SPLIT -DNB=1
caught M_DEALT_IS_LOST -DSHARD -DNB=1
caught M_REPAIR_UNLOCKED -DSHARD -DTICK=1 -DS=1 -DCRASHES=0
caught M_UNTOLD_SUSPECTS -DPOISON=2 -DSKIP -DNB=1 -DS=1
caught M_UNBEGUN_TRIALS_COUNT -DNB=1 -DS=1 -DCRASHES=2
caught M_UNADMITTED_MAY_RUN -DTICK=1 -DNB=1 -DS=1
caught M_TRIAL_READ_ONCE -DNB=1 -DCRASHES=2
caught M_LOOK_GOES_ON -DW=3 -DS=3 -DCRASHES=2 -DFIXED_SPLIT -DRETIRE=2 -DNB=1
model=$mailbox
for wrong in QUIT_READ_FIRST BELL_READ_LATE RING_BEFORE_REPORT REPORT_BEFORE_ROWS NUMBER_FIRST SEAT_TAKEN_AGAIN OLD_REPORTS \
    LAST_REPORTS_ARE_LOST TAKEN_IS_SHOWN_LATE FREE_BEFORE_STOP NEXT_BEFORE_DEATH; do
    caught M_$wrong
done
[ $bad = 0 ] && echo "the model holds, and every wrong one was found"
exit $bad
