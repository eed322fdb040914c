//! `tpactl load`: a daemon serves one more model, or a newer revision.

use std::path::Path;

use serde::Serialize;
use tpad_client::{Client, LoadModel, LoadOutcome, LoadedModel};

use crate::failure::Failure;
use crate::output::{Output, printable};

/// Make the daemon serve one more model, or another revision of one
///
/// With ROOT the model is added; the command ends when it is served, and nothing is added when it
/// cannot be. Without ROOT a model that the daemon has is loaded again: a newer revision, or what
/// failed before, is picked up without losing a request; tiers that it adds are brought home first,
/// as far as --timeout allows. With --revision this daemon alone serves that revision and stays on
/// it, with --follow it goes back to what the root names. The next start of the daemon has the
/// configuration's models again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl load mixtral /models/mixtral
  tpactl load mixtral s3://models/mixtral --origin-of olmoe
  tpactl load mixtral
  tpactl load mixtral --revision 3
  tpactl load mixtral --follow")]
pub(crate) struct Args {
    /// What requests call the model
    #[arg(value_name = "MODEL")]
    model: String,

    /// The checkpoint's root, or the URL of one revision; a path is one of the daemon's machine
    #[arg(value_name = "ROOT")]
    root: Option<String>,

    /// Serve this revision of the model's root, and stay on it
    #[arg(long, value_name = "N", conflicts_with = "root")]
    revision: Option<u64>,

    /// Serve what the model's root names, and follow that again
    #[arg(long, conflicts_with_all = ["root", "revision"])]
    follow: bool,

    /// Let the manifest's objects_base point here too; may be repeated
    #[arg(long, value_name = "URL", requires = "root")]
    allow_base: Vec<String>,

    /// Reach ROOT with the endpoint and credentials of this model [default: those of the
    /// daemon's environment]
    #[arg(long, value_name = "M", requires = "root")]
    origin_of: Option<String>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    #[serde(flatten)]
    loaded: LoadedModel,
}

pub(crate) async fn run(args: Args, client: &Client, output: &Output) -> Result<(), Failure> {
    let Args { model, root, revision, follow, allow_base, origin_of } = args;
    let loaded = match root {
        None => match revision {
            Some(revision) => client.admin().stay_on(&model, revision).await?,
            None if follow => client.admin().follow_root(&model).await?,
            None => client.admin().reload_model(&model).await?,
        },
        Some(root) => {
            let request = LoadModel {
                model: model.clone(),
                root: absolute(root)?,
                allowed_bases: allow_base.into_iter().map(absolute).collect::<Result<_, _>>()?,
                origin_of: origin_of.unwrap_or_default(),
            };
            client.admin().load_model(request).await?
        }
    };
    if output.is_json() {
        return output.json(&Report { model, loaded });
    }
    let LoadedModel { outcome, revision, generation } = loaded;
    let done = match outcome {
        LoadOutcome::Loaded => "is served now",
        LoadOutcome::Reloaded => "serves another revision now",
        LoadOutcome::Unchanged => "is as it was",
        _ => "was loaded",
    };
    let model = printable(&model);
    output.text(format_args!("{model} {done}: revision {revision}, generation {generation}"))
}

/// A path as seen from here; URLs as they are.
fn absolute(root: String) -> Result<String, Failure> {
    if root.contains("://") {
        return Ok(root);
    }
    let path = std::path::absolute(Path::new(&root))
        .map_err(|error| Failure::local(format!("{root}: {error}")))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| Failure::local(format!("{}: not UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_absolute_and_urls_are_not() {
        for root in ["s3://b/p", "/models/m", "file:///m"] {
            assert_eq!(absolute(root.to_owned()).ok().as_deref(), Some(root));
        }
        let relative = absolute("models/m".to_owned()).ok();
        assert!(relative.is_some_and(|path| path.starts_with('/') && path.ends_with("/models/m")));
    }
}
