//! House rules that no linter knows.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::run::{root, say, tracked};

/// Above this a file is probably more than one concept; it is said, not
/// refused.
const LONG_FILE_LINES: usize = 600;

/// Marks of work that was left unfinished.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("#[ig", "nore")];

/// Where `unsafe` may be: ARCHITECTURE.md's invariant. The compiler denies it
/// elsewhere, unless a module says that it expects it: that is looked for.
const MAY_BE_UNSAFE: &[&str] = &[
    "crates/tpad-store/src/arena/",
    "crates/tpad-store/src/nvme/reader/ring.rs",
    "crates/tpad-cuda/src/",
    "crates/tpad-hbm/src/host.rs",
    "crates/tpad-client/src/bulk/low_water.rs",
    "crates/tpad-client/src/handoff/mapping.rs",
    "crates/tpad-handoff/src/memory/",
    "crates/tpad-python/src/dlpack.rs",
    "crates/tpad-python/src/runtime.rs",
    "crates/tpad-python/src/tensor.rs",
    // A test: what its threads share is shared by hand, for loom to check.
    "crates/tpad-handoff/src/model.rs",
    "crates/tpad/src/handoff/peer.rs",
];

/// How a module says so.
const EXPECTS_UNSAFE: &str = concat!("expect(unsafe", "_code");

/// Reads every tracked text file.
pub(crate) fn check() -> Result<()> {
    let machine = machine_paths();
    let mut broken = Vec::new();
    for path in tracked()? {
        let bytes = std::fs::read(root().join(&path))
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let Ok(text) = String::from_utf8(bytes) else { continue };
        broken.extend(problems(&path, &text, &machine));
        let lines = text.lines().count();
        if path.extension().is_some_and(|extension| extension == "rs") && lines > LONG_FILE_LINES {
            say(&format!("warning: {} has {lines} lines: is it one concept?", path.display()));
        }
    }
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    Ok(())
}

/// Paths that only exist on the machine that this runs on.
fn machine_paths() -> Vec<String> {
    let home = std::env::var("HOME").unwrap_or_default();
    let paths = [root().to_string_lossy().into_owned(), home];
    let long_enough = |path: &String| path.len() > 4;
    paths.into_iter().filter(long_enough).map(|path| path + "/").collect()
}

fn problems(path: &Path, text: &str, machine: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let place = format!("{}:{}", path.display(), n + 1);
        if let Some(path) = machine.iter().find(|path| line.contains(path.as_str())) {
            found.push(format!("{place}: {path} is a path of this machine alone"));
        }
        let may = MAY_BE_UNSAFE.iter().any(|place| path.starts_with(place));
        if line.contains(EXPECTS_UNSAFE) && !may {
            found.push(format!("{place}: unsafe code is for {}", MAY_BE_UNSAFE.join(" and ")));
        }
        let source = path.extension().is_some_and(|extension| extension == "rs");
        if let Some(mark) = UNFINISHED.iter().find(|mark| source && line.contains(**mark)) {
            found.push(format!("{place}: {mark}: finish it, or say it in the documentation"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_machine_and_unfinished_work_are_found_where_they_stand() {
        let text = format!("fine\nread /somewhere/else/x\n// {}\n", UNFINISHED[0]);
        let machine = ["/somewhere/else/".to_owned()];
        let found = problems(Path::new("a.rs"), &text, &machine);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("a.rs:2:"), "{found:?}");
        assert!(found[1].starts_with("a.rs:3:"), "{found:?}");
        assert_eq!(problems(Path::new("a.md"), &text, &[]), Vec::<String>::new());
    }

    #[test]
    fn unsafe_code_is_found_where_it_may_not_be() {
        let text = format!("#![{EXPECTS_UNSAFE}, reason = \"because\")]\n");
        let found = |path: &str| problems(Path::new(path), &text, &[]).len();
        assert_eq!(found("crates/tpad-store/src/arena/part.rs"), 0);
        assert_eq!(found("crates/tpad-store/src/nvme/reader/ring.rs"), 0);
        assert_eq!(found("crates/tpad-store/src/nvme/reader.rs"), 1);
        assert_eq!(found("crates/tpad-engine/src/engine.rs"), 1);
    }
}
