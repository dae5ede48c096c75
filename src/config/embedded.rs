//! Settings of the embedded broker.

use std::path::PathBuf;

use clap::Args;

use crate::broker::memory::{DataFolder, SyncPolicy};

/// The embedded broker, which serves without Redis.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Embedded broker")]
pub struct EmbeddedArgs {
    /// Folder in which the embedded broker keeps its data, created if missing. Excludes --redis-url. If left out, a
    /// restart loses all data.
    #[arg(long, env = "ROOMCAST_DATA_DIR", value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,

    /// When data in --data-dir is forced to disk: `always`, before a client sees it, or `everysec`, once a second. With
    /// `everysec` a power cut loses the last second; a killed process, nothing.
    #[arg(
        long,
        env = "ROOMCAST_DATA_SYNC",
        value_enum,
        default_value = "always",
        value_name = "POLICY",
        hide_possible_values = true
    )]
    pub data_sync: SyncPolicy,

    /// Bytes of events and values in memory. Writes beyond them get 503 `out_of_memory`; 0 refuses every write.
    #[arg(
        id = "embedded-max-bytes",
        long,
        env = "ROOMCAST_EMBEDDED_MAX_BYTES",
        default_value_t = 512 * 1024 * 1024,
        value_name = "BYTES"
    )]
    pub max_bytes: usize,
}

impl EmbeddedArgs {
    /// The data folder, if there is one.
    pub fn data_folder(&self) -> Option<DataFolder> {
        self.data_dir.clone().map(|path| DataFolder { path, sync: self.data_sync })
    }
}
