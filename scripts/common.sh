# What the scripts share. It is sourced by one that has set `program`, its name in messages, and defines `usage`.

export PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

# The caller runs in the repository's root, so the path must not depend on where we are.
use_etcd() {
    if [ ! -f "$1" ] || [ ! -x "$1" ]; then
        refuse "--etcd wants the path of an etcd binary, and '$1' is none"
    fi
    ETCD=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
    export ETCD
}

refuse() {
    echo "$program: $1" >&2
    usage >&2
    exit 2
}
