//! `methodConfig` and `retryThrottling`: JSON becomes the options of methods.

use std::sync::Arc;

use serde_json::Value;
use tonic::Code;

use super::json::{At, Read};
use crate::channel::config::methods::MethodConfig;
use crate::channel::config::retry::RetryPolicy;
use crate::channel::config::throttling::RetryThrottling;
use crate::codes;
use crate::error::ConfigError;

/// One `methodConfig`: the names that it is for, and what it says of them.
pub(super) fn methods(at: &At<'_>) -> Read<Vec<(String, MethodConfig)>> {
    let (mut names, mut method) = (None, MethodConfig::default());
    for (name, field) in at.fields()? {
        match name {
            "name" => names = Some(field.items()?.iter().map(method_name).collect::<Read<Vec<_>>>()?),
            "timeout" => method.timeout = Some(field.duration()?),
            "waitForReady" => method.wait_for_ready = Some(field.flag()?),
            "maxRequestMessageBytes" => method.max_request_bytes = field.limit()?,
            "maxResponseMessageBytes" => method.max_response_bytes = field.limit()?,
            "retryPolicy" => method.retry = Some(Arc::new(retry(&field)?)),
            "hedgingPolicy" => {
                field.unsupported("not supported: write a retryPolicy, whose attempts come one after the other")?;
            }
            _ => field.unknown(&METHOD_FIELDS)?,
        }
    }
    match names {
        Some(names) if names.is_empty() => at.refuse("names no method"),
        Some(names) => Ok(names.into_iter().map(|name| (name, method.clone())).collect()),
        None => at.refuse("has no name"),
    }
}

const METHOD_FIELDS: [&str; 6] =
    ["name", "timeout", "waitForReady", "retryPolicy", "maxRequestMessageBytes", "maxResponseMessageBytes"];

fn method_name(at: &At<'_>) -> Read<String> {
    let (mut service, mut method) = ("", "");
    for (name, field) in at.fields()? {
        match name {
            "service" => service = field.text()?,
            "method" => method = field.text()?,
            // Without one of its fields, a name would name other methods.
            _ => return field.refuse("not known: expected service, method"),
        }
    }
    let is_name = |text: &str| !text.contains('/');
    match (service, method) {
        _ if !is_name(service) || !is_name(method) => at.expected("a name without a slash"),
        ("", "") => Ok(String::new()),
        ("", _) => at.refuse("names a method of no service"),
        (_, "") => Ok(service.to_owned()),
        _ => Ok(format!("{service}/{method}")),
    }
}

fn retry(at: &At<'_>) -> Read<RetryPolicy> {
    let (mut attempts, mut initial, mut max, mut multiplier, mut codes) = (None, None, None, None, None);
    let mut attempt_timeout = None;
    for (name, field) in at.fields()? {
        match name {
            "maxAttempts" => attempts = Some(field.whole()?),
            "initialBackoff" => initial = Some(field.duration()?),
            "maxBackoff" => max = Some(field.duration()?),
            "backoffMultiplier" => multiplier = Some(field.number()?),
            "retryableStatusCodes" => codes = Some(field.items()?.iter().map(At::code).collect::<Read<Vec<_>>>()?),
            "perAttemptRecvTimeout" => attempt_timeout = Some(field.duration()?),
            _ => field.unknown(&RETRY_FIELDS)?,
        }
    }
    let (Some(attempts), Some(initial), Some(max), Some(multiplier), Some(codes)) =
        (attempts, initial, max, multiplier, codes)
    else {
        let all = "maxAttempts, initialBackoff, maxBackoff, backoffMultiplier and retryableStatusCodes";
        return at.refuse(format!("has not all of {all}"));
    };
    let mut policy = RetryPolicy::new(codes).max_attempts(attempts).backoff(initial, max, multiplier);
    if let Some(timeout) = attempt_timeout {
        policy = policy.attempt_timeout(timeout);
    }
    checked(at, policy.check())?;
    Ok(policy)
}

const RETRY_FIELDS: [&str; 6] = [
    "maxAttempts",
    "initialBackoff",
    "maxBackoff",
    "backoffMultiplier",
    "retryableStatusCodes",
    "perAttemptRecvTimeout",
];

/// `retryThrottling`.
pub(super) fn throttling(at: &At<'_>) -> Read<RetryThrottling> {
    let (mut tokens, mut ratio) = (None, None);
    for (name, field) in at.fields()? {
        match name {
            "maxTokens" => tokens = Some(field.whole()?),
            "tokenRatio" => ratio = Some(field.number()?),
            _ => field.unknown(&["maxTokens", "tokenRatio"])?,
        }
    }
    let (Some(tokens), Some(ratio)) = (tokens, ratio) else {
        return at.refuse("has not both of maxTokens and tokenRatio");
    };
    let throttling = RetryThrottling::new(tokens, ratio);
    checked(at, throttling.check())?;
    Ok(throttling)
}

/// What the option that is wired says of its values.
pub(super) fn checked(at: &At<'_>, result: Result<(), ConfigError>) -> Read<()> {
    result.or_else(|error| at.refuse(error.to_string()))
}

impl At<'_> {
    fn code(&self) -> Read<Code> {
        let code = match self.value {
            Value::String(name) => codes::of_name(name),
            Value::Number(number) => number.as_u64().and_then(|number| codes::of_number(usize::try_from(number).ok()?)),
            _ => None,
        };
        code.map_or_else(|| self.expected("a status code"), Ok)
    }
}
