#!/bin/sh
# What every job of a chaos run does: checks its inputs, takes its time, writes its outputs, and says so in the record.
# Arguments: seconds, exit code, lines of each output, outputs and inputs (separated by commas, - for none).
# The executor sets CHAOS_RECORD, CHAOS_JOB and CHAOS_TASK. Each line of the record is one write with O_APPEND.
say() {
    printf '%s %s %s %s %s\n' "$1" "$CHAOS_JOB" "$CHAOS_TASK" "$$" "$(date +%s.%N)" >>"$CHAOS_RECORD"
}

say start
[ "$1" = 0.0 ] || sleep "$1"
code=$2
IFS=,
if [ "$5" != - ]; then
    for input in $5; do
        case $(tail -n 1 "$input") in
        end*) ;;
        *)
            echo "input $input is missing or torn"
            code=99
            ;;
        esac
    done
fi
for output in $4; do
    mkdir -p "${output%/*}"
    awk -v n="$3" -v job="$CHAOS_JOB" -v task="$CHAOS_TASK" -v path="$output" 'BEGIN {
        for (i = 1; i <= n; i++) print i, job, task, path
        print "end", job, task, path
    }' >"$output"
done
say "end:$code"
exit "$code"
