//! `roomcast token`: makes a token for development.

use std::time::{Duration, SystemTime};

use clap::Args;

use super::CommandError;
use crate::auth::{self, NewToken, Permission};
use crate::config::{Secret, lifetime};

/// The arguments of `roomcast token`.
#[derive(Args, Debug)]
pub struct TokenArgs {
    /// Secret that signs the token: one of the gateway's. Of several, as during a rotation, the last one signs.
    #[arg(
        long,
        env = "ROOMCAST_JWT_HS256_SECRET",
        value_name = "SECRET",
        required = true,
        value_delimiter = ' ',
        hide_env_values = true
    )]
    jwt_hs256_secret: Vec<Secret>,
    /// User of the token (`sub`).
    #[arg(long, value_name = "SUBJECT")]
    sub: Option<String>,
    /// Rooms to publish to, as a pattern with `*`. Repeatable, like the other patterns.
    #[arg(long, value_name = "PATTERN")]
    publish: Vec<String>,
    /// Rooms to stream, and to read the log of.
    #[arg(long, value_name = "PATTERN")]
    subscribe: Vec<String>,
    /// Rooms whose members the user may see.
    #[arg(long, value_name = "PATTERN")]
    presence: Vec<String>,
    /// Hashes to read.
    #[arg(long, value_name = "PATTERN")]
    read: Vec<String>,
    /// Hashes to change.
    #[arg(long, value_name = "PATTERN")]
    write: Vec<String>,
    /// Every permission in all rooms and hashes, and the routes for admins.
    #[arg(long)]
    admin: bool,
    /// Time until the token expires, 1s to 365d.
    #[arg(long, default_value = "1h", value_parser = lifetime, value_name = "TIME")]
    lifetime: Duration,
    /// Issuer of the token (`iss`).
    #[arg(long, env = "ROOMCAST_JWT_ISSUER", value_name = "NAME")]
    issuer: Option<String>,
    /// Audience of the token (`aud`).
    #[arg(long, env = "ROOMCAST_JWT_AUDIENCE", value_name = "NAME")]
    audience: Option<String>,
}

pub(super) fn run(arguments: TokenArgs) -> Result<(), CommandError> {
    let (token, secret) = arguments.into_token();
    let token = auth::mint(token, secret.expose(), SystemTime::now()).map_err(CommandError::usage)?;
    super::print(&token);
    Ok(())
}

impl TokenArgs {
    /// The token to make, and the secret to sign it with.
    fn into_token(self) -> (NewToken, Secret) {
        let permissions = [
            (Permission::Publish, self.publish),
            (Permission::Subscribe, self.subscribe),
            (Permission::Presence, self.presence),
            (Permission::Read, self.read),
            (Permission::Write, self.write),
        ];
        let grants = permissions
            .into_iter()
            .flat_map(|(permission, patterns)| patterns.into_iter().map(move |pattern| (permission, pattern)));
        let secret = self.jwt_hs256_secret.into_iter().next_back().unwrap_or_default();
        let token = NewToken {
            subject: self.sub,
            grants: grants.collect(),
            admin: self.admin,
            lifetime: self.lifetime,
            issuer: self.issuer,
            audience: self.audience,
        };
        (token, secret)
    }
}
