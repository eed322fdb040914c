//! A checkpoint in a directory of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tpad_publish::{
    ImportError, ImportOptions, Imported, Progress, Silent, SynthSpec, import, synthesize,
};
use tpad_store::{ObjectOrigin, OriginOptions};

/// The checkpoints that transformers wrote.
pub(crate) const FIXTURES: &[&str] =
    &["deepseek_v3", "deepseek_v3_fp8", "gpt_oss", "mixtral", "qwen3_moe"];

/// A checkpoint, with a place for ledgers beside it.
pub(crate) struct Checkpoint {
    directory: TempDir,
    path: PathBuf,
}

/// A tensor as the safetensors library reads it.
pub(crate) struct Tensor {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) file: String,
    /// Its first byte in the file.
    pub(crate) offset: u64,
}

/// The origin of a directory.
pub(crate) fn origin(path: &Path) -> ObjectOrigin {
    ObjectOrigin::open(path.to_str().expect("text"), &OriginOptions::default()).expect("opened")
}

impl Checkpoint {
    /// A copy of a fixture.
    pub(crate) fn fixture(name: &str) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        let checkpoint = Self::empty();
        fs::create_dir(checkpoint.path()).expect("made");
        for entry in fs::read_dir(fixtures.join(name)).expect("a fixture") {
            let from = entry.expect("an entry").path();
            // Read and written, so that the copy can be changed.
            let bytes = fs::read(&from).expect("readable");
            let name = from.file_name().expect("a name");
            fs::write(checkpoint.path().join(name), bytes).expect("written");
        }
        checkpoint
    }

    /// A synthetic checkpoint.
    pub(crate) fn synth(spec: &SynthSpec) -> Self {
        let checkpoint = Self::empty();
        synthesize(spec, checkpoint.path(), &Silent, &CancellationToken::new()).expect("made");
        checkpoint
    }

    fn empty() -> Self {
        let directory = tempfile::tempdir().expect("scratch");
        let path = directory.path().join("checkpoint");
        Self { directory, path }
    }

    /// The checkpoint's directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn ledger(&self) -> PathBuf {
        self.directory.path().join("ledgers")
    }

    /// How many ledgers there are.
    pub(crate) fn ledgers(&self) -> usize {
        fs::read_dir(self.ledger()).map_or(0, Iterator::count)
    }

    pub(crate) fn options(&self) -> ImportOptions {
        ImportOptions {
            model: "model".to_owned(),
            plan: None,
            dry_run: false,
            ledger: Some(self.ledger()),
            now: "2026-11-23T12:00:00Z".parse().expect("a time"),
        }
    }

    pub(crate) async fn import(&self) -> Result<Imported, ImportError> {
        self.import_with(&self.options(), &Silent, &CancellationToken::new()).await
    }

    pub(crate) async fn import_with(
        &self,
        options: &ImportOptions,
        progress: &dyn Progress,
        stop: &CancellationToken,
    ) -> Result<Imported, ImportError> {
        import(&origin(self.path()), None, options, progress, stop).await
    }

    /// Bytes of the images that an import digests.
    pub(crate) async fn import_size(&self) -> u64 {
        let options = ImportOptions { dry_run: true, ..self.options() };
        let imported = self.import_with(&options, &Silent, &CancellationToken::new()).await;
        imported.expect("surveyed").image_bytes
    }

    /// Every file below the checkpoint's directory.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        fn walk(root: &Path, directory: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
            for entry in fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    walk(root, &path, files);
                    continue;
                }
                let name = path.strip_prefix(root).expect("below").to_str().expect("text");
                files.insert(name.to_owned(), fs::read(&path).expect("readable"));
            }
        }
        let mut files = BTreeMap::new();
        walk(self.path(), self.path(), &mut files);
        files
    }

    /// Every tensor, as the safetensors library reads it.
    pub(crate) fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::new();
        for (file, bytes) in self.files() {
            if !file.ends_with(".safetensors") {
                continue;
            }
            for (name, view) in SafeTensors::deserialize(&bytes).expect("legal").iter() {
                let dtype = serde_json::to_value(view.dtype()).expect("a name");
                let tensor = Tensor {
                    dtype: dtype.as_str().expect("a name").to_owned(),
                    shape: view.shape().iter().map(|dim| *dim as u64).collect(),
                    bytes: view.data().to_vec(),
                    file: file.clone(),
                    offset: (view.data().as_ptr().addr() - bytes.as_ptr().addr()) as u64,
                };
                assert!(tensors.insert(name.to_owned(), tensor).is_none(), "{name} twice");
            }
        }
        tensors
    }

    /// Flips a bit of the byte at `offset`, from the end if it is negative.
    pub(crate) fn flip(&self, file: &str, offset: i64) {
        let path = self.path().join(file);
        let mut bytes = fs::read(&path).expect("readable");
        let length = i64::try_from(bytes.len()).expect("fits");
        let at = if offset < 0 { length + offset } else { offset };
        bytes[usize::try_from(at).expect("inside")] ^= 1;
        fs::write(&path, bytes).expect("written");
    }

    /// Replaces a text in a file, where it must be.
    pub(crate) fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.path().join(file);
        let text = fs::read_to_string(&path).expect("text");
        assert!(text.contains(from), "{file} does not hold {from}");
        fs::write(&path, text.replacen(from, to, 1)).expect("written");
    }
}

/// A web server over a directory: it answers GET and HEAD, with ranges, and
/// nothing else. It ends with the test's runtime.
pub(crate) struct Server {
    pub(crate) url: String,
}

pub(crate) async fn serve(directory: &Path) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let url = format!("http://{}/models/m", listener.local_addr().expect("an address"));
    let directory = directory.to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, directory.clone()));
        }
    });
    Server { url }
}

async fn answer(stream: TcpStream, directory: PathBuf) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            match stream.read_line(&mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) if line.trim().is_empty() => break,
                Ok(_) => head.push(line.trim().to_owned()),
            }
        }
        let mut words = head[0].split(' ');
        let (method, path) = (words.next().expect("a method"), words.next().expect("a path"));
        let file = path.strip_prefix("/models/m/").map(|name| directory.join(name));
        let found = file.and_then(|file| fs::read(file).ok()).filter(|_| method != "PROPFIND");
        let range = head.iter().find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned)
        });
        let (status, headers, body) = match (found, range) {
            (None, _) => ("404 Not Found", String::new(), Vec::new()),
            (Some(bytes), None) => ("200 OK", String::new(), bytes),
            (Some(bytes), Some(range)) => {
                let (from, to) = range.split_once('-').expect("a range");
                let from: usize = from.parse().expect("a number");
                let to = to.parse().unwrap_or(bytes.len()).min(bytes.len() - 1);
                let headers = format!("content-range: bytes {from}-{to}/{}\r\n", bytes.len());
                ("206 Partial Content", headers, bytes[from..=to].to_vec())
            }
        };
        let head = format!(
            "HTTP/1.1 {status}\r\n{headers}last-modified: Mon, 23 Nov 2026 12:00:00 GMT\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let body = if method == "HEAD" { Vec::new() } else { body };
        if stream.write_all(&[head.into_bytes(), body].concat()).await.is_err() {
            return;
        }
    }
}
