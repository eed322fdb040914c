//! Activation records at a root: numbered, create-only, and never a wrong one.

use std::path::Path;

use futures::future::join_all;
use tpad_manifest::{Activation, activation_path, revision_path};
use tpad_publish::{
    Activate, ActivationError, DefaultTiers, Revision, activate, history, rollback,
};
use tpad_store::{ErrorKind, OriginOptions};

/// Writes a revision whose tiers have no index.
fn publish(root: &Path, revision: u64, tiers: &[&str]) {
    let tier = |id: &&str| {
        format!("{{\"id\": \"{id}\", \"parameter_budget\": 9, \"groups\": [{{\"experts\": 2}}]}}")
    };
    let tiers: Vec<String> = tiers.iter().map(tier).collect();
    let document = format!(
        "{{\"format_version\": \"1.0\", \"revision\": {revision}, \"tiers\": [{}]}}",
        tiers.join(", ")
    );
    write(root, &revision_path(revision), &document);
}

fn write(root: &Path, path: &str, document: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().expect("it has one")).expect("made");
    std::fs::write(path, document).expect("written");
}

fn these(tiers: &[&str]) -> DefaultTiers {
    DefaultTiers::These(tiers.iter().map(|tier| tier.parse().expect("an id")).collect())
}

fn of(revision: u64, tiers: DefaultTiers) -> Activate {
    Activate { revision: Some(revision), tiers, reason: None }
}

struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("scratch");
        publish(directory.path(), 1, &["a"]);
        publish(directory.path(), 2, &["a", "b"]);
        Self(directory)
    }

    fn url(&self) -> String {
        self.0.path().display().to_string()
    }

    async fn activate(&self, wish: Activate) -> Result<Activation, ActivationError> {
        activate(&self.url(), &OriginOptions::default(), wish).await
    }

    async fn rollback(&self) -> Result<Activation, ActivationError> {
        rollback(&self.url(), &OriginOptions::default(), Some("it was slow".to_owned())).await
    }

    /// The active revision, its default tiers if a record has some, and how many
    /// records there are.
    async fn active(&self) -> (Option<u64>, Option<Vec<String>>, usize) {
        let history = history(&self.url(), &OriginOptions::default()).await.expect("it is read");
        let last = history.activations.last();
        let tiers = last.and_then(|last| last.default_tier_set.as_ref());
        let tiers = tiers.map(|tiers| tiers.iter().map(ToString::to_string).collect());
        (history.active, tiers, history.activations.len())
    }
}

#[tokio::test]
async fn without_a_record_the_highest_revision_is_active_and_then_the_last_record() {
    let root = Root::new();
    assert_eq!(root.active().await, (Some(2), None, 0));
    let first = root.activate(of(1, DefaultTiers::Unchanged)).await.expect("it is there");
    assert_eq!((first.activation, first.revision, first.default_tier_set), (1, 1, None));
    assert!(first.created_at.is_some());
    publish(root.0.path(), 3, &["a", "b", "c"]);
    assert_eq!(root.active().await, (Some(1), None, 1), "growth activates nothing");

    let newest = Activate { tiers: these(&["a"]), ..Activate::default() };
    assert_eq!(root.activate(newest).await.expect("it is there").revision, 3);
    // A set stays until somebody names another.
    root.activate(of(2, DefaultTiers::Unchanged)).await.expect("it is there");
    assert_eq!(root.active().await, (Some(2), Some(vec!["a".to_owned()]), 3));
    root.activate(of(2, DefaultTiers::Manifest)).await.expect("it is there");
    assert_eq!(root.active().await, (Some(2), None, 4));
}

#[tokio::test]
async fn a_rollback_is_one_more_record() {
    let root = Root::new();
    let nothing = root.rollback().await.expect_err("nothing was activated");
    assert!(matches!(nothing, ActivationError::NothingBefore { count: 0, .. }), "{nothing}");
    root.activate(of(1, these(&["a"]))).await.expect("it is there");
    root.rollback().await.expect_err("nothing was before");
    root.activate(of(2, these(&["b"]))).await.expect("it is there");
    let back = root.rollback().await.expect("there was one before");
    assert_eq!((back.activation, back.revision), (3, 1));
    assert_eq!(back.reason.as_deref(), Some("it was slow"));
    assert_eq!(root.active().await, (Some(1), Some(vec!["a".to_owned()]), 3));
    assert_eq!(root.rollback().await.expect("and forth").revision, 2);
}

#[tokio::test]
async fn what_no_daemon_would_serve_is_not_activated() {
    let root = Root::new();
    let kind = async |wish| root.activate(wish).await.expect_err("it is refused").kind();
    assert_eq!(kind(of(9, DefaultTiers::Unchanged)).await, ErrorKind::NotFound);
    assert_eq!(kind(of(1, these(&["b"]))).await, ErrorKind::InvalidArgument);
    assert_eq!(kind(of(1, these(&[]))).await, ErrorKind::InvalidArgument);
    assert_eq!(kind(of(1, these(&["a", "a"]))).await, ErrorKind::InvalidArgument);
    let control = Activate { reason: Some("a\nb".to_owned()), ..of(1, DefaultTiers::Unchanged) };
    assert_eq!(kind(control).await, ErrorKind::InvalidArgument);
    write(root.0.path(), &revision_path(3), "{}");
    let error = root.activate(of(3, DefaultTiers::Unchanged)).await.expect_err("it is refused");
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains("format_version"), "{error}");
    assert_eq!(root.active().await.2, 0, "nothing was recorded");

    // A record that cannot be read stops whoever would go on from it.
    write(
        root.0.path(),
        &activation_path(4),
        "{\"format_version\": \"1.0\", \"activation\": 5, \"revision\": 1}",
    );
    let error = root.activate(of(1, DefaultTiers::Unchanged)).await.expect_err("it is refused");
    assert!(error.to_string().contains("activations/4.json"), "{error}");
    let empty = tempfile::tempdir().expect("scratch");
    let (url, options) = (empty.path().display().to_string(), OriginOptions::default());
    let none = activate(&url, &options, Activate::default()).await;
    assert!(matches!(none, Err(ActivationError::NoRevision { .. })));
}

#[tokio::test]
async fn of_many_who_activate_at_once_each_number_has_one() {
    let root = Root::new();
    for round in 0..20 {
        let wishes = (0..8).map(|n| root.activate(of(1 + n % 2, DefaultTiers::Unchanged)));
        let mut won = 0;
        for outcome in join_all(wishes).await {
            match outcome {
                Ok(record) => {
                    won += 1;
                    let path = root.0.path().join(activation_path(record.activation));
                    let found = std::fs::read(path).expect("it is recorded");
                    assert_eq!(Activation::parse(&found).as_ref(), Ok(&record), "round {round}");
                }
                Err(error) => {
                    assert!(matches!(error, ActivationError::Overtaken { .. }), "{error}")
                }
            }
        }
        assert!(won >= 1, "somebody wins");
    }
    let (_, _, records) = root.active().await;
    assert!(records >= 20);
    let url = format!("{}/{}", root.url(), revision_path(1));
    assert_eq!(Revision::open(&url, &OriginOptions::default()).await.expect("read").number(), 1);
}
