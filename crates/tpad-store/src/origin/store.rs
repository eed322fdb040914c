//! From a root's URL to an object store that leaves retries and deadlines to us.

use std::path::{Component, Path as FilePath, PathBuf};
use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::{OriginError, OriginOptions, install_tls};

/// An opened root.
pub(super) struct Opened {
    /// The store that the root is in.
    pub(super) store: Arc<dyn ObjectStore>,
    /// The root's place in it.
    pub(super) prefix: Path,
    /// The root, spelled one way.
    pub(super) url: String,
    /// Whether objects are files of this machine.
    pub(super) local: bool,
}

/// Opens a root. Nothing is contacted yet.
pub(super) fn open(root: &str, options: &OriginOptions) -> Result<Opened, OriginError> {
    let scheme = root.split_once("://").map(|(scheme, _)| scheme);
    match scheme {
        None => directory(root, FilePath::new(root)),
        Some("file") => {
            let url = parse(root)?;
            let path = url
                .to_file_path()
                .map_err(|()| problem(root, "a file URL has no host: write file:///directory"))?;
            directory(root, &path)
        }
        Some(scheme) => remote(root, scheme, options),
    }
}

fn directory(root: &str, path: &FilePath) -> Result<Opened, OriginError> {
    let path = absolute(path).map_err(|error| problem(root, &error))?;
    let text = path.to_str().ok_or_else(|| problem(root, "the path is not UTF-8"))?;
    let prefix = Path::parse(text).map_err(|error| problem(root, &error.to_string()))?;
    let store = Arc::new(LocalFileSystem::new().with_fsync(true));
    Ok(Opened { store, prefix, url: text.to_owned(), local: true })
}

/// The directory without links and dots; one that does not exist yet may be
/// written to, so only its name is settled.
fn absolute(path: &FilePath) -> Result<PathBuf, String> {
    if path.as_os_str().is_empty() {
        return Err("the path is empty".into());
    }
    match std::fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let path = std::path::absolute(path).map_err(|error| error.to_string())?;
            if path.components().any(|part| part == Component::ParentDir) {
                return Err("it does not exist".into());
            }
            Ok(path)
        }
        Err(error) => Err(error.to_string()),
    }
}

fn remote(root: &str, scheme: &str, options: &OriginOptions) -> Result<Opened, OriginError> {
    let url = parse(root)?;
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| problem(root, "it names no bucket or host"))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(problem(root, "a query or fragment means nothing here"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(problem(root, "credentials belong into the configuration"));
    }
    let prefix = Path::from_url_path(url.path().trim_end_matches('/'))
        .map_err(|error| problem(root, &error.to_string()))?;
    let client = client(scheme == "http" || options.allow_http, options);
    let store = match scheme {
        "s3" | "s3a" => s3(host, client, options),
        "gs" => gcs(host, client, options),
        "az" | "azure" => azure(host, client, options),
        "http" | "https" => HttpBuilder::new()
            .with_url(&url[..url::Position::BeforePath])
            .with_client_options(client)
            .with_retry(no_retries())
            .build()
            .map(|store| Arc::new(store) as Arc<dyn ObjectStore>),
        _ => {
            return Err(problem(root, "known are s3, gs, az, http, https, file and plain paths"));
        }
    };
    let store = store.map_err(|error| problem(root, &error.to_string()))?;
    Ok(Opened { store, prefix, url: root.trim_end_matches('/').to_owned(), local: false })
}

type Built = object_store::Result<Arc<dyn ObjectStore>>;

fn s3(bucket: &str, client: ClientOptions, options: &OriginOptions) -> Built {
    let given = options.access_key_id.is_some() || options.secret_access_key.is_some();
    let mut builder = if options.instance_credentials && !given {
        AmazonS3Builder::from_env()
    } else {
        AmazonS3Builder::new().with_skip_signature(!given)
    };
    builder = builder
        .with_bucket_name(bucket)
        .with_client_options(client)
        .with_retry(no_retries())
        .with_region(options.region.as_deref().unwrap_or("us-east-1"));
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(key) = &options.access_key_id {
        builder = builder.with_access_key_id(key);
    }
    if let Some(secret) = &options.secret_access_key {
        builder = builder.with_secret_access_key(secret);
    }
    if let Some(token) = &options.session_token {
        builder = builder.with_token(token);
    }
    Ok(Arc::new(builder.build()?))
}

fn gcs(bucket: &str, client: ClientOptions, options: &OriginOptions) -> Built {
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(bucket)
        .with_client_options(client)
        .with_retry(no_retries());
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    if let Some(file) = &options.google_credentials {
        builder = builder.with_application_credentials(file);
    } else if let Some(token) = &options.session_token {
        builder = builder.with_bearer_token(token);
    } else {
        builder = builder.with_skip_signature(!options.instance_credentials);
    }
    Ok(Arc::new(builder.build()?))
}

fn azure(container: &str, client: ClientOptions, options: &OriginOptions) -> Built {
    let mut builder = MicrosoftAzureBuilder::new()
        .with_container_name(container)
        .with_client_options(client)
        .with_retry(no_retries());
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if let Some(account) = &options.access_key_id {
        builder = builder.with_account(account);
    }
    if let Some(key) = &options.secret_access_key {
        builder = builder.with_access_key(key);
    } else if let Some(token) = &options.session_token {
        builder = builder.with_bearer_token_authorization(token);
    } else {
        builder = builder.with_skip_signature(!options.instance_credentials);
    }
    Ok(Arc::new(builder.build()?))
}

fn client(allow_http: bool, options: &OriginOptions) -> ClientOptions {
    // Without a provider the client panics when it is built.
    install_tls();
    ClientOptions::new()
        .with_allow_http(allow_http)
        .with_connect_timeout(options.connect_timeout)
        .with_read_timeout(options.read_timeout)
        // A whole request is bounded by the caller's deadline: how long a part
        // may take depends on its size.
        .with_timeout_disabled()
}

/// Retries live in one place, and it is not this one: the store would wait for
/// minutes without knowing of any deadline.
fn no_retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 0,
        retry_timeout: std::time::Duration::ZERO,
    }
}

fn parse(root: &str) -> Result<Url, OriginError> {
    Url::parse(root).map_err(|error| problem(root, &error.to_string()))
}

fn problem(root: &str, problem: &str) -> OriginError {
    OriginError::Root { url: root.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_that_mean_nothing_are_refused() {
        let options = OriginOptions::default();
        for root in [
            "",
            "s3://",
            "s3:///key",
            "ftp://host/x",
            "file://host/x",
            "s3://bucket/x?versionId=1",
            "https://user:secret@host/x",
            "/nowhere/../x",
        ] {
            assert!(open(root, &options).is_err(), "{root:?} was accepted");
        }
    }

    #[test]
    fn every_scheme_opens_without_credentials_and_without_contact() {
        let options = OriginOptions { access_key_id: None, ..OriginOptions::default() };
        for root in ["s3://bucket/a/b", "gs://bucket/a/b/", "http://host:1/a/b"] {
            let opened = open(root, &options).expect(root);
            assert_eq!(opened.prefix.as_ref(), "a/b", "{root}");
            assert!(!opened.url.ends_with('/'));
        }
        let account = OriginOptions { access_key_id: Some("account".into()), ..options };
        assert_eq!(open("az://box/a/b", &account).expect("az").prefix.as_ref(), "a/b");
    }
}
