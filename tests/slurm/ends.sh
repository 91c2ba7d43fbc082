#!/usr/bin/env bash
# Stands in for the program in tests of the requeue rules. CODES: how each attempt ends, such as "1 75 0".
# "stop" waits for a stop signal; with "early" the second rank cannot listen to USR2 yet, and the first does not hear it.
# When the first rank fails, the second fails for that a second later, but with 71 it waits for ever.
trap 'stopped=1' TERM USR2
read -ra codes <<<"${CODES:?}"
code=${codes[${SLURM_RESTART_COUNT:-0}]}
echo "attempt $((${SLURM_RESTART_COUNT:-0} + 1)) rank $SLURM_PROCID meets at $MASTER_ADDR:$MASTER_PORT in group ${WANDB_RUN_GROUP:-none} with $*"
case $code.$SLURM_PROCID in
    early.0) trap '' USR2 ;;
    early.*) trap - USR2 ;;
    75.0 | 0.*) exit "$code" ;;
    75.*)
        sleep 1 # still writes its part
        echo "rank $SLURM_PROCID ends after the first"
        exit 0
        ;;
    stop.* | 71.[1-9]*) ;;
    *.[1-9]*)
        sleep 1
        exit 1
        ;;
    *) exit "$code" ;;
esac
for _ in {1..300}; do
    sleep 0.2
    if [[ ${stopped:-} ]]; then
        echo "rank $SLURM_PROCID stops"
        exit 75
    fi
done
exit 1
