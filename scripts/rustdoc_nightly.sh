#!/usr/bin/env bash
# The installed rustdoc with its unstable parts, for what docs.rs and the list of the public API need: cargo takes it as
# RUSTDOC. The variable is set here, not around cargo, since it would have every dependency built anew.

exec env RUSTC_BOOTSTRAP=1 rustdoc "$@"
