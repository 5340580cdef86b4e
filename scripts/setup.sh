#!/usr/bin/env bash
# Installs what building, testing and the demo need besides Rust: a C compiler, protoc with its
# own .proto files, etcd and etcdctl. Installs only what is missing, and asks nothing.
#
# PROTOC and PROTOC_INCLUDE (as prost reads them) and ETCD (as the tests read it) name other
# binaries than those of the PATH.

set -euo pipefail

export PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

main() {
    if ! has cargo; then
        fail "cargo is missing: install Rust from https://rustup.rs, then run this again"
    fi

    local missing
    missing=$(list_missing)
    if [ -n "$missing" ]; then
        say "missing: $(list "$missing")"
        install_missing "$missing"
        missing=$(list_missing)
        if [ -n "$missing" ]; then
            fail "still missing after the installation: $(list "$missing")"
        fi
    fi
    say "cc, protoc, etcd and etcdctl are there"
}

# One name a line; the order is that of the messages.
list_missing() {
    has cc || echo cc
    has_protoc || echo protoc
    has "${ETCD:-etcd}" || echo etcd
    has etcdctl || echo etcdctl
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# The binary alone is not enough: etcd-client's .proto files import those that come with protoc,
# and some distributions put these into a package of their own.
has_protoc() {
    local folder found=0
    has "${PROTOC:-protoc}" || return 1
    folder=$(mktemp -d)
    cat >"$folder/probe.proto" <<'PROTO'
syntax = "proto3";
import "google/protobuf/descriptor.proto";
import "google/protobuf/struct.proto";
message Probe {
  google.protobuf.FileDescriptorProto file = 1;
  google.protobuf.Struct fields = 2;
}
PROTO
    "${PROTOC:-protoc}" -I "$folder" ${PROTOC_INCLUDE:+-I "$PROTOC_INCLUDE"} \
        --descriptor_set_out="$folder/probe.bin" "$folder/probe.proto" \
        >/dev/null 2>&1 || found=1
    rm -rf "$folder"
    return "$found"
}

install_missing() {
    if has apt-get; then
        install_with_apt "$1"
    elif has brew; then
        install_with_brew "$1"
    else
        fail "neither apt-get nor brew is here; install by hand: $(by_hand "$1")"
    fi
}

install_with_apt() {
    local packages=() as_root=() tool
    for tool in $1; do
        case $tool in
            cc) packages+=(gcc libc6-dev) ;;
            protoc) packages+=(protobuf-compiler libprotobuf-dev) ;;
            etcd) packages+=(etcd-server) ;;
            etcdctl) packages+=(etcd-client) ;;
        esac
    done

    if [ "$(id -u)" -eq 0 ]; then
        as_root=(env)
    elif has sudo && sudo -n true 2>/dev/null; then
        as_root=(sudo -n env)
    else
        fail "this needs root; run by hand: sudo apt-get install ${packages[*]}"
    fi
    as_root+=(DEBIAN_FRONTEND=noninteractive apt-get -qq \
        -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0)

    say "apt-get install ${packages[*]}"
    # Neither failure is final: a foreign package source can be out of reach, and etcd-server's
    # attempt to start its service fails where port 2379 is taken or no service manager runs.
    # What counts is whether the tools are there afterwards.
    "${as_root[@]}" update </dev/null >&2 \
        || say "apt-get update failed; trying with the lists that are here"
    "${as_root[@]}" install --yes --no-install-recommends "${packages[@]}" </dev/null >&2 \
        || say "apt-get reported an error; looking whether the tools are there all the same"
}

install_with_brew() {
    local packages=() tool
    for tool in $1; do
        case $tool in
            cc) fail "no C compiler; install it by hand: xcode-select --install" ;;
            protoc) packages+=(protobuf) ;;
            # One formula holds both.
            etcd | etcdctl) packages+=(etcd) ;;
        esac
    done

    say "brew install ${packages[*]}"
    HOMEBREW_NO_AUTO_UPDATE=1 brew install --quiet "${packages[@]}" </dev/null >&2 \
        || say "brew reported an error; looking whether the tools are there all the same"
}

# What the tools are called where their packages have other names.
by_hand() {
    local tool
    for tool in $1; do
        case $tool in
            cc) echo "a C compiler and linker (cc)" ;;
            protoc) echo "protoc with google/protobuf/*.proto" ;;
            *) echo "$tool" ;;
        esac
    done | join_lines
}

list() {
    echo "$1" | join_lines
}

join_lines() {
    paste -s -d , - | sed 's/,/, /g'
}

say() {
    echo "setup: $1"
}

fail() {
    echo "setup: $1" >&2
    exit 1
}

main
