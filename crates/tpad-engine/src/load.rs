//! One attempt at loading a model: from its root to a generation.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use tpad_index::{IndexError, MAX_HEADER_BYTES, decode_header};
use tpad_manifest::{
    Activation, Catalog, Digest, IndexHeader, IndexRef, Loaded, MAX_ACTIVATION_BYTES,
    MAX_DOCUMENT_BYTES, Manifest, Problem, Rejected, TierId, activation_path, index_path,
    revision_path,
};
use tpad_store::{ErrorKind, ObjectOrigin, Origin, OriginError};

use crate::base::{BaseError, check_base};
use crate::error::IndexProblem;
use crate::generation::{Generation, Parts, Shared, index_range};
use crate::kept::{activation_key, header_key, is_away, manifest_key};
use crate::locate::{Latest, Place, latest};
use crate::{BudgetEnforcement, EngineError, ModelConfig};

/// Why a model was not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The root or the base cannot be opened.
    #[error("{url}: {source}")]
    Open {
        /// Which.
        url: String,
        /// Why.
        source: OriginError,
    },
    /// The revisions cannot be listed.
    #[error(
        "revisions under {root} cannot be listed: {source}; if the store has no listing, give a revision's URL as the root"
    )]
    List {
        /// The root.
        root: String,
        /// Why.
        source: OriginError,
    },
    /// There is no revision.
    #[error(
        "{root} has no revision (tpad/revisions/N.json): import the checkpoint with tpactl import"
    )]
    NoRevision {
        /// The root.
        root: String,
    },
    /// The document cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The document.
        path: String,
        /// Why.
        source: OriginError,
    },
    /// The document is refused.
    #[error("{path}: {source}")]
    Rejected {
        /// The document.
        path: String,
        /// Its problems.
        source: Rejected,
    },
    /// The document says that it is another revision.
    #[error("{path} says that it is revision {found}")]
    Misnamed {
        /// The document.
        path: String,
        /// What it says.
        found: u64,
    },
    /// Its shards lie where the configuration does not allow.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// An index cannot be used.
    #[error("index of {of}: {source}")]
    Index {
        /// The tier, or the dense tensors.
        of: String,
        /// Why.
        source: IndexProblem,
    },
    /// Indexes contradict the manifest.
    #[error("{path}: {}", .problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
    Contradiction {
        /// The document.
        path: String,
        /// Each contradiction.
        problems: Vec<Problem>,
    },
    /// Tiers are over their budgets, and the configuration rejects that.
    #[error("{path}: {}; budget_enforcement is \"reject\"", .over.join(", "))]
    OverBudget {
        /// The document.
        path: String,
        /// One entry for each tier.
        over: Vec<String>,
    },
    /// It breaks what is served, and its version does not say so.
    #[error(
        "revision {found} would break workers of revision {serving}, which is served, and has the \
         same major version: {}; publish it with `tpactl publish --major`",
        .problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
    )]
    Breaking {
        /// What is served.
        serving: u64,
        /// What was to take its place.
        found: u64,
        /// Each breaking change.
        problems: Vec<Problem>,
    },
    /// What is served and what was loaded cannot be compared.
    #[error("revision {found} cannot be compared with what is served: {source}")]
    Comparison {
        /// What was to take its place.
        found: u64,
        /// Why.
        source: EngineError,
    },
    /// The check did not finish: the daemon is stopping, or it has a defect.
    #[error("the check of {path} did not finish")]
    Interrupted {
        /// The document.
        path: String,
    },
    /// The attempt took too long.
    #[error("not loaded within {0:?}")]
    Deadline(std::time::Duration),
}

impl LoadError {
    /// What whoever asked for the model can do.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { source, .. } | Self::List { source, .. } | Self::Read { source, .. } => {
                source.kind()
            }
            Self::NoRevision { .. } => ErrorKind::NotFound,
            Self::Index { source, .. } => match source {
                IndexProblem::Origin(source) => match source.kind() {
                    // The manifest names it, so the checkpoint is not whole.
                    ErrorKind::NotFound => ErrorKind::DataLoss,
                    other => other,
                },
                IndexProblem::Content(error) if error.is_newer() => ErrorKind::FailedPrecondition,
                IndexProblem::Content(_) => ErrorKind::DataLoss,
                IndexProblem::Interrupted => ErrorKind::Internal,
            },
            Self::Rejected { .. }
            | Self::Misnamed { .. }
            | Self::Base(_)
            | Self::Contradiction { .. }
            | Self::Breaking { .. }
            | Self::OverBudget { .. } => ErrorKind::FailedPrecondition,
            Self::Comparison { source, .. } => source.kind(),
            Self::Deadline(_) => ErrorKind::DeadlineExceeded,
            Self::Interrupted { .. } => ErrorKind::Internal,
        }
    }

    /// The error without what differs from one attempt to the next: a store's
    /// own words hold durations and request numbers.
    pub(crate) fn topic(&self) -> String {
        let origin = match self {
            Self::Open { source, .. } | Self::List { source, .. } | Self::Read { source, .. } => {
                source
            }
            Self::Index { source: IndexProblem::Origin(source), .. } => source,
            _ => return self.to_string(),
        };
        match origin {
            OriginError::Failed { object, .. }
            | OriginError::Denied { object, .. }
            | OriginError::Deadline { object, .. } => {
                format!("{object}: {}", origin.kind().as_str())
            }
            _ => self.to_string(),
        }
    }
}

/// Loads the model's revision: the store's, or while that is away the last good
/// one, if `kept` says so.
pub(crate) async fn load(
    model: &ModelConfig,
    place: &Place,
    enforcement: BudgetEnforcement,
    number: impl FnOnce() -> u64,
    kept: bool,
    shared: &Shared,
) -> Result<Generation, LoadError> {
    let deadline = shared.bounds.load_deadline;
    let attempt = attempt(model, place, enforcement, number, kept, shared);
    tokio::time::timeout(deadline, attempt).await.map_err(|_| LoadError::Deadline(deadline))?
}

async fn attempt(
    model: &ModelConfig,
    place: &Place,
    enforcement: BudgetEnforcement,
    number: impl FnOnce() -> u64,
    kept: bool,
    shared: &Shared,
) -> Result<Generation, LoadError> {
    let root = open(&place.root, model, shared)?;
    let Found { path, revision, document, activation, stale } =
        find(model, place, &root, kept, shared).await?;
    let text = document.clone();
    let loaded = apart(shared, move || Manifest::parse(&text)).await;
    let mut loaded = loaded
        .ok_or_else(|| LoadError::Interrupted { path: path.clone() })?
        .map_err(|source| LoadError::Rejected { path: path.clone(), source })?;
    if revision.is_some_and(|revision| loaded.manifest.revision != revision) {
        return Err(LoadError::Misnamed { path, found: loaded.manifest.revision });
    }
    let activated = activation.as_ref().map(|record| record.number);
    let published_default = loaded.manifest.default_tier_set.clone();
    if let Some(Record { path, activation, .. }) = &activation {
        let problems = activation.check(&loaded.manifest);
        if !problems.is_empty() {
            return Err(LoadError::Rejected { path: path.clone(), source: Rejected(problems) });
        }
        // What is in force; the document stays what it is.
        if let Some(tiers) = &activation.default_tier_set {
            loaded.manifest.default_tier_set.clone_from(tiers);
        }
    }
    let objects = match &loaded.manifest.objects_base {
        None => Arc::clone(&root),
        Some(base) => {
            check_base(base, &place.root, &model.allowed_bases)?;
            open(base, model, shared)?
        }
    };
    let deadline = Instant::now() + shared.bounds.load_deadline;
    let (tiers, dense) = headers(&root, &mut loaded, deadline, shared).await?;
    let warnings = loaded.warnings.clone();
    let catalog = apart(shared, move || Catalog::new(loaded, tiers, dense)).await;
    let catalog = catalog
        .ok_or_else(|| LoadError::Interrupted { path: path.clone() })?
        .map_err(|problems| LoadError::Contradiction { path: path.clone(), problems })?;
    let mut warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    let sets = model.tier_sets.keys();
    let hidden = sets.filter(|name| catalog.manifest().tier_sets.contains_key(*name));
    warnings.extend(hidden.map(|name| {
        format!("tier set {name} is in the manifest too; the configuration's is used")
    }));
    let over: Vec<String> = catalog
        .over_budget()
        .into_iter()
        .map(|(tier, found, budget)| {
            format!("tier {tier} has {found} parameters, its budget is {budget}")
        })
        .collect();
    match enforcement {
        BudgetEnforcement::Warn => warnings.extend(over),
        BudgetEnforcement::Reject if over.is_empty() => {}
        BudgetEnforcement::Reject => return Err(LoadError::OverBudget { path, over }),
    }
    let objects: Arc<dyn Origin> = objects;
    if stale.is_none() && *place == Place::of(&model.root) {
        // Only what can be served is worth coming back to, and what the next start
        // would ask for.
        shared.kept.put(&manifest_key(&model.root), document.clone()).await;
        let record = activation.map(|record| record.document).unwrap_or_default();
        shared.kept.put(&activation_key(&model.root), record).await;
    }
    let parts = Parts {
        model: model.name.as_str().into(),
        number: number(),
        document: Digest::of(&document),
        activation: activated,
        catalog,
        warnings,
        root,
        objects,
        published_default,
        stale,
    };
    Ok(Generation::new(parts, shared.clone()))
}

/// Refuses what may not take the place of `serving`.
pub(crate) async fn check_succession(
    serving: &Generation,
    loaded: &Generation,
) -> Result<(), LoadError> {
    let found = loaded.revision();
    let deadline = Instant::now() + loaded.patience();
    match loaded.broken_promises(serving, deadline).await {
        Ok(problems) if problems.is_empty() => Ok(()),
        Ok(problems) => Err(LoadError::Breaking { serving: serving.revision(), found, problems }),
        Err(source) => Err(LoadError::Comparison { found, source }),
    }
}

/// A revision's document.
struct Found {
    path: String,
    /// The number that it must say; `None` of one that was kept.
    revision: Option<u64>,
    document: Bytes,
    /// The activation record that chose it.
    activation: Option<Record>,
    /// Why it is the last good one and not the store's.
    stale: Option<String>,
}

/// An activation record as it was read.
struct Record {
    path: String,
    number: u64,
    document: Bytes,
    activation: Activation,
}

/// The document to serve: the store's or, while that is away, the last good one.
async fn find(
    model: &ModelConfig,
    place: &Place,
    root: &Arc<ObjectOrigin>,
    kept: bool,
    shared: &Shared,
) -> Result<Found, LoadError> {
    if !kept || !shared.kept.is_on() {
        return ask(place, root).await;
    }
    // A store that hangs must leave time for what is kept.
    let limit = shared.bounds.load_deadline / 2;
    let asked = tokio::time::timeout(limit, ask(place, root)).await;
    let error = match asked.unwrap_or(Err(LoadError::Deadline(limit))) {
        Err(error) if is_away(error.kind()) => error,
        found => return found,
    };
    match shared.kept.get(&manifest_key(&model.root)).await {
        Some(document) => {
            let (path, stale) = ("the revision kept on disk".to_owned(), Some(error.to_string()));
            let record = shared.kept.get(&activation_key(&model.root)).await;
            let record = record.filter(|record| !record.is_empty());
            let record = record.map(|record| read_record("the activation kept on disk", record));
            let activation = record.transpose()?;
            Ok(Found { path, revision: None, document, activation, stale })
        }
        None => Err(error),
    }
}

async fn ask(place: &Place, root: &Arc<ObjectOrigin>) -> Result<Found, LoadError> {
    let (revision, activation) = match place.pinned {
        Some(revision) => (revision, None),
        None => {
            let listed = latest(root).await;
            let listed =
                listed.map_err(|source| LoadError::List { root: root.url().into(), source })?;
            match listed.ok_or_else(|| LoadError::NoRevision { root: root.url().into() })? {
                Latest::Revision(revision) => (revision, None),
                Latest::Activation(number) => {
                    let record = record(root, number).await?;
                    (record.activation.revision, Some(record))
                }
            }
        }
    };
    let path = revision_path(revision);
    let document = root.get(&path, MAX_DOCUMENT_BYTES as u64).await;
    let document = document.map_err(|source| LoadError::Read { path: path.clone(), source })?;
    Ok(Found { path, revision: Some(revision), document, activation, stale: None })
}

async fn record(root: &ObjectOrigin, number: u64) -> Result<Record, LoadError> {
    let path = activation_path(number);
    let document = root.get(&path, MAX_ACTIVATION_BYTES as u64).await;
    let document = document.map_err(|source| LoadError::Read { path: path.clone(), source })?;
    let record = read_record(&path, document)?;
    if record.number != number {
        let problem = Problem::new("/activation", format!("{} is said", record.number));
        return Err(LoadError::Rejected { path, source: Rejected(vec![problem]) });
    }
    Ok(record)
}

fn read_record(path: &str, document: Bytes) -> Result<Record, LoadError> {
    let path = path.to_owned();
    match Activation::parse(&document) {
        Ok(activation) => Ok(Record { path, number: activation.activation, document, activation }),
        Err(source) => Err(LoadError::Rejected { path, source }),
    }
}

fn open(url: &str, model: &ModelConfig, shared: &Shared) -> Result<Arc<ObjectOrigin>, LoadError> {
    let origin = ObjectOrigin::open(url, &model.origin);
    let origin = origin.map(|origin| origin.with_metrics(shared.store_metrics.clone()));
    origin.map(Arc::new).map_err(|source| LoadError::Open { url: url.into(), source })
}

type Headers = (BTreeMap<TierId, Arc<IndexHeader>>, Option<Arc<IndexHeader>>);

/// The headers of the indexes that are served. A skipped tier's stays closed:
/// whatever this version does not understand may be in it. A tier whose header
/// turns out to say what this version does not know is skipped from then on.
async fn headers(
    root: &Arc<ObjectOrigin>,
    loaded: &mut Loaded,
    deadline: Instant,
    shared: &Shared,
) -> Result<Headers, LoadError> {
    let mut tiers = BTreeMap::new();
    for tier in &loaded.manifest.tiers {
        if let Some(reference) = &tier.index
            && !loaded.skipped.contains_key(&tier.id)
        {
            match header(root, reference, deadline, shared).await {
                Ok(header) => {
                    tiers.insert(tier.id.clone(), header);
                }
                Err(IndexProblem::Content(error)) if error.is_newer() => {
                    loaded.skipped.insert(tier.id.clone(), error.to_string());
                }
                Err(source) => {
                    return Err(LoadError::Index { of: format!("tier {}", tier.id), source });
                }
            }
        }
    }
    let dense = match &loaded.manifest.dense {
        None => None,
        Some(reference) => {
            let header = header(root, reference, deadline, shared).await;
            let of = || "the dense tensors".into();
            Some(header.map_err(|source| LoadError::Index { of: of(), source })?)
        }
    };
    Ok((tiers, dense))
}

async fn header(
    root: &Arc<ObjectOrigin>,
    reference: &IndexRef,
    deadline: Instant,
    shared: &Shared,
) -> Result<Arc<IndexHeader>, IndexProblem> {
    if reference.header_bytes > MAX_HEADER_BYTES {
        let what = "index header".into();
        let (bytes, most) = (reference.header_bytes, MAX_HEADER_BYTES);
        return Err(IndexError::TooLarge { what, bytes, most }.into());
    }
    let (path, key) = (index_path(&reference.digest), header_key(reference));
    let reference = *reference;
    let check = async |prefix: Bytes| {
        let header = apart(shared, move || decode_header(&prefix, &reference)).await;
        header.ok_or(IndexProblem::Interrupted)?.map_err(IndexProblem::from)
    };
    // One of a newer version is what was promised, and skips its tier also while
    // the store is away.
    let whole = |checked: &Result<IndexHeader, IndexProblem>| match checked {
        Ok(_) => true,
        Err(IndexProblem::Content(error)) => error.is_newer(),
        Err(_) => false,
    };
    if let Some(prefix) = shared.kept.get(&key).await {
        let checked = check(prefix).await;
        if whole(&checked) {
            return checked.map(Arc::new);
        }
    }
    let prefix = index_range(root, &path, 0, reference.header_bytes, deadline).await?;
    let checked = check(prefix.clone()).await;
    if whole(&checked) {
        shared.kept.put(&key, prefix).await;
    }
    checked.map(Arc::new)
}

/// Checks what a store sent where it holds up nothing else: the worst of it
/// takes half a second. `None` when the check did not finish.
async fn apart<T: Send + 'static>(
    shared: &Shared,
    check: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let _turn = shared.checks.acquire().await;
    tokio::task::spawn_blocking(check).await.ok()
}
