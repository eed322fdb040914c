//! A published model in a directory of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tpad_publish::{ImportOptions, Silent, import};
use tpad_store::{ObjectOrigin, OriginOptions};

/// A checkpoint that can be imported and changed.
pub(crate) struct Model {
    directory: TempDir,
}

/// The origin of a directory.
pub(crate) fn origin(path: &Path) -> ObjectOrigin {
    ObjectOrigin::open(path.to_str().expect("text"), &OriginOptions::default()).expect("opened")
}

impl Model {
    /// A copy of a fixture.
    pub(crate) fn fixture(name: &str) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        let directory = tempfile::tempdir().expect("scratch");
        for entry in fs::read_dir(fixtures.join(name)).expect("a fixture") {
            let from = entry.expect("an entry").path();
            let bytes = fs::read(&from).expect("readable");
            let name = from.file_name().expect("a name");
            fs::write(directory.path().join(name), bytes).expect("written");
        }
        Self { directory }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Publishes its first revision.
    pub(crate) async fn import(&self) {
        let options = ImportOptions {
            model: "model".to_owned(),
            plan: None,
            dry_run: false,
            ledger: None,
            now: "2026-11-23T12:00:00Z".parse().expect("a time"),
        };
        let stop = CancellationToken::new();
        let imported = import(&origin(self.path()), None, &options, &Silent, &stop).await;
        imported.expect("imported");
    }

    /// Every file below its directory.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut directories: Vec<PathBuf> = vec![self.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let name = path.strip_prefix(self.path()).expect("below").display().to_string();
                files.insert(name, fs::read(&path).expect("readable"));
            }
        }
        files
    }

    /// Flips a bit of a tensor in a shard.
    pub(crate) fn flip(&self, shard: &str, tensor: &str) {
        let path = self.path().join(shard);
        let mut bytes = fs::read(&path).expect("readable");
        let at = {
            let file = SafeTensors::deserialize(&bytes).expect("a shard");
            let data = file.tensor(tensor).expect("it is in this shard");
            data.data().as_ptr().addr() - bytes.as_ptr().addr()
        };
        bytes[at + 11] ^= 1;
        fs::write(&path, bytes).expect("written");
    }
}
