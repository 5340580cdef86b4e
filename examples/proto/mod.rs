//! Messages, clients and servers generated from the files in `proto/`, for the examples and the tests.
//!
//! `tests/stubs.rs` keeps the files beside this one equal to what the generator writes. No program
//! uses all of a stub, and a generator has its own idea of format and style: hence the attributes.

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
pub mod echo;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
pub mod goodbye;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
pub mod hello;
