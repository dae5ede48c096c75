//! Variables of the environment that look like settings and are none.

use std::collections::{BTreeMap, BTreeSet};

use clap::CommandFactory;

use super::{CommandLine, is_flag_for_listen};

const PREFIX: &str = "ROOMCAST_";
/// How similar two names are, 0 to 1, so that one may be meant for the other.
const LEAST_SIMILARITY: f64 = 0.7;

/// Warns of each variable that is no setting, with the setting that it may be meant for.
pub(super) fn warn_of_unknown() {
    let command = CommandLine::command();
    let commands = std::iter::once(&command).chain(command.get_subcommands());
    let settings: BTreeSet<_> = commands
        .flat_map(|command| command.get_arguments().filter_map(|known| known.get_env()?.to_str()))
        .collect();
    let set: BTreeMap<_, _> = std::env::vars_os().collect();
    for (variable, value) in set {
        let variable = variable.to_string_lossy();
        let Some(name) = variable.strip_prefix(PREFIX) else { continue };
        if settings.contains(&*variable) || is_service_link(name, &value.to_string_lossy()) {
            continue;
        }
        let similarity = |setting: &&str| match *setting {
            "ROOMCAST_LISTEN" if is_flag_for_listen(&format!("--{}", name.to_lowercase())) => 1.0,
            setting => strsim::jaro_winkler(name, setting.trim_start_matches(PREFIX)),
        };
        let nearest = settings.iter().copied().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
        if let Some(nearest) = nearest.filter(|nearest| similarity(nearest) >= LEAST_SIMILARITY) {
            tracing::warn!(%variable, "this variable is no setting and is ignored; did you mean {nearest}?");
        } else {
            tracing::warn!(%variable, "this variable is no setting and is ignored; `roomcast --help` lists all");
        }
    }
}

/// Whether Kubernetes sets the variable in every container beside a service whose name begins with `roomcast`.
fn is_service_link(name: &str, value: &str) -> bool {
    let name = format!("_{name}");
    ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT_"].iter().any(|part| name.contains(part))
        || value.starts_with("tcp://")
}
