//! The API: a file a resource.

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
