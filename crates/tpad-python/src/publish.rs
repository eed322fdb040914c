//! The write side, beneath `tpad.publish`.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{Activation, Change, Changes, Effect, Placement, Routing};
use tpad_publish::{
    Activate, ActivationError, AmendOptions, Amendment, DefaultTiers, GrowError, GrowOptions,
    GrowOutcome, ImportError, ImportOptions, ImportOutcome, Phase, Plan, Progress,
};
use tpad_store::{ErrorKind, ObjectOrigin, OriginError, OriginOptions};

use crate::errors::Failure;
use crate::keys;
use crate::runtime::{runtime, wait, wait_to_the_end};

/// Phases in the order in which they began: what, how much is done, and of how much.
#[derive(Default)]
struct Told(Mutex<Vec<(Phase, u64, u64)>>);

impl Progress for Told {
    fn begin(&self, phase: Phase, total: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((phase, 0, total));
    }

    fn advance(&self, done: u64) {
        if let Some((_, sum, _)) = self.0.lock().unwrap_or_else(PoisonError::into_inner).last_mut()
        {
            *sum += done;
        }
    }
}

impl Told {
    /// Tells what is new since the last time: phases that are over, once, and the one under way.
    fn tell(&self, py: Python<'_>, callback: Option<&Py<PyAny>>) -> PyResult<()> {
        let phases = {
            let mut phases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let last = phases.len().saturating_sub(1);
            let news = phases.clone();
            phases.drain(..last);
            news
        };
        let Some(callback) = callback else { return Ok(()) };
        for (phase, done, total) in phases {
            callback.call1(py, (name(phase), done, total))?;
        }
        Ok(())
    }
}

const fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Headers => "headers",
        Phase::Digests => "digests",
        Phase::Verification => "verification",
        Phase::Writing => "writing",
    }
}

/// Waits for work that reports how far it is, and is told to stop when that raises. It has a
/// thread of its own, and makes its future there.
fn work<T: Send>(
    py: Python<'_>,
    progress: Option<&Py<PyAny>>,
    told: &Told,
    stop: &CancellationToken,
    job: impl FnOnce(&'static Runtime) -> Result<T, Failure> + Send,
) -> PyResult<T> {
    let runtime = runtime()?;
    let (tell, result) = oneshot::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Whoever waits waits for the end.
            let _heard = tell.send(job(runtime));
        });
        let end = async {
            let panicked = |_| Failure::said("internal", "the work ended without a word");
            result.await.map_err(panicked)?
        };
        wait_to_the_end(py, end, |py| told.tell(py, progress), || stop.cancel())
    })
}

/// Imports a checkpoint.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the package's own Python calls it, by place")]
pub(crate) fn import_checkpoint(
    py: Python<'_>,
    root: String,
    model: String,
    plan: Option<&str>,
    out: Option<String>,
    dry_run: bool,
    state_dir: Option<PathBuf>,
    instance_credentials: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    let plan = plan.map(read_plan).transpose()?;
    let stores = stores(instance_credentials);
    let options = ImportOptions { model, plan, dry_run, ledger: state_dir, now: Timestamp::now() };
    let (told, stop) = (Told::default(), CancellationToken::new());
    let imported = work(py, progress.as_ref(), &told, &stop, |runtime| {
        runtime.block_on(async {
            let root = ObjectOrigin::open(&root, &stores)?;
            let out = out.as_deref().map(|out| ObjectOrigin::open(out, &stores)).transpose()?;
            Ok(tpad_publish::import(&root, out.as_ref(), &options, &told, &stop).await?)
        })
    })?;
    let outcome = match imported.outcome {
        ImportOutcome::Written => "written",
        ImportOutcome::Unchanged => "unchanged",
        ImportOutcome::DryRun => "dry_run",
    };
    let report = json!({
        "outcome": outcome,
        "url": imported.url(),
        "revision": imported.manifest.revision,
        "model_version": imported.manifest.model_version.to_string(),
        "layout": imported.family,
        "blocks": imported.blocks,
        "image_bytes": imported.image_bytes,
        "resumed_blocks": imported.resumed,
        "parameters": imported.parameters,
        "notes": imported.notes,
        "manifest": imported.manifest,
    });
    crate::connection::json(py, &report)
}

/// Adds a tier.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the package's own Python calls it, by place")]
pub(crate) fn add_tier(
    py: Python<'_>,
    root: String,
    from: String,
    id: &Bound<'_, PyAny>,
    budget: u64,
    placement: &str,
    routing: (u32, u32, u32),
    plan: Option<&str>,
    dry_run: bool,
    retention_days: u16,
    instance_credentials: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    let (k_tier, k_group, k_expert) = routing;
    let options = GrowOptions {
        id: keys::tier(id)?,
        plan: plan.map(read_plan).transpose()?,
        budget,
        placement: self::placement(placement)?,
        routing: Routing { k_tier, k_group, k_expert },
        dry_run,
        retention: SignedDuration::from_hours(i64::from(retention_days) * 24),
        now: Timestamp::now(),
    };
    let stores = stores(instance_credentials);
    let (told, stop) = (Told::default(), CancellationToken::new());
    let grown = work(py, progress.as_ref(), &told, &stop, |runtime| {
        runtime.block_on(async {
            let root = ObjectOrigin::open(&root, &stores)?;
            let from = ObjectOrigin::open(&from, &stores)?;
            Ok(tpad_publish::add_tier(&root, &from, &options, &told, &stop).await?)
        })
    })?;
    let report = json!({
        "outcome": outcome(grown.outcome),
        "url": grown.url(),
        "revision": grown.manifest.revision,
        "model_version": grown.manifest.model_version.to_string(),
        "layout": grown.family,
        "blocks": grown.blocks,
        "image_bytes": grown.image_bytes,
        "parameters": grown.parameters,
        "parameter_budget": grown.budget,
        "compared_blocks": grown.compared,
        "reused_bytes": grown.reused_bytes,
        "changes": changes(&grown.changes),
        "notes": grown.notes,
        "manifest": grown.manifest,
    });
    crate::connection::json(py, &report)
}

/// Publishes an edited manifest as the next revision.
#[pyfunction]
pub(crate) fn publish_document(
    py: Python<'_>,
    root: String,
    document: Vec<u8>,
    major: bool,
    dry_run: bool,
    instance_credentials: bool,
) -> PyResult<Py<PyAny>> {
    let options = AmendOptions { major, dry_run, now: Timestamp::now() };
    let amendment = Amendment::Document { text: document.into() };
    let stores = stores(instance_credentials);
    let (told, stop) = (Told::default(), CancellationToken::new());
    let amended = work(py, None, &told, &stop, |runtime| {
        runtime.block_on(async {
            let root = ObjectOrigin::open(&root, &stores)?;
            Ok(tpad_publish::amend(&root, &amendment, &options).await?)
        })
    })?;
    let report = json!({
        "outcome": outcome(amended.outcome),
        "url": amended.url(),
        "revision": amended.manifest.revision,
        "model_version": amended.manifest.model_version.to_string(),
        "previous_version": amended.from.to_string(),
        "changes": changes(&amended.changes),
        "manifest": amended.manifest,
    });
    crate::connection::json(py, &report)
}

/// Has the daemons of a root serve a revision. `tiers`: None for those of the last record, an
/// empty list for the manifest's own.
#[pyfunction]
pub(crate) fn activate(
    py: Python<'_>,
    root: String,
    revision: Option<u64>,
    tiers: Option<Vec<Bound<'_, PyAny>>>,
    reason: Option<String>,
    instance_credentials: bool,
) -> PyResult<Py<PyAny>> {
    let tiers = match tiers {
        None => DefaultTiers::Unchanged,
        Some(tiers) if tiers.is_empty() => DefaultTiers::Manifest,
        Some(tiers) => {
            let tiers = tiers.iter().map(keys::tier).collect::<PyResult<_>>()?;
            DefaultTiers::These(tiers)
        }
    };
    let stores = stores(instance_credentials);
    let wish = Activate { revision, tiers, reason };
    let record = wait(py, async { Ok(tpad_publish::activate(&root, &stores, wish).await?) })?;
    crate::connection::json(py, &recorded(&record))
}

/// Back to what was served before the last activation.
#[pyfunction]
pub(crate) fn rollback(
    py: Python<'_>,
    root: String,
    reason: Option<String>,
    instance_credentials: bool,
) -> PyResult<Py<PyAny>> {
    let stores = stores(instance_credentials);
    let record = wait(py, async { Ok(tpad_publish::rollback(&root, &stores, reason).await?) })?;
    crate::connection::json(py, &recorded(&record))
}

/// What a root has.
#[pyfunction]
pub(crate) fn history(
    py: Python<'_>,
    root: String,
    instance_credentials: bool,
) -> PyResult<Py<PyAny>> {
    let stores = stores(instance_credentials);
    let found = wait(py, async { Ok(tpad_publish::history(&root, &stores).await?) })?;
    let revisions = found.revisions.iter().map(|revision| {
        let known = revision.manifest.as_ref().ok();
        json!({
            "revision": revision.number,
            "active": found.active == Some(revision.number),
            "model_version": known.map(|manifest| manifest.model_version.to_string()),
            "refused": revision.manifest.as_ref().err().map(ToString::to_string),
            "manifest": known,
        })
    });
    let report = json!({
        "revisions": revisions.collect::<Vec<_>>(),
        "activations": found.activations.iter().map(recorded).collect::<Vec<_>>(),
        "active": found.active,
    });
    crate::connection::json(py, &report)
}

fn recorded(record: &Activation) -> Value {
    let tiers = record.default_tier_set.as_ref();
    json!({
        "activation": record.activation,
        "revision": record.revision,
        "default_tier_set":
            tiers.map(|tiers| tiers.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "created_at": record.created_at.map(|time| time.to_string()),
        "reason": record.reason,
    })
}

fn changes(changes: &Changes) -> Value {
    let change = |change: &Change| {
        json!({
            "kind": change.kind(),
            "effect": change.effect().as_str(),
            "place": change.place(),
            "message": change.to_string(),
        })
    };
    json!({
        "effect": changes.effect().map(Effect::as_str),
        "omitted": changes.omitted(),
        "changes": changes.list().iter().map(change).collect::<Vec<_>>(),
    })
}

const fn outcome(outcome: GrowOutcome) -> &'static str {
    match outcome {
        GrowOutcome::Written => "written",
        GrowOutcome::Unchanged => "unchanged",
        GrowOutcome::DryRun => "dry_run",
    }
}

fn read_plan(text: &str) -> PyResult<Plan> {
    Plan::parse(text).map_err(|error| PyValueError::new_err(format!("the plan: {error}")))
}

fn placement(text: &str) -> PyResult<Placement> {
    let known = [Placement::Hbm, Placement::Dram, Placement::Nvme, Placement::ObjectStore];
    known.into_iter().find(|placement| placement.as_str() == text).ok_or_else(|| {
        let expected = "hbm, dram, nvme or object_store is expected";
        PyValueError::new_err(format!("placement {text:?}: {expected}"))
    })
}

fn stores(instance_credentials: bool) -> OriginOptions {
    let known = OriginOptions::from_variables(|name| std::env::var(name).ok());
    let instance_credentials = known.instance_credentials || instance_credentials;
    OriginOptions { instance_credentials, ..known }
}

/// What failed by its kind, with what helps where that is known.
fn failed(kind: ErrorKind, error: &dyn std::fmt::Display, remedy: Option<&str>) -> Failure {
    Failure::Said {
        kind: kind.as_str(),
        message: error.to_string(),
        reason: "",
        remedy: remedy.map(str::to_owned),
    }
}

impl From<OriginError> for Failure {
    fn from(error: OriginError) -> Self {
        failed(error.kind(), &error, None)
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        let remedy = matches!(error, ImportError::Layout(_)).then_some(
            "layouts are recognised by tensor names and shapes; a plan only sorts what was \
             recognised",
        );
        failed(error.kind(), &error, remedy)
    }
}

impl From<GrowError> for Failure {
    fn from(error: GrowError) -> Self {
        let remedy = match &error {
            GrowError::Differs { .. } => Some(
                "train the new tier with everything else frozen, or leave what is old out of the \
                 checkpoint",
            ),
            GrowError::Breaking { .. } => Some(
                "undo it, or publish the next major version: workers of this one must then be \
                 moved by hand",
            ),
            _ => None,
        };
        failed(error.kind(), &error, remedy)
    }
}

impl From<ActivationError> for Failure {
    fn from(error: ActivationError) -> Self {
        failed(error.kind(), &error, None)
    }
}
