//! What a model is, besides its blocks.

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tpad_client::{Client, FetchedFile, ModelDescription};

use crate::connection::json;
use crate::errors::Failure;
use crate::mask;

/// The file that says what a checkpoint is.
const CONFIG: &str = "config.json";

/// Times that a model may change while it is described.
const DESCRIPTIONS: usize = 4;

/// All of a model that is not blocks.
pub(crate) struct Described {
    model: ModelDescription,
    config: Option<FetchedFile>,
    sources: Result<mask::Sources, Failure>,
}

impl Described {
    pub(crate) async fn of(client: Client, name: String) -> Result<Self, Failure> {
        let mut left = DESCRIPTIONS;
        loop {
            left -= 1;
            let model = client.describe_model(&name).await?;
            let generation = model.summary.generation;
            let served = model.tier_details.iter().filter(|tier| tier.skipped.is_empty());
            let tiers = served.map(|tier| tier.id.clone()).collect();
            let sources = mask::sources(&client, &name, tiers).await;
            let config = match model.files.iter().any(|file| file == CONFIG) {
                true => Some(client.fetch_file(&name, CONFIG).await?),
                false => None,
            };
            let same = config.as_ref().is_none_or(|file| file.generation == generation)
                && sources.as_ref().map_or(true, |(of, _)| *of == generation);
            if same || left == 0 {
                return Ok(Self { model, config, sources: sources.map(|(_, sources)| sources) });
            }
        }
    }

    pub(crate) fn into_python(py: Python<'_>, described: Self) -> PyResult<Py<PyAny>> {
        let Self { model, config, sources } = described;
        let description = json(py, &model)?;
        let description = description.into_bound(py);
        description.set_item("manifest_json", &model.manifest_json)?;
        description.set_item("config", config.map(|file| PyBytes::new(py, &file.bytes)))?;
        match sources {
            Ok(sources) => {
                description.set_item("sources", mask::sources_to_python(py, &sources)?)?;
            }
            Err(failure) => description.set_item("sources", failure.raise(py).into_value(py))?,
        }
        Ok(description.unbind())
    }
}
