//! The handlers of the API. Each resource has a file of its own.

pub mod batch;
pub mod events;
pub mod hashes;
pub mod health;
pub mod metrics;
pub mod moderation;
pub mod replicas;
pub mod rooms;
pub mod streams;
pub mod subscribers;
