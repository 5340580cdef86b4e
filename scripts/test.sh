#!/usr/bin/env bash
# Everything that has to hold before a change goes in: format, lints, docs, the stated minimum
# Rust version, and all tests, against real etcd processes.

set -euo pipefail

program=test
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'USAGE'
Usage: scripts/test.sh [--etcd PATH] [--soak]

  --soak        instead of everything else, the tests of faults again and again, then those that take minutes, then ten
                minutes of random faults; ends in a table of promises and what they came to
                (SOAK_RUNS=5, SOAK_SECONDS=600, SOAK_SEED=random)
  --etcd PATH   the etcd binary that the tests start (default: $ETCD, then etcd of the PATH)
  -h, --help    this text
USAGE
}

main() {
    local skipped="" soak=""
    parse_options "$@"
    cd "$(dirname "${BASH_SOURCE[0]}")/.."

    step "tools" scripts/setup.sh
    if [ -n "$soak" ]; then
        soak
        return
    fi
    need_component rustfmt fmt
    need_component clippy clippy

    step "format" cargo fmt --all --check
    step "lints, default features" \
        cargo clippy --locked --all-targets -- -D warnings
    check_each_feature
    step "lints, all features" \
        cargo clippy --locked --all-targets --all-features -- -D warnings
    step "docs" \
        env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --all-features
    step "docs, as docs.rs makes them" \
        env RUSTDOC="$PWD/scripts/rustdoc_nightly.sh" RUSTDOCFLAGS="-D warnings --cfg docsrs" \
        cargo doc --locked --no-deps --all-features
    check_fuzz_targets
    check_minimum_rust
    build_neighbours
    look_for_browser
    look_for_programs
    # Most tests wait for etcd most of the time, so more of them than cores can run at once.
    export RUST_TEST_THREADS=${RUST_TEST_THREADS:-8}
    step "tests" cargo test --locked --all-features --no-fail-fast

    header "all passed in $SECONDS s${skipped:+, SKIPPED: $skipped}"
}

parse_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            --etcd)
                [ $# -ge 2 ] || refuse "--etcd wants the path of an etcd binary"
                use_etcd "$2"
                shift 2
                ;;
            --etcd=*)
                use_etcd "${1#--etcd=}"
                shift
                ;;
            --soak)
                soak=yes
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

# rustup's smallest profile comes without these two.
need_component() {
    if cargo "$2" --version >/dev/null 2>&1; then
        return
    fi
    if ! command -v rustup >/dev/null 2>&1 || ! rustup component add "$1"; then
        echo "test: cargo $2 is missing: install the component $1 of your Rust toolchain" >&2
        exit 1
    fi
}

# None and each alone; the workflow checks all combinations. A feature with a leading `_` is not for users.
check_each_feature() {
    local feature
    step "lints, no features" \
        cargo clippy --locked --lib --no-default-features -- -D warnings
    for feature in $(sed -n '/^\[features\]$/,/^\[/s/^\([a-z][a-z-]*\) = .*/\1/p' Cargo.toml | grep -vx default); do
        step "lints, $feature alone" \
            cargo clippy --locked --lib --no-default-features --features "$feature" -- -D warnings
    done
    step "lints, the program" \
        cargo clippy --locked --bin tonic-etcd --no-default-features --features cli -- -D warnings
}

# To run them takes a nightly compiler and `cargo fuzz`; that they compile can be told without.
check_fuzz_targets() {
    local targets=${CARGO_TARGET_DIR:-target}
    mkdir -p "$targets"
    step "format of the fuzz targets" cargo fmt --manifest-path fuzz/Cargo.toml --check
    step "fuzz targets" cargo clippy --locked --manifest-path fuzz/Cargo.toml --no-default-features \
        --target-dir "$(cd "$targets" && pwd)" -- -D warnings
}

# tests/dependencies.rs compares what the dependencies declare; only a compiler of that version can tell
# whether our own code keeps to it. None is downloaded for this.
check_minimum_rust() {
    local version
    version=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    if RUSTUP_AUTO_INSTALL=0 cargo "+$version" --version >/dev/null 2>&1; then
        step "Rust $version" cargo "+$version" check --locked --all-targets --all-features
    else
        header "Rust $version"
        echo "toolchain $version is not installed: only the versions that the dependencies" \
            "declare are compared (tests/dependencies.rs)"
    fi
}

# The tests build the Go programs of tests/interop themselves, but the first build takes minutes of both cores, beside
# which no other test keeps its time. Go keeps what it compiled: later builds take a second.
build_neighbours() {
    local program programs
    header "Go programs"
    if ! command -v go >/dev/null 2>&1; then
        skipped="the tests beside grpc-go and go-zero (tests/it/interop.rs), as Go is not installed"
        echo "SKIPPED: $skipped"
        return
    fi
    if [ -n "$(gofmt -l tests/interop)" ]; then
        gofmt -d tests/interop
        echo "test: run gofmt -w tests/interop" >&2
        exit 1
    fi
    programs=${CARGO_TARGET_DIR:-target}/tmp/interop
    mkdir -p "$programs"
    programs=$(cd "$programs" && pwd)
    for program in naming gozero; do
        if ! (cd "tests/interop/$program" && go build -buildvcs=false -o "$programs/$program"); then
            # Their modules come from the network.
            if (cd "tests/interop/$program" && go mod download); then
                echo "test: tests/interop/$program does not build" >&2
                exit 1
            fi
            skipped="the tests beside grpc-go and go-zero (tests/it/interop.rs), as their modules cannot be downloaded"
            echo "SKIPPED: $skipped"
            export SKIP_NEIGHBOURS=yes
            return
        fi
    done
    echo "built: naming (grpc-go on etcd's naming), gozero (go-zero's discov)"
}

# The tests of the program's page open it in a browser, where there is one; each says so where there is none.
look_for_browser() {
    local browser
    header "browser"
    for browser in chromium chromium-browser google-chrome google-chrome-stable; do
        if command -v "$browser" >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1; then
            echo "found: $browser, with chromedriver"
            return
        fi
    done
    skipped="${skipped:+$skipped; }the page in a browser (tests/it/program_browser.rs), as Chromium or chromedriver is missing"
    echo "SKIPPED: the page in a browser, as Chromium or chromedriver is missing"
}

# Tests that need other programs say so, too, where those are missing.
look_for_programs() {
    header "programs that single tests run"
    look_for prometheus "the queries of the dashboard (tests/it/dashboard.rs)"
    look_for /usr/bin/script "the screen on a terminal (tests/it/program_top.rs)"
}

look_for() {
    local reason="$2, as $1 is missing"
    if command -v "$1" >/dev/null 2>&1; then
        echo "found: $1"
        return
    fi
    skipped="${skipped:+$skipped; }$reason"
    echo "SKIPPED: $reason"
}

# Each test of a fault holds its own promise, and tells the figure in a line that begins with `figure`.
soak() {
    local runs=${SOAK_RUNS:-5} log failed=0 run
    local faults=(etcd_away half_open herd leaves mass_expiry members operated poison processes put_back replaced secrets slow
        channel_faults tls_)
    step "build" cargo test --locked --all-features --no-run
    log=$(mktemp)
    # shellcheck disable=SC2064
    trap "rm -f '$log'" EXIT
    for ((run = 1; run <= runs; run++)); do
        header "faults, run $run of $runs"
        run_faults "$log" --test-threads="${RUST_TEST_THREADS:-4}" "${faults[@]}" || failed=1
    done
    header "minutes, and random faults"
    run_faults "$log" --test-threads=1 --ignored soak:: || failed=1
    header "promises"
    table "$log" || failed=1
    if [ "$failed" -ne 0 ]; then
        header "not everything held, after $SECONDS s"
        exit 1
    fi
    header "all held, after $SECONDS s"
}

run_faults() {
    local log=$1
    shift
    cargo test --locked --all-features --test it -- --nocapture "$@" 2>&1 | tee -a "$log"
}

# Fails where there is no figure, and where one is beyond its own limit.
table() {
    grep -ao $'figure\t.*' "$1" | awk -F '\t' '
        { runs[$2]++; limit[$2] = $4; unit[$2] = $5 }
        $3 > worst[$2] { worst[$2] = $3 }
        $3 > $4 { broken[$2] = 1 }
        END {
            for (promise in runs)
                printf "%s\t%d\t%g %s\t%g %s\t%s\n", promise, runs[promise], worst[promise], unit[promise],
                    limit[promise], unit[promise], (promise in broken) ? "NOT HELD" : "held"
            for (promise in broken) exit 1
        }' | sort | awk -F '\t' '
        BEGIN { printf "%-82s %5s %14s %14s  %s\n", "promise", "runs", "worst", "promised", "" }
        { printf "%-82s %5s %14s %14s  %s\n", $1, $2, $3, $4, $5 }'
}

step() {
    header "$1"
    shift
    "$@"
}

header() {
    printf '\n==> %s\n' "$1"
}

main "$@"
