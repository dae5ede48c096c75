//! Why streams end: the names in `stream.end` and in metrics, and whether the client should come back.

/// Why the gateway ends a stream, or refuses it for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The replica is leaving.
    Draining,
    /// The stream has lived for its lifetime.
    Lifetime,
    /// The stream's token has expired.
    TokenExpired,
    /// The stream's token was revoked.
    TokenRevoked,
    /// The stream was removed, and may be opened again.
    Removed,
    /// The stream was removed, and may not be opened again for a time.
    Banned,
    /// A later stream of the same subscriber has taken its place.
    Superseded,
    /// The caller, its address or all callers together are over a rate limit.
    TooManyRequests,
    /// The caller or its address has all the streams that it may have.
    TooManyStreams,
    /// The replica has all the connections that it may have.
    TooManyConnections,
    /// The broker is away, or the keys for tokens are.
    Unavailable,
}

impl EndReason {
    /// The reason of a stream that the client has left, in metrics.
    pub const DISCONNECTED: &'static str = "disconnected";

    /// The name in `stream.end` and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Lifetime => "lifetime",
            Self::TokenExpired => "token_expired",
            Self::TokenRevoked => "token_revoked",
            Self::Removed | Self::Banned => "removed",
            Self::Superseded => "superseded",
            Self::TooManyRequests => "too_many_requests",
            Self::TooManyStreams => "too_many_streams",
            Self::TooManyConnections => "too_many_connections",
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
            | Self::Unavailable => "later",
            Self::TokenExpired | Self::TokenRevoked | Self::Banned | Self::Superseded => "never",
        }
    }
}
