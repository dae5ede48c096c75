//! What an error of Redis means: which fault it is, and whether the write may have happened all the same.

use redis::RedisError;

use crate::broker::{BrokerError, Fault, FaultKind};

/// The fault behind an error. Matched by code: the library knows some of these codes only as extensions.
pub(super) fn fault_from(error: &RedisError) -> Fault {
    let kind = match error.code() {
        Some("OOM") => FaultKind::OutOfMemory,
        Some("READONLY") => FaultKind::ReadOnly,
        Some("NOREPLICAS") => FaultKind::NoReplicas,
        Some("MISCONF") => FaultKind::Misconfigured,
        Some("LOADING" | "MASTERDOWN") => FaultKind::Loading,
        Some("BUSY") => FaultKind::Busy,
        Some("NOPERM" | "NOAUTH" | "WRONGPASS") => FaultKind::NotPermitted,
        None if error.is_timeout() => FaultKind::TimedOut,
        None if error.kind() == redis::ErrorKind::AuthenticationFailed => FaultKind::NotPermitted,
        None if error.is_io_error() => FaultKind::Unreachable,
        _ => FaultKind::Failed,
    };
    Fault::new(kind, error.to_string())
}

/// Whether the connection is of no more use.
pub(super) fn breaks_connection(error: &RedisError) -> bool {
    // A timeout does not count as a lost connection to the library, which would keep a half-open one for ever.
    error.is_timeout() || error.is_io_error() || error.is_unrecoverable_error()
}

/// A command that only reads, or may be repeated.
pub(super) fn read_error(error: &RedisError) -> BrokerError {
    if is_wrong_type(error) { BrokerError::WrongType } else { BrokerError::Unavailable(fault_from(error)) }
}

/// A command that writes. Unless the server itself said that it was refused, it may have been done.
pub(super) fn write_error(error: &RedisError) -> BrokerError {
    if is_wrong_type(error) {
        return BrokerError::WrongType;
    }
    let fault = fault_from(error);
    let refused = error.is_connection_refusal()
        || !matches!(fault.kind, FaultKind::TimedOut | FaultKind::Unreachable | FaultKind::Failed)
        || matches!(error.code(), Some("NOSCRIPT" | "CROSSSLOT" | "CLUSTERDOWN" | "MOVED" | "ASK" | "TRYAGAIN"));
    if refused { BrokerError::Unavailable(fault) } else { BrokerError::OutcomeUnknown(fault) }
}

fn is_wrong_type(error: &RedisError) -> bool {
    // Inside a script's error the code may be wrapped in the text.
    error.code() == Some("WRONGTYPE") || error.to_string().contains("WRONGTYPE")
}
