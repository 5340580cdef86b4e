#!/usr/bin/env bash
# What a fleet costs etcd: many clients and servers on real etcds, and faults that happen to those. One JSON line a
# result and one Markdown table, also in target/fleet/.

set -euo pipefail

program=fleet
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'USAGE'
Usage: scripts/fleet.sh [--quick] [--case NAME]... [--etcd PATH]

  --quick       a smoke run of a minute or so: the figures mean nothing
  --case NAME   this case only, can be repeated: quiet, proxy, restart, services, slow, return, logins, frozen, changes,
                large
  --etcd PATH   the etcd binary that is measured (default: $ETCD, then etcd of the PATH)
  -h, --help    this text
USAGE
}

main() {
    parse_options "$@"
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    local out=$PWD/target/fleet

    scripts/setup.sh
    echo "fleet: building (a few minutes the first time)"
    cargo bench --locked --quiet --no-run --bench fleet

    local begin=$SECONDS
    mkdir -p "$out"
    # Hundreds of clients have a file for each of their connections.
    ulimit -n "$(ulimit -H -n)"
    cargo bench --locked --quiet --bench fleet -- --out "$out" ${fleet[@]+"${fleet[@]}"}
    echo "fleet: $((SECONDS - begin)) s; the same in $out"
}

# An empty array counts as unset for the bash of macOS.
fleet=()

parse_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            --quick)
                fleet+=(--quick)
                shift
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
            --etcd)
                [ $# -ge 2 ] || refuse "--etcd wants the path of an etcd binary"
                use_etcd "$2"
                shift 2
                ;;
            --etcd=*)
                use_etcd "${1#--etcd=}"
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
        quiet | proxy | restart | services | slow | return | logins | frozen | changes | large) ;;
        *) refuse "unknown case: $1" ;;
    esac
    fleet+=(--case "$1")
}

main "$@"
