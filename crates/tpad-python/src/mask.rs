//! Routing masks and the watch that follows them.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tpad_client::{Client, FetchedMask, GetMask, MaskEvent, MaskWatch, Residency, WatchMask};
use tpad_manifest::{
    CostClass, ExpertBits, LayerSources, RoutingMask, SetOrigin, TierMask, TierSet,
};

use crate::connection::{Connection, limit};
use crate::errors::Failure;
use crate::runtime::{Here, run};

/// Which experts a router may pick, at one revision and for one TierSet.
#[pyclass(frozen, module = "tpad")]
pub(crate) struct Mask {
    pub(crate) mask: Arc<RoutingMask>,
    revision: u64,
    generation: u64,
    etag: String,
}

/// One active tier of a mask.
#[pyclass(frozen, name = "TierMask", module = "tpad")]
pub(crate) struct Tier {
    mask: Arc<RoutingMask>,
    at: usize,
}

impl Mask {
    /// A mask that came; one that is the caller's own has no content.
    fn of(fetched: FetchedMask) -> Result<Self, Failure> {
        let FetchedMask { revision, generation, etag, mask } = fetched;
        let mask = mask.ok_or_else(|| Failure::said("internal", "a mask without its content"))?;
        Ok(Self { mask: Arc::new(mask), revision, generation, etag })
    }
}

#[pymethods]
impl Mask {
    /// A mask that no daemon made: `k_tier`, and for each tier its id, `k_group`, `k_expert` and a
    /// list of groups, each a list of bools, one for each expert.
    #[staticmethod]
    fn build(k_tier: u32, tiers: Vec<(String, u32, u32, Vec<Vec<bool>>)>) -> Self {
        let tiers = tiers.into_iter().map(|(tier, k_group, k_expert, groups)| TierMask {
            tier,
            k_group,
            k_expert,
            groups: groups.into_iter().map(|group| ExpertBits::of(group.into_iter())).collect(),
            indexed: true,
            sources: Vec::new(),
        });
        let mask = RoutingMask {
            revision: 0,
            origin: SetOrigin::Tiers,
            tiers: tiers.collect(),
            k_tier,
            masked: Vec::new(),
            resident: None,
        };
        Self { mask: Arc::new(mask), revision: 0, generation: 0, etag: String::new() }
    }

    /// The manifest's number.
    #[getter]
    fn revision(&self) -> u64 {
        self.revision
    }

    /// The daemon's count of swaps; no part of the etag.
    #[getter]
    fn generation(&self) -> u64 {
        self.generation
    }

    /// Equal masks have equal etags, on every daemon.
    #[getter]
    fn etag(&self) -> &str {
        &self.etag
    }

    /// Tiers for a token.
    #[getter]
    fn k_tier(&self) -> u32 {
        self.mask.k_tier
    }

    /// The active tiers, in manifest order.
    #[getter]
    fn tiers(&self) -> Vec<Tier> {
        (0..self.mask.tiers.len()).map(|at| Tier { mask: Arc::clone(&self.mask), at }).collect()
    }

    /// What is masked: tuples of a tier's id, the reason (`"not_in_tier_set"`, `"unknown_tier"`,
    /// `"skipped_tier"`, `"unavailable_block"`) and what there is to say of it.
    #[getter]
    fn masked(&self) -> Vec<(String, &'static str, String)> {
        let masked = self.mask.masked.iter();
        masked.map(|tier| (tier.tier.clone(), tier.reason.as_str(), tier.detail.clone())).collect()
    }

    /// The slowest level that counts as resident; None where that was not asked for.
    #[getter]
    fn resident_level(&self) -> Option<&'static str> {
        self.mask.resident.as_ref().map(|resident| resident.level.as_str())
    }

    /// The layers of which it says what is resident: none where that was not asked for.
    #[getter]
    fn resident_layers(&self) -> Vec<u32> {
        let layers = self.mask.resident.iter().flat_map(|resident| &resident.layers);
        layers.map(|layer| layer.layer).collect()
    }

    /// What it costs to read each block of a layer: for each active tier a list of groups, each a
    /// list of `"hbm"`, `"dram"`, `"nvme"`, `"object_store"` or `"unavailable"`, one for each
    /// expert. ValueError where the mask was not asked for what is resident there.
    fn costs(&self, layer: u32) -> PyResult<Vec<Vec<Vec<&'static str>>>> {
        let mut layers = self.mask.resident.iter().flat_map(|resident| &resident.layers);
        let found = layers.find(|known| known.layer == layer);
        let found = found.ok_or_else(|| {
            PyValueError::new_err(format!(
                "the mask does not say what is resident at layer {layer}: ask for it with \
                 client.mask(model, resident=\"dram\")"
            ))
        })?;
        let group = |costs: &[CostClass]| costs.iter().map(|cost| cost.as_str()).collect();
        let tiers = found.tiers.iter();
        Ok(tiers.map(|tier| tier.groups.iter().map(|g| group(&g.costs)).collect()).collect())
    }

    fn __repr__(&self) -> String {
        let tiers: Vec<&str> = self.mask.tiers.iter().map(|tier| &*tier.tier).collect();
        format!("<tpad.Mask of revision {}: {}>", self.revision, tiers.join(", "))
    }
}

impl Tier {
    fn get(&self) -> &TierMask {
        &self.mask.tiers[self.at]
    }
}

#[pymethods]
impl Tier {
    /// The tier's id.
    #[getter]
    fn tier(&self) -> &str {
        &self.get().tier
    }

    /// Groups of the tier for a token.
    #[getter]
    fn k_group(&self) -> u32 {
        self.get().k_group
    }

    /// Experts of the tier for a token.
    #[getter]
    fn k_expert(&self) -> u32 {
        self.get().k_expert
    }

    /// Experts of each group, masked ones included.
    #[getter]
    fn experts(&self) -> Vec<u32> {
        self.get().groups.iter().map(ExpertBits::experts).collect()
    }

    /// Whether its blocks can be fetched.
    #[getter]
    fn indexed(&self) -> bool {
        self.get().indexed
    }

    /// One byte for each expert, in the order of groups and experts: 1 for one that may be picked.
    /// `numpy.frombuffer(tier.allowed(), bool)` is the same as an array.
    fn allowed<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let allowed = self.get().groups.iter().flat_map(ExpertBits::iter);
        PyBytes::new(py, &allowed.map(u8::from).collect::<Vec<_>>())
    }

    /// Where its experts came from at a layer: for each group a list of `(expert, router column)`,
    /// one for each expert. None where the mask does not say.
    fn sources(&self, layer: u32) -> Option<Vec<Vec<(u32, u32)>>> {
        let mut runs = self.get().sources.iter();
        let run = runs.find(|run| run.layers.contains(&layer))?;
        Some(run.groups.iter().map(|group| group.iter().map(pair).collect()).collect())
    }

    fn __repr__(&self) -> String {
        let TierMask { tier, k_group, k_expert, groups, .. } = self.get();
        let experts: u32 = groups.iter().map(ExpertBits::experts).sum();
        let ones: u32 = groups.iter().map(ExpertBits::ones).sum();
        format!("<tpad.TierMask {tier}: {ones} of {experts} experts, k {k_group}/{k_expert}>")
    }
}

fn pair(source: &tpad_manifest::Source) -> (u32, u32) {
    (source.expert, source.column)
}

/// Which tiers are meant: None for the model's default, a list of ids, the name of a set, or
/// `{"up_to": id}`.
pub(crate) fn tier_set(value: Option<&Bound<'_, PyAny>>) -> PyResult<TierSet> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(TierSet::Default) };
    if let Ok(name) = value.extract::<String>() {
        return Ok(TierSet::Named(name));
    }
    if let Ok(set) = value.cast::<PyDict>()
        && let Some(last) = set.get_item("up_to")?
        && set.len() == 1
    {
        return Ok(TierSet::UpTo(last.str()?.to_string()));
    }
    if value.cast::<PyDict>().is_ok() {
        return Err(PyValueError::new_err("a TierSet as a dict is {\"up_to\": tier}"));
    }
    let tiers = value.try_iter()?.map(|tier| Ok(tier?.str()?.to_string()));
    Ok(TierSet::Tiers(tiers.collect::<PyResult<_>>()?))
}

fn cost(level: &str) -> PyResult<CostClass> {
    let known = [CostClass::Hbm, CostClass::Dram, CostClass::Nvme, CostClass::ObjectStore];
    known.into_iter().find(|known| known.as_str() == level).ok_or_else(|| {
        PyValueError::new_err(format!(
            "resident={level:?}: \"hbm\", \"dram\", \"nvme\" or \"object_store\" is expected"
        ))
    })
}

/// A model's mask.
#[pyfunction]
#[pyo3(signature = (connection, model, tier_set, resident, layers, sources, timeout = None, done = None))]
#[expect(clippy::too_many_arguments, reason = "the package's own Python calls it, by place")]
pub(crate) fn mask(
    py: Python<'_>,
    connection: &Connection,
    model: String,
    tier_set: Option<&Bound<'_, PyAny>>,
    resident: Option<&str>,
    layers: Option<Vec<u32>>,
    sources: bool,
    timeout: Option<f64>,
    done: Option<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    let client = connection.source(py)?.client(limit(timeout)?);
    let level = resident.map(cost).transpose()?;
    let layers = layers.unwrap_or_default();
    let resident = level.map(|level| Residency { level, layers });
    let of = GetMask::of(&model, self::tier_set(tier_set)?);
    let ask = GetMask { omit_sources: !sources, resident, ..of };
    let mask = async move { Mask::of(client.routing_mask(ask).await?) };
    run(py, done, mask, |py, mask| Ok(Py::new(py, mask)?.into_any()))
}

/// Follows a model's mask.
#[pyfunction]
#[pyo3(signature = (connection, model, tier_set, sources, done = None))]
pub(crate) fn watch(
    py: Python<'_>,
    connection: &Connection,
    model: String,
    tier_set: Option<&Bound<'_, PyAny>>,
    sources: bool,
    done: Option<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    let client = connection.source(py)?.patient();
    let of = WatchMask::of(&model, self::tier_set(tier_set)?);
    let ask = WatchMask { omit_sources: !sources, ..of };
    let watch = async move { Ok(client.watch_routing_mask(ask).await?) };
    run(py, done, watch, |py, watch| Ok(Py::new(py, Watch::of(watch))?.into_any()))
}

/// A mask that is followed, beneath `tpad.MaskWatch`.
#[pyclass(frozen, module = "tpad._tpad")]
pub(crate) struct Watch(Here<Followed>);

/// The watch, and what ends whoever waits for its next event.
#[derive(Clone)]
struct Followed {
    watch: Arc<Mutex<Option<MaskWatch>>>,
    closed: CancellationToken,
}

impl Watch {
    fn of(watch: MaskWatch) -> Self {
        let watch = Arc::new(Mutex::new(Some(watch)));
        Self(Here::new(Followed { watch, closed: CancellationToken::new() }))
    }
}

#[pymethods]
impl Watch {
    /// The next mask; a tuple of reason and message where there is none for now; None at the end.
    #[pyo3(signature = (done = None))]
    fn next(&self, py: Python<'_>, done: Option<Py<PyAny>>) -> PyResult<Py<PyAny>> {
        let Followed { watch, closed } = self.0.get().map_err(|failure| failure.raise(py))?.clone();
        let event = async move {
            let mut watch = watch.lock().await;
            let next = async {
                match &mut *watch {
                    Some(open) => open.next().await.transpose(),
                    None => Ok(None),
                }
            };
            match closed.run_until_cancelled(next).await {
                Some(event) => Ok(event?),
                None => {
                    *watch = None;
                    Ok(None)
                }
            }
        };
        run(py, done, event, |py, event| match event {
            None => Ok(py.None()),
            Some(MaskEvent::Mask(mask)) => {
                let mask = Mask::of(mask).map_err(|failure| failure.raise(py))?;
                Ok(Py::new(py, mask)?.into_any())
            }
            Some(MaskEvent::None { reason, message }) => {
                Ok(PyTuple::new(py, [reason, message])?.into_any().unbind())
            }
            Some(_) => Err(Failure::said("internal", "an event of an unknown kind").raise(py)),
        })
    }

    /// Ends it, and the waits for its next event.
    fn close(&self) {
        if let Ok(Followed { watch, closed }) = self.0.get() {
            closed.cancel();
            if let Ok(mut watch) = watch.try_lock() {
                *watch = None;
            }
        }
    }
}

/// Where all of a model's experts came from, by tier.
pub(crate) type Sources = Vec<(String, Vec<LayerSources>)>;

/// Asks for that, with the generation that it is of.
pub(crate) async fn sources(
    client: &Client,
    model: &str,
    tiers: Vec<String>,
) -> Result<(u64, Sources), Failure> {
    let fetched = client.routing_mask(GetMask::of(model, TierSet::Tiers(tiers))).await?;
    let tiers = fetched.mask.map(|mask| mask.tiers).unwrap_or_default();
    let sources = tiers.into_iter().map(|tier| (tier.tier, tier.sources));
    Ok((fetched.generation, sources.collect()))
}

/// The same as lists of dicts.
pub(crate) fn sources_to_python<'py>(
    py: Python<'py>,
    sources: &Sources,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for (tier, runs) in sources {
        let in_python = PyList::empty(py);
        for LayerSources { layers, groups } in runs {
            let run = PyDict::new(py);
            run.set_item("layers", layers)?;
            let groups: Vec<Vec<(u32, u32)>> =
                groups.iter().map(|group| group.iter().map(pair).collect()).collect();
            run.set_item("groups", groups)?;
            in_python.append(run)?;
        }
        list.append((tier, in_python))?;
    }
    Ok(list)
}
