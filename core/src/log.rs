//! The rules of a log: its epochs, its losses, and what follows a position in it. Pure: no I/O and no clock, so that
//! properties and a model checker can test it.
//!
//! An [`EpochHistory`] describes the log's past: its epochs in order, the last offset of each, and the recorded losses.
//! [`EpochHistory::next_after`] decides from the history and the retained entries what follows a position: an event, a
//! gap, or nothing yet. [`Head`] changes the history: every step that reads or writes a log's head begins with
//! [`Head::ensure_epoch`], in whichever broker stores it.

mod gap;
mod head;
mod history;
mod next;
mod unwritten;

pub use gap::{Gap, GapReason, ReportedLoss};
pub use head::{EntryKind, Head, KEPT_EPOCHS, StepContext};
pub use history::{Epoch, EpochHistory, LateLoss};
pub use next::{LogView, Next, Retained};
pub use unwritten::DataSet;

#[cfg(test)]
mod tests;
