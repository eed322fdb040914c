//! Which crate may know which: the direction of ARCHITECTURE.md, held against
//! what `cargo tree` says.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};

use crate::run::{cargo, output, root};

/// What one crate may depend on, tests apart.
struct Rule {
    name: &'static str,
    /// The crates of this workspace that it may name.
    ours: &'static [&'static str],
    /// Crates that it may not reach, by whatever way.
    unreachable: &'static [&'static str],
    /// Crates that it may not name itself, though it may reach them.
    unnamed: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        name: "tpad-manifest",
        ours: &[],
        unreachable: &["tokio", "tonic", "prost", "object_store", "cudarc"],
        unnamed: &[],
    },
    Rule {
        name: "tpad-index",
        ours: &["tpad-manifest"],
        unreachable: &["tokio", "tonic", "object_store", "cudarc"],
        unnamed: &[],
    },
    Rule {
        name: "tpad-handoff",
        ours: &[],
        unreachable: &["tokio", "tonic", "prost", "object_store", "cudarc"],
        unnamed: &[],
    },
    Rule {
        name: "tpad-cuda",
        ours: &[],
        unreachable: &["tokio", "tonic", "prost", "object_store"],
        unnamed: &[],
    },
    Rule {
        name: "tpad-store",
        ours: &["tpad-handoff", "tpad-manifest"],
        unreachable: &["tonic", "prost", "cudarc"],
        unnamed: &[],
    },
    Rule {
        name: "tpad-hbm",
        ours: &["tpad-cuda", "tpad-handoff", "tpad-manifest", "tpad-store"],
        unreachable: &["tonic", "prost"],
        unnamed: &["object_store", "cudarc"],
    },
    Rule {
        name: "tpad-engine",
        ours: &[
            "tpad-cuda",
            "tpad-handoff",
            "tpad-hbm",
            "tpad-manifest",
            "tpad-index",
            "tpad-store",
        ],
        unreachable: &["tonic"],
        unnamed: &["object_store", "prost", "cudarc"],
    },
    Rule {
        name: "tpad-proto",
        ours: &["tpad-manifest"],
        unreachable: &["object_store", "cudarc"],
        unnamed: &[],
    },
    Rule {
        name: "tpad-client",
        ours: &["tpad-proto", "tpad-handoff", "tpad-manifest", "tpad-cuda"],
        unreachable: &["object_store"],
        unnamed: &["cudarc"],
    },
    Rule {
        name: "tpad-publish",
        ours: &["tpad-manifest", "tpad-index", "tpad-store"],
        unreachable: &["tonic", "cudarc"],
        unnamed: &["object_store"],
    },
    Rule {
        name: "tpad",
        ours: &[
            "tpad-manifest",
            "tpad-index",
            "tpad-store",
            "tpad-cuda",
            "tpad-engine",
            "tpad-hbm",
            "tpad-proto",
            "tpad-client",
            "tpad-publish",
        ],
        unreachable: &[],
        unnamed: &["object_store", "cudarc"],
    },
    Rule {
        name: "tpactl",
        ours: &["tpad-client", "tpad-publish", "tpad-store", "tpad-manifest"],
        unreachable: &[],
        unnamed: &["object_store", "tonic", "prost", "cudarc"],
    },
    Rule {
        name: "tpad-python",
        ours: &["tpad-client", "tpad-publish", "tpad-store", "tpad-manifest"],
        unreachable: &[],
        unnamed: &["object_store", "tonic", "prost", "cudarc"],
    },
    Rule { name: "xtask", ours: &[], unreachable: &["tokio"], unnamed: &[] },
];

/// Holds every crate of the workspace against its rule.
pub(crate) fn check() -> Result<()> {
    let mut broken = Vec::new();
    for rule in RULES {
        broken.extend(rule.broken_by(&tree(rule.name, &["--depth", "1"])?, &tree(rule.name, &[])?));
    }
    for entry in root().join("crates").read_dir().context("crates/ cannot be read")? {
        // A crate's directory has its name.
        let name = entry.context("crates/ cannot be read")?.file_name();
        if !RULES.iter().any(|rule| *rule.name == *name) {
            broken.push(format!("{} has no rule in xtask/src/boundary.rs", name.display()));
        }
    }
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    Ok(())
}

/// The names of a crate's normal dependencies, without the crate itself.
fn tree(name: &str, extra: &[&str]) -> Result<BTreeSet<String>> {
    let mut command = cargo();
    command.args(["tree", "--locked", "-e", "normal", "--prefix", "none", "--format", "{p}"]);
    Ok(names(&output(command.args(["-p", name]).args(extra))?, name))
}

fn names(listing: &str, own: &str) -> BTreeSet<String> {
    let first_words = listing.lines().filter_map(|line| line.split_whitespace().next());
    first_words.filter(|name| *name != own).map(str::to_owned).collect()
}

fn ours(names: &BTreeSet<String>) -> impl Iterator<Item = &str> {
    names.iter().map(String::as_str).filter(|name| name.starts_with("tpa") || *name == "xtask")
}

impl Rule {
    fn broken_by(&self, direct: &BTreeSet<String>, all: &BTreeSet<String>) -> Vec<String> {
        let mut broken = Vec::new();
        for name in ours(direct).filter(|name| !self.ours.contains(name)) {
            broken.push(format!("{} depends on {name}: the arrow points the other way", self.name));
        }
        for name in self.unreachable.iter().filter(|name| all.contains(**name)) {
            broken.push(format!("{} reaches {name}: `cargo tree -p {0} -i {name}`", self.name));
        }
        for name in self.unnamed.iter().filter(|name| direct.contains(**name)) {
            broken.push(format!("{} names {name}: that is for the crates below it", self.name));
        }
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
tpad-store v0.1.0 (/somewhere/tpad-store)
object_store v0.14.2
prost v0.14.6
tpad-engine v0.1.0 (/somewhere/tpad-engine)
tpad-manifest v0.1.0 (/somewhere/tpad-manifest) (*)
tracing v0.1.44
";

    fn rule(name: &str) -> &'static Rule {
        RULES.iter().find(|rule| rule.name == name).expect("a rule")
    }

    #[test]
    fn an_arrow_upwards_and_a_forbidden_crate_are_both_named() {
        let found = names(LISTING, "tpad-store");
        let broken = rule("tpad-store").broken_by(&found, &found);
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert!(broken[0].contains("tpad-engine"), "{broken:?}");
        assert!(broken[1].contains("prost"), "{broken:?}");
    }

    #[test]
    fn a_crate_may_be_reached_where_it_may_not_be_named() {
        let all = names(LISTING, "tpad-engine");
        let direct = BTreeSet::from(["tpad-store".to_owned(), "tpad-manifest".to_owned()]);
        assert_eq!(rule("tpad-engine").broken_by(&direct, &all), Vec::<String>::new());
        let named = rule("tpad-engine").broken_by(&all, &all);
        assert!(named.iter().any(|line| line.contains("names object_store")), "{named:?}");
    }

    #[test]
    fn rules_have_no_cycle() {
        for (n, rule) in RULES.iter().enumerate() {
            for below in rule.ours {
                let position = RULES.iter().position(|other| other.name == *below);
                assert!(position.is_some_and(|position| position < n), "{} -> {below}", rule.name);
            }
        }
    }
}
