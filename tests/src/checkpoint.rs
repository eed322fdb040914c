//! Checkpoints where a daemon can serve them: in a directory or in S3,
//! imported with `tpactl` as a publisher does.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tpad_store::{Created, ObjectOrigin, OriginOptions};

use crate::tools;
use crate::weed::{ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, Weed};

/// Where a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// A directory.
    Directory,
    /// The real S3 server.
    S3,
}

/// A checkpoint with its revision.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The name that requests use.
    pub model: String,
    /// Its root.
    pub root: String,
    /// The original's directory.
    pub original: PathBuf,
    /// The S3 server that it is in.
    weed: Option<&'static Weed>,
}

/// One of the checkpoints in `tests/fixtures`.
#[must_use]
pub fn fixture(name: &str) -> PathBuf {
    tools::workspace().join("tests/fixtures").join(name)
}

impl Checkpoint {
    /// Copies the checkpoint in `original` to a store and imports it there;
    /// `plan` is a plan's text. The copy in a directory is made below
    /// `directory`.
    ///
    /// # Panics
    /// When it cannot be copied or imported.
    pub async fn import(
        original: &Path,
        store: Store,
        directory: &Path,
        plan: Option<&str>,
    ) -> Self {
        match store {
            Store::Directory => {
                let root = copy(original, &directory.join(name(original)));
                Self::import_at(original, root, None, directory, plan)
            }
            Store::S3 => Self::import_into(Weed::shared(), original, directory, plan).await,
        }
    }

    /// The same, in a given S3 server.
    ///
    /// # Panics
    /// When it cannot be copied or imported.
    pub async fn import_into(
        weed: &'static Weed,
        original: &Path,
        directory: &Path,
        plan: Option<&str>,
    ) -> Self {
        let root = upload_into(weed, original, &weed.fresh_root(&name(original))).await;
        Self::import_at(original, root, Some(weed), directory, plan)
    }

    /// Imports the checkpoint where it is.
    ///
    /// # Panics
    /// When it cannot be imported.
    #[must_use]
    pub fn import_in_place(directory: &Path, plan: Option<&str>) -> Self {
        let root = directory.display().to_string();
        let aside = directory.parent().expect("a temporary directory has a parent");
        Self::import_at(directory, root, None, aside, plan)
    }

    fn import_at(
        original: &Path,
        root: String,
        weed: Option<&'static Weed>,
        directory: &Path,
        plan: Option<&str>,
    ) -> Self {
        let model = name(original);
        let mut import = tpactl_of(weed.unwrap_or_else(Weed::shared));
        import.args(["import", &root, "--model", &model]);
        import.arg("--state-dir").arg(directory.join("import-state"));
        if let Some(plan) = plan {
            let path = directory.join(format!("{model}-plan.toml"));
            std::fs::write(&path, plan).expect("the plan is written");
            import.arg("--plan").arg(path);
        }
        let output = import.output().expect("tpactl runs");
        assert!(output.status.success(), "import of {root}: {}", said(&output));
        Self { model, root, original: original.to_owned(), weed }
    }

    /// The `[[models]]` section that serves it.
    #[must_use]
    pub fn section(&self) -> String {
        let endpoint = self.weed.map(Weed::endpoint).unwrap_or_default();
        self.section_through(&endpoint)
    }

    /// The same, with another endpoint of the same S3 server.
    #[must_use]
    pub fn section_through(&self, endpoint: &str) -> String {
        let Self { model, root, .. } = self;
        let mut section = format!("[[models]]\nname = \"{model}\"\nroot = \"{root}\"\n");
        if self.weed.is_some() {
            section += &format!(
                "[models.origin]\nendpoint = \"{endpoint}\"\nallow_http = true\n\
                 region = \"{REGION}\"\naccess_key_id = \"{ACCESS_KEY_ID}\"\n\
                 secret_access_key = \"{SECRET_ACCESS_KEY}\"\n"
            );
        }
        section
    }
}

/// `tpactl`, with the S3 server's credentials in its environment.
#[must_use]
pub fn tpactl() -> Command {
    tpactl_of(Weed::shared())
}

/// `tpactl` with another S3 server's address.
#[must_use]
pub fn tpactl_of(weed: &Weed) -> Command {
    let mut command = Command::new(tools::program("tpactl"));
    command
        .env("AWS_ENDPOINT_URL", weed.endpoint())
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_REGION", REGION)
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
        .env_remove("TPAD_ADDR");
    command
}

/// What a program wrote, for messages.
#[must_use]
pub fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// The store below an S3 root, for tests that look into it or change it.
///
/// # Panics
/// When the root is malformed.
#[must_use]
pub fn origin(root: &str) -> ObjectOrigin {
    origin_in(Weed::shared(), root)
}

/// The same, in a given S3 server.
///
/// # Panics
/// When the root is malformed.
#[must_use]
pub fn origin_in(weed: &Weed, root: &str) -> ObjectOrigin {
    let options = OriginOptions {
        endpoint: Some(weed.endpoint()),
        allow_http: true,
        region: Some(REGION.to_owned()),
        access_key_id: Some(ACCESS_KEY_ID.to_owned()),
        secret_access_key: Some(SECRET_ACCESS_KEY.to_owned()),
        ..OriginOptions::default()
    };
    ObjectOrigin::open(root, &options).expect("a root that is one")
}

fn copy(original: &Path, to: &Path) -> String {
    std::fs::create_dir(to).expect("a new directory");
    for (path, name) in files(original) {
        std::fs::copy(path, to.join(name)).expect("room for a copy");
    }
    to.display().to_string()
}

fn name(original: &Path) -> String {
    original.file_name().expect("a directory's name").to_string_lossy().into_owned()
}

/// Puts a checkpoint's files below an S3 root, which is returned.
///
/// # Panics
/// When the server does not take them.
pub async fn upload(original: &Path, root: &str) -> String {
    upload_into(Weed::shared(), original, root).await
}

async fn upload_into(weed: &Weed, original: &Path, root: &str) -> String {
    let origin = origin_in(weed, root);
    for (path, name) in files(original) {
        let bytes = std::fs::read(path).expect("the file");
        let created = origin.create(&name, bytes.into()).await.expect("the S3 server takes it");
        assert_eq!(created, Created::New, "{name}");
    }
    root.to_owned()
}

fn files(directory: &Path) -> Vec<(PathBuf, String)> {
    let entries = directory.read_dir().expect("the checkpoint's directory");
    let paths = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file());
    let named = paths.map(|path| {
        let name = path.file_name().expect("a file's name").to_string_lossy().into_owned();
        (path, name)
    });
    named.collect()
}
