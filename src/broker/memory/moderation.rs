//! The contract for removals, in memory.

use std::ops::Bound;

use async_trait::async_trait;

use super::MemoryBroker;
use super::journal::DurableAt;
use crate::broker::{BrokerError, ModerationStore, Removal, StoredRemoval};

#[async_trait]
impl ModerationStore for MemoryBroker {
    async fn store_removal(&self, removal: &Removal) -> Result<(), BrokerError> {
        let lsn = {
            let mut state = self.state();
            self.check_journal()?;
            let (outcome, lsn) = self.run(&mut state, |transaction| transaction.add_removal(removal));
            outcome?;
            lsn
        };
        match lsn {
            Some(lsn) => self.wait_write(DurableAt::Own(lsn)).await,
            None => Ok(()),
        }
    }

    async fn removals(&self, after: Option<&str>) -> Result<Vec<StoredRemoval>, BrokerError> {
        let after = after.and_then(|after| after.parse::<u64>().ok()).map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state();
        let found = state.removals().range((after, Bound::Unbounded));
        Ok(found.map(|(id, removal)| (id.to_string(), removal.clone())).collect())
    }
}
