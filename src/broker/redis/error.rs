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
        Some("NOPERM" | "NOAUTH" | "WRONGPASS") => FaultKind::NotPermitted,
        // In a script: Redis 7.0, and later versions.
        _ if ["The user executing the script", "ACL failure in script"]
            .iter()
            .any(|refusal| error.to_string().contains(refusal)) =>
        {
            FaultKind::NotPermitted
        }
        None if error.is_timeout() => FaultKind::TimedOut,
        None if error.kind() == redis::ErrorKind::AuthenticationFailed => FaultKind::NotPermitted,
        None if error.is_io_error() => FaultKind::Unreachable,
        _ => FaultKind::Failed,
    };
    Fault::new(kind, error.to_string())
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
    let is_refused = error.is_connection_refusal()
        || !matches!(fault.kind, FaultKind::TimedOut | FaultKind::Unreachable | FaultKind::Failed)
        || matches!(error.code(), Some("NOSCRIPT" | "CROSSSLOT" | "CLUSTERDOWN" | "MOVED" | "ASK" | "TRYAGAIN"));
    if is_refused { BrokerError::Unavailable(fault) } else { BrokerError::OutcomeUnknown(fault) }
}

fn is_wrong_type(error: &RedisError) -> bool {
    // In a script's error the code may be within the text.
    error.code() == Some("WRONGTYPE") || error.to_string().contains("WRONGTYPE")
}
