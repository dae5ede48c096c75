//! Faults under load: every acknowledged event arrives once and in order, or a gap covers precisely the missing
//! events. Twelve publishers, fifty subscribers that reconnect as `EventSource` does, three replicas as processes,
//! one real Redis.

mod announcements;
mod clients;
mod data;
mod failovers;
mod links;
pub mod outcome;
mod redis;
mod replicas;
mod soak;
mod stage;
mod watched_hashes;
