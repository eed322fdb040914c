//! What the environment says to commands that read and write checkpoints.

use std::ffi::OsString;
use std::path::PathBuf;

use tpad_store::OriginOptions;

/// Credentials of object stores and the user's directories.
pub(crate) struct Surroundings {
    /// How to reach object stores.
    pub(crate) stores: OriginOptions,
    /// The directory for what can be made again; `None` when the user has none.
    pub(crate) cache: Option<PathBuf>,
}

/// Options of commands that read checkpoints.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Object stores")]
pub(crate) struct StoreArgs {
    /// Take credentials from the machine: web identity, task role or metadata server
    #[arg(long)]
    instance_credentials: bool,
}

impl Surroundings {
    /// What `variable` answers to the names that other tools read as well.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |name: &str| variable(name).and_then(|value| value.into_string().ok());
        let directory = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || directory("HOME").map(|home| home.join(".cache"));
        Self {
            stores: OriginOptions::from_variables(text),
            cache: directory("XDG_CACHE_HOME").or_else(home),
        }
    }

    /// How to reach object stores, with what the command line adds.
    pub(crate) fn stores(&self, args: &StoreArgs) -> OriginOptions {
        let instance_credentials = self.stores.instance_credentials || args.instance_credentials;
        OriginOptions { instance_credentials, ..self.stores.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_desktop_says() {
        let of = |pairs: &[(&str, &str)]| {
            let find = |name: &str| {
                pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into())
            };
            Surroundings::of(find).cache
        };
        assert_eq!(of(&[("HOME", "/h")]), Some("/h/.cache".into()));
        assert_eq!(of(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]), Some("/c".into()));
        assert_eq!(of(&[("HOME", "/h"), ("XDG_CACHE_HOME", "c")]), Some("/h/.cache".into()));
        assert_eq!(of(&[]), None);
    }
}
