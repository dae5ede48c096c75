//! Why streams end: the names of the reasons, and whether a client should reconnect.

/// Why the gateway ends a stream, or refuses to open it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The replica is shutting down.
    Draining,
    /// The stream has reached the end of its lifetime.
    Lifetime,
    /// The stream's token has expired.
    TokenExpired,
    /// The stream's token was revoked.
    TokenRevoked,
    /// All rooms of the stream are finished, and it has told all that they have.
    Finished,
    /// The stream was removed. The client may open it again at once.
    Removed,
    /// The stream was removed. The client may not open it again for a time.
    Banned,
    /// A newer stream of the same subscriber has replaced the stream.
    Superseded,
    /// The caller, its address or all callers together have reached a rate limit.
    TooManyRequests,
    /// The caller or its address has reached its limit of open streams.
    TooManyStreams,
    /// The replica has reached its limit of connections.
    TooManyConnections,
    /// The client has taken several snapshots of a hash too slowly.
    TooSlow,
    /// A hash has become too large to be watched.
    HashTooLarge,
    /// The broker is unavailable, or the keys for tokens are.
    Unavailable,
}

/// How a stream's response ends after `stream.end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// Properly, as a complete body.
    #[default]
    Proper,
    /// By a cut, if the client should reconnect: some clients reconnect only after an error.
    Cut,
}

impl Ending {
    /// Whether the connection is cut after a stream that ends for this reason.
    pub fn cuts(self, reason: EndReason) -> bool {
        self == Self::Cut && reason.reconnect() != "never"
    }
}

impl EndReason {
    /// The label in metrics of a stream whose client has disconnected.
    pub const DISCONNECTED: &'static str = "disconnected";
    /// The label in metrics of a read that has waited for events, and got some.
    pub const ANSWERED: &'static str = "answered";

    /// The name in `stream.end` and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Lifetime => "lifetime",
            Self::TokenExpired => "token_expired",
            Self::TokenRevoked => "token_revoked",
            Self::Finished => "finished",
            Self::Removed | Self::Banned => "removed",
            Self::Superseded => "superseded",
            Self::TooManyRequests => "too_many_requests",
            Self::TooManyStreams => "too_many_streams",
            Self::TooManyConnections => "too_many_connections",
            Self::TooSlow => "too_slow",
            Self::HashTooLarge => "hash_too_large",
            Self::Unavailable => "unavailable",
        }
    }

    /// When the client should reconnect: `now`, `later` or `never`.
    pub const fn reconnect(self) -> &'static str {
        match self {
            Self::Draining | Self::Lifetime => "now",
            Self::Removed
            | Self::TooManyRequests
            | Self::TooManyStreams
            | Self::TooManyConnections
            | Self::TooSlow
            | Self::Unavailable => "later",
            Self::TokenExpired
            | Self::TokenRevoked
            | Self::Finished
            | Self::Banned
            | Self::Superseded
            | Self::HashTooLarge => "never",
        }
    }
}
