#!/usr/bin/env bash
# What a call costs, side by side with tonic's own channels: criterion's microbenchmarks, then the
# comparison over real connections. One JSON line a result and one Markdown table, also in
# target/bench/.

set -euo pipefail

program=bench
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'USAGE'
Usage: scripts/bench.sh [--quick] [--rounds COUNT] [--case NAME]...

  --quick       a smoke run of a few seconds a case: the figures mean nothing
  --rounds COUNT
                as many rounds instead of 25: narrower intervals, and a longer run
  --case NAME   this case only, can be repeated: micro, unary, paced, kinds, p99_slow, refuses, mute,
                frozen, killed, join, arrive, memory, connected, metrics
  -h, --help    this text

ETCD names another etcd binary than that of the PATH.
USAGE
}

main() {
    parse_options "$@"
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    local out=$PWD/target/bench

    scripts/setup.sh
    echo "bench: building (a few minutes the first time)"
    cargo bench --locked --quiet --no-run --bench picker --bench layer --bench side_by_side
    if wants metrics; then
        # The same program with the feature: what that costs is a comparison of both.
        side_by_side+=(--with-metrics "$(with_metrics)")
    fi

    local begin=$SECONDS
    mkdir -p "$out"
    if wants micro; then
        # Estimates of an earlier run must not pass for this one's.
        rm -rf "$out/criterion"
        CRITERION_HOME=$out/criterion cargo bench --locked --quiet \
            --bench picker --bench layer -- "${criterion[@]}"
    fi
    cargo bench --locked --quiet --bench side_by_side -- \
        --out "$out" --criterion "$out/criterion" ${side_by_side[@]+"${side_by_side[@]}"}
    echo "bench: $((SECONDS - begin)) s; the same in $out"
}

# Empty arrays count as unset for the bash of macOS.
side_by_side=()
# Half a second to warm up and two to measure keep the whole run near ten minutes.
criterion=(--noplot --warm-up-time 0.5 --measurement-time 2)
cases=()

parse_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            --quick)
                side_by_side+=(--quick)
                criterion=(--noplot --warm-up-time 0.2 --measurement-time 0.5 --sample-size 10)
                shift
                ;;
            --rounds)
                [ $# -ge 2 ] || refuse "--rounds wants a count"
                side_by_side+=(--rounds "$2")
                shift 2
                ;;
            --case)
                [ $# -ge 2 ] || refuse "--case wants the name of a case"
                use_case "$2"
                shift 2
                ;;
            --case=*)
                use_case "${1#--case=}"
                shift
                ;;
            -h | --help)
                usage
                exit 0
                ;;
            *) refuse "unknown option: $1" ;;
        esac
    done
}

use_case() {
    case $1 in
        micro | unary | paced | kinds | p99_slow | refuses | mute | frozen | killed | join | arrive | memory \
            | connected | metrics) ;;
        *) refuse "unknown case: $1" ;;
    esac
    cases+=("$1")
    side_by_side+=(--case "$1")
}

# Prints where the program is that was built with the feature `metrics`.
with_metrics() {
    cargo bench --locked --quiet --no-run --features metrics --bench side_by_side --message-format=json \
        | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

# Without --case, every case is wanted.
wants() {
    local name
    [ ${#cases[@]} -gt 0 ] || return 0
    for name in "${cases[@]}"; do
        [ "$name" != "$1" ] || return 0
    done
    return 1
}

main "$@"
