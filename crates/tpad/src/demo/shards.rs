//! The checkpoint's shards, read without any of the daemon's code: what the
//! demo compares with.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

/// The demo made these shards itself, and their headers are far smaller.
const HEADER_LIMIT_BYTES: u64 = 32 << 20;

/// Every tensor of a checkpoint, by name.
#[derive(Debug)]
pub(super) struct Shards {
    tensors: HashMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    file: Arc<File>,
    offset: u64,
    bytes: usize,
    rows: u64,
}

#[derive(Deserialize)]
struct Entry {
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Shards {
    /// Reads the headers of all `*.safetensors` in `directory`.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let mut tensors = HashMap::new();
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                add(&path, &mut tensors)?;
            }
        }
        Ok(Self { tensors })
    }

    /// How many tensors there are.
    pub(super) fn len(&self) -> usize {
        self.tensors.len()
    }

    /// The bytes of tensor `name`.
    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let place = self.place(name)?;
        let mut bytes = vec![0; place.bytes];
        place.file.read_exact_at(&mut bytes, place.offset)?;
        Ok(bytes)
    }

    /// The bytes of these rows of tensor `name`, in this order.
    pub(super) fn rows(&self, name: &str, rows: &[u32]) -> io::Result<Vec<u8>> {
        let place = self.place(name)?;
        let bytes = self.read(name)?;
        let rows_of_tensor = usize::try_from(place.rows).unwrap_or(usize::MAX).max(1);
        let stored: Vec<&[u8]> = bytes.chunks((bytes.len() / rows_of_tensor).max(1)).collect();
        let mut chosen = Vec::new();
        for &row in rows {
            let row = usize::try_from(row).ok().and_then(|row| stored.get(row));
            chosen
                .extend_from_slice(row.ok_or_else(|| invalid(format!("{name} has no such row")))?);
        }
        Ok(chosen)
    }

    fn place(&self, name: &str) -> io::Result<&Place> {
        self.tensors.get(name).ok_or_else(|| invalid(format!("no shard holds {name}")))
    }
}

fn add(path: &Path, tensors: &mut HashMap<String, Place>) -> io::Result<()> {
    let file = Arc::new(File::open(path)?);
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_LIMIT_BYTES {
        return Err(invalid(format!("{} has a header of {length} bytes", path.display())));
    }
    let mut header = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut header, 8)?;
    let entries: HashMap<String, serde_json::Value> = serde_json::from_slice(&header)?;
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let Entry { shape, data_offsets: (start, end) } = serde_json::from_value(entry)?;
        let bytes = end.checked_sub(start).and_then(|bytes| usize::try_from(bytes).ok());
        let offset = start.checked_add(8 + length);
        let (Some(bytes), Some(offset)) = (bytes, offset) else {
            return Err(invalid(format!("{name} lies nowhere in {}", path.display())));
        };
        let rows = shape.first().copied().unwrap_or(1);
        tensors.insert(name, Place { file: Arc::clone(&file), offset, bytes, rows });
    }
    Ok(())
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_and_rows_are_read_as_stored() {
        let directory = tempfile::tempdir().expect("a directory");
        let header = br#"{"a":{"dtype":"U8","shape":[2,2],"data_offsets":[1,5]},"b":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"__metadata__":{"x":"y"}}"#;
        let mut shard = (header.len() as u64).to_le_bytes().to_vec();
        shard.extend_from_slice(header);
        shard.extend_from_slice(b"bAaCc");
        std::fs::write(directory.path().join("x.safetensors"), shard).expect("written");
        let shards = Shards::open(directory.path()).expect("readable");
        assert_eq!(shards.len(), 2);
        assert_eq!(shards.read("a").expect("there"), b"AaCc");
        assert_eq!(shards.read("b").expect("there"), b"b");
        assert_eq!(shards.rows("a", &[1, 0]).expect("there"), b"CcAa");
        assert!(shards.rows("a", &[2]).is_err());
        assert!(shards.read("c").is_err());
    }
}
