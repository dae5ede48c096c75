//! How many bytes the memory may hold, and how many each thing in it counts.
//!
//! Sizes are estimates: the bytes of texts and values, and a fixed overhead for the structures around them.

use crate::broker::{BrokerError, Fault, FaultKind, Removal};
use crate::names::{HashName, Topic};

/// The size of an entry, a field or a member beside its bytes.
pub const OVERHEAD_BYTES: usize = 128;
/// The size of a log beside its name: its head, and its place in a table.
pub const LOG_BYTES: usize = 608;
/// The size of a hash beside its name: its place in a table, and one for its first eleven fields.
const HASH_BYTES: usize = 768;
/// The size of an idempotency key with its digests and its answer.
pub const IDEMPOTENCY_KEY_BYTES: usize = 320;
/// This fraction of the limit is kept for removals: a caller that has filled the rest can be removed.
const RESERVE_DIVISOR: usize = 64;
/// The size of a small publish. If it does not fit, the broker is degraded.
const PUBLISH_BYTES: usize = 1024 + LOG_BYTES + OVERHEAD_BYTES + IDEMPOTENCY_KEY_BYTES;
/// A refused write counts for health with at most this fraction of the limit: if only larger writes fail, the broker is
/// well.
const REFUSED_DIVISOR: usize = 8;

/// The size of a log without its entries.
pub fn log_bytes(topic: &Topic) -> usize {
    LOG_BYTES + topic.name().len()
}

/// The size of a hash without its fields.
pub fn hash_bytes(hash: &HashName) -> usize {
    HASH_BYTES + hash.as_str().len()
}

/// The size of a hash's expiry: its place in two tables, with two names.
pub fn expiry_bytes(hash: &HashName) -> usize {
    2 * OVERHEAD_BYTES + hash.as_str().len()
}

/// The size of a log's entry.
pub fn entry_bytes(stored: &[u8]) -> usize {
    stored.len() + OVERHEAD_BYTES
}

/// The size of a hash's field.
pub fn field_bytes(field: &str, value: &[u8]) -> usize {
    field.len() + value.len() + OVERHEAD_BYTES
}

/// The size of a member.
pub fn member_bytes(profile: &str) -> usize {
    profile.len() + OVERHEAD_BYTES
}

/// The size of a removal.
pub fn removal_bytes(removal: &Removal) -> usize {
    let texts = [removal.user.as_deref(), removal.token.as_deref()];
    2 * OVERHEAD_BYTES + texts.into_iter().flatten().map(str::len).sum::<usize>()
}

/// The bytes that the memory holds, and their limit.
pub struct ByteBudget {
    used: usize,
    limit: usize,
    /// The part of the limit that only removals may use.
    reserve: usize,
    /// The largest write that was refused since the last one that would have fit.
    refused: usize,
}

impl ByteBudget {
    pub fn new(limit: usize) -> Self {
        Self { used: 0, limit, reserve: limit / RESERVE_DIVISOR, refused: 0 }
    }

    pub fn used(&self) -> usize {
        self.used
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Counts bytes that are held from now on. Does not check the limit: a step checks what it adds with
    /// [`Self::require`] before its first change.
    pub fn charge(&mut self, bytes: usize) {
        self.used += bytes;
    }

    /// Counts bytes that are no longer held.
    pub fn release(&mut self, bytes: usize) {
        self.used -= bytes;
    }

    /// Fails if there is no room for so many more bytes.
    pub fn require(&mut self, bytes: usize) -> Result<(), BrokerError> {
        if self.used + bytes <= self.limit - self.reserve {
            return Ok(());
        }
        self.refused = self.refused.max(bytes.min(self.limit / REFUSED_DIVISOR));
        Err(self.full())
    }

    /// Fails if there is no room for a removal of so many bytes.
    pub fn require_for_removal(&self, bytes: usize) -> Result<(), BrokerError> {
        if self.used + bytes <= self.limit { Ok(()) } else { Err(self.full()) }
    }

    fn full(&self) -> BrokerError {
        let detail = format!("the embedded broker is full: it holds at most {} bytes", self.limit);
        BrokerError::Unavailable(Fault::new(FaultKind::OutOfMemory, detail))
    }

    /// Why writes fail, if there is no room for a small publish or for a write of a size that was refused recently.
    pub fn fault(&mut self) -> Option<Fault> {
        let refused = std::mem::take(&mut self.refused);
        match self.require(PUBLISH_BYTES.max(refused)) {
            Err(BrokerError::Unavailable(fault)) => Some(fault),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_refused_beyond_the_limit_and_fit_again_after_a_release() {
        let mut budget = ByteBudget::new(64_000);
        budget.charge(62_000);
        assert!(budget.require(1000).is_ok());
        assert!(budget.require(1001).is_err());
        assert!(budget.require_for_removal(2000).is_ok());
        assert!(budget.require_for_removal(2001).is_err());
        budget.release(1);
        assert!(budget.require(1001).is_ok());
        assert_eq!(budget.used(), 61_999);
    }

    #[test]
    fn health_reports_a_refused_write_until_it_would_fit() {
        let mut budget = ByteBudget { reserve: 0, ..ByteBudget::new(100_000) };
        budget.charge(95_000);
        assert_eq!(budget.fault(), None, "a small publish fits");
        assert!(budget.require(6000).is_err());
        assert!(budget.fault().is_some() && budget.fault().is_some());
        budget.release(1000);
        assert_eq!(budget.fault(), None);
        budget.charge(1000);
        assert_eq!(budget.fault(), None, "the refused write would have fit meanwhile");
        // A write of the whole limit is refused, and yet a usual one fits.
        assert!(budget.require(100_000).is_err());
        budget.release(10_000);
        assert_eq!(budget.fault(), None);
    }
}
