#!/usr/bin/env bash
# The demo: a real etcd, real tonic servers that join and leave it, and a client that follows
# them; with --web on a page for browsers, too. Options are passed on to examples/demo.

set -euo pipefail

export PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh

# The page is the program's, which a feature builds.
features=()
for argument; do
    [ "$argument" != --web ] || features=(--bins --features cli)
done

# All examples: the demo starts the others as processes of their own.
echo "demo: building the examples (a minute or two the first time)"
cargo build --locked --quiet --examples ${features[@]+"${features[@]}"}

# cargo knows where the binary is, and becomes it: ctrl-c and the exit code are the demo's own.
exec cargo run --locked --quiet --example demo ${features[@]+"${features[@]:1}"} -- "$@"
