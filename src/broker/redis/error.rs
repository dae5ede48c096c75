//! What an error of Redis means: which fault it is, and whether a write may have been done all the same.

use redis::RedisError;

use crate::broker::{BrokerError, Fault, FaultKind};

/// The fault behind an error. It is matched by code, since the library has no kind of its own for some codes.
pub(super) fn fault_from(error: &RedisError) -> Fault {
    let kind = match error.code() {
        Some("OOM") => FaultKind::OutOfMemory,
        Some("READONLY") => FaultKind::ReadOnly,
        Some("NOREPLICAS") => FaultKind::NoReplicas,
        Some("MISCONF") => FaultKind::Misconfigured,
        Some("LOADING" | "MASTERDOWN") => FaultKind::Loading,
        Some("BUSY") => FaultKind::Busy,
        Some("NOAUTH" | "WRONGPASS") => FaultKind::NotPermitted,
        _ if lacks_right(error) => FaultKind::NotPermitted,
        None if error.is_timeout() => FaultKind::TimedOut,
        None if error.kind() == redis::ErrorKind::AuthenticationFailed => FaultKind::NotPermitted,
        None if error.is_io_error() => FaultKind::Unreachable,
        _ => FaultKind::Failed,
    };
    let text = error.to_string();
    Fault::new(kind, remedy(error, &text).map(|remedy| format!("{text}: {remedy}")).unwrap_or(text))
}

/// Whether the user lacks a right. The library drops the code of an error of SELECT.
fn lacks_right(error: &RedisError) -> bool {
    // Those of scripts have no code either: the first is of Redis 7.0, the second of later versions.
    let texts = ["has no permissions to", "The user executing the script can't", "ACL failure in script"];
    let detail = error.detail().unwrap_or_default();
    error.code() == Some("NOPERM") || texts.iter().any(|text| detail.contains(text))
}

/// What to do about an error that only a change of settings ends.
fn remedy(error: &RedisError, text: &str) -> Option<&'static str> {
    Some(match error.code() {
        Some("WRONGPASS") => "check the user name and the password in --redis-url",
        Some("NOAUTH") => "--redis-url needs a password, as in redis://:password@host",
        _ if lacks_right(error) => "the Redis user lacks a right; docs/redis.md lists those that it needs",
        _ if text.contains("DB index is out of range") => {
            "check the database in --redis-url, the number after the last slash"
        }
        _ => return None,
    })
}

/// Whether the connection can't be used any more.
pub(super) fn breaks_connection(error: &RedisError) -> bool {
    // The library does not count a timeout as the end of a connection, and would keep a half-open one for ever.
    error.is_timeout() || error.is_io_error() || error.is_unrecoverable_error()
}

/// The error of a command that only reads, or that may be repeated.
pub(super) fn read_error(error: &RedisError) -> BrokerError {
    if is_wrong_type(error) { BrokerError::WrongType } else { BrokerError::Unavailable(fault_from(error)) }
}

/// The error of a command that writes. The write may have been done, unless the server has refused it.
pub(super) fn write_error(error: &RedisError) -> BrokerError {
    if is_wrong_type(error) {
        return BrokerError::WrongType;
    }
    let fault = fault_from(error);
    // A script checks its rights before its first write.
    let is_refused = error.is_connection_refusal()
        || !matches!(fault.kind, FaultKind::TimedOut | FaultKind::Unreachable | FaultKind::Failed)
        || matches!(error.code(), Some("NOSCRIPT" | "CROSSSLOT" | "CLUSTERDOWN" | "MOVED" | "ASK" | "TRYAGAIN"));
    if is_refused { BrokerError::Unavailable(fault) } else { BrokerError::OutcomeUnknown(fault) }
}

fn is_wrong_type(error: &RedisError) -> bool {
    // In a script's error the code may be within the text.
    error.code() == Some("WRONGTYPE") || error.to_string().contains("WRONGTYPE")
}
