//! `roomcast openapi`: prints the OpenAPI document.

use clap::Args;

use crate::config::OpenApiVersion;
use crate::http;

/// The arguments of `roomcast openapi`.
#[derive(Args, Debug)]
pub struct OpenapiArgs {
    /// Version of OpenAPI. 3.2 also describes the items of streams.
    #[arg(long, value_enum, default_value = "3.1")]
    version: OpenApiVersion,
}

pub(super) fn run(arguments: &OpenapiArgs) {
    super::print(http::openapi::text(arguments.version).trim_end());
}
