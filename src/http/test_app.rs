//! A gateway for unit tests that go through its layers.

use std::sync::Arc;
use std::time::Duration;

use super::App;
use crate::auth::Access;
use crate::broker::memory::{MemoryBroker, MemorySettings};
use crate::config::Settings;
use crate::shutdown::Tasks;

/// A gateway with the embedded broker.
pub fn test_app() -> App {
    let mut settings = Settings::defaults();
    settings.streams.room_idle_ttl = Duration::ZERO;
    // Small, so that the broker becomes full, which is an answer too.
    settings.embedded.max_bytes = 16 * 1024 * 1024;
    let tasks = Tasks::default();
    let broker = Arc::new(MemoryBroker::new(MemorySettings {
        replica: "test".into(),
        lease: settings.presence.replica_lease,
        retention: settings.retention.policy(),
        max_bytes: settings.embedded.max_bytes,
    }));
    App::start(settings, broker, Access::open(), "test".into(), true, &tasks)
}
