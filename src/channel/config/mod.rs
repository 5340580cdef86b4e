//! What is configured for calls, method by method.

pub(crate) mod retry;
