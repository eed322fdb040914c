//! An S3 store read with `object_store`, and its signed URLs for a plain HTTP GET.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use object_store::ObjectStoreExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::signer::Signer as _;
use tokio::runtime::Runtime;

use crate::closed_loop::Fetch;
use crate::exchange::Object;

/// One range of a value that is read in ranges, and how many at a time: what did best
/// against a server on loopback.
const RANGE_BYTES: u64 = 16 << 20;
const RANGES: usize = 8;

/// Longer than any run.
const SIGNED_FOR: Duration = Duration::from_secs(6 * 3600);

/// Where the store is. Keys come from the environment, as S3 clients take them.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// The server's URL
    #[arg(long)]
    pub endpoint: String,
    /// The bucket
    #[arg(long)]
    pub bucket: String,
    /// The access key
    #[arg(long, env = "AWS_ACCESS_KEY_ID")]
    pub access_key_id: String,
    /// Its secret
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub secret_access_key: String,
    /// The region that requests are signed for
    #[arg(long, env = "AWS_REGION", default_value = "us-east-1")]
    pub region: String,
}

/// A client on connections of its own.
#[derive(Debug)]
pub struct Objects {
    runtime: Runtime,
    store: Arc<AmazonS3>,
    objects: Vec<Object>,
    buffer: Vec<u8>,
}

impl Place {
    fn store(&self) -> Result<AmazonS3> {
        let builder = AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_bucket_name(&self.bucket)
            .with_access_key_id(&self.access_key_id)
            .with_secret_access_key(&self.secret_access_key)
            .with_region(&self.region)
            .with_allow_http(true);
        builder.build().context("the store's options")
    }

    /// Paths, with their signatures, that any HTTP client may read.
    ///
    /// # Errors
    /// When they cannot be signed.
    pub fn signed(&self, objects: &[Object]) -> Result<Vec<Object>> {
        let store = self.store()?;
        let runtime = runtime()?;
        let sign = async {
            let mut paths = Vec::new();
            for Object { bytes, name } in objects {
                let path = Path::from(name.as_str());
                let url = store.signed_url("GET".parse()?, &path, SIGNED_FOR).await?;
                let query = url.query().context("a signed URL has a query")?;
                let name = format!("{}?{query}", url.path());
                paths.push(Object { bytes: *bytes, name });
            }
            anyhow::Ok(paths)
        };
        runtime.block_on(sign)
    }
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

impl Objects {
    /// A client for these objects.
    ///
    /// # Errors
    /// When the options make no sense.
    pub fn connect(place: &Place, objects: Vec<Object>) -> Result<Self> {
        let bytes = objects.iter().map(|object| object.bytes).max().unwrap_or(0);
        let store = Arc::new(place.store()?);
        Ok(Self { runtime: runtime()?, store, objects, buffer: vec![1; bytes] })
    }
}

impl Fetch for Objects {
    fn fetch(&mut self, key: usize) -> Result<u64> {
        let object = self.objects.get(key).context("no such object")?;
        let path = Path::from(object.name.as_str());
        let (store, buffer) = (&self.store, &mut self.buffer);
        let bytes = object.bytes as u64;
        let starts = (0..bytes).step_by(usize::try_from(RANGE_BYTES)?);
        self.runtime.block_on(async {
            let mut filled = 0;
            if bytes <= RANGE_BYTES {
                let mut chunks = store.get(&path).await?.into_stream();
                while let Some(chunk) = chunks.next().await {
                    filled += place(buffer, filled, &chunk?)?;
                }
            } else {
                let ranges = starts.map(|start| start..bytes.min(start + RANGE_BYTES));
                let parts = ranges.map(|range| store.get_range(&path, range));
                let mut parts = futures::stream::iter(parts).buffered(RANGES);
                while let Some(part) = parts.next().await {
                    filled += place(buffer, filled, &part?)?;
                }
            }
            if filled as u64 != bytes {
                bail!("{filled} bytes in place of {bytes}");
            }
            Ok(bytes)
        })
    }
}

fn place(buffer: &mut [u8], at: usize, chunk: &[u8]) -> Result<usize> {
    let room = buffer.get_mut(at..at + chunk.len()).context("more bytes than the value has")?;
    room.copy_from_slice(chunk);
    Ok(chunk.len())
}
