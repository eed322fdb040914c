//! A checkpoint's small files: `config.json`, tokenizer and the like.

use bytes::{Bytes, BytesMut};
use tpad_manifest::Digest;
use tpad_proto::v1::{FetchFileResponse, FileStart, fetch_file_response::Part};

use crate::Error;

/// A file with its bytes.
#[derive(Clone, Debug)]
pub struct FetchedFile {
    /// The name, as the manifest lists it.
    pub name: String,
    /// The manifest's number.
    pub revision: u64,
    /// The daemon's count of swaps.
    pub generation: u64,
    /// The BLAKE3 digest of the bytes.
    pub digest: Digest,
    /// The file.
    pub bytes: Bytes,
}

/// Puts a file together from the messages of its stream.
#[derive(Debug)]
pub(crate) struct FileAssembly {
    name: String,
    limit: u64,
    start: Option<(FileStart, Digest)>,
    bytes: BytesMut,
}

impl FileAssembly {
    pub(crate) fn of(name: &str, limit: u64) -> Self {
        Self { name: name.to_owned(), limit, start: None, bytes: BytesMut::new() }
    }

    pub(crate) fn accept(&mut self, message: FetchFileResponse) -> Result<(), Error> {
        match (message.part, &self.start) {
            (Some(Part::Start(start)), None) => self.open(start),
            (Some(Part::Payload(payload)), Some((start, _))) => {
                let end = (self.bytes.len() as u64).saturating_add(payload.len() as u64);
                if payload.is_empty() {
                    return Err(self.wrong("an empty payload"));
                }
                if end > start.bytes {
                    return Err(self
                        .wrong(format!("{end} bytes came where {} were announced", start.bytes)));
                }
                self.bytes.extend_from_slice(&payload);
                Ok(())
            }
            (Some(Part::Payload(_)), None) => Err(self.wrong("bytes before the file's start")),
            (Some(Part::Start(_)), Some(_)) => Err(self.wrong("a second start")),
            (None, _) => Err(self.wrong("a message without content")),
        }
    }

    /// The file, when all of it came and, if `verify`, it is what its digest
    /// says.
    pub(crate) fn finish(self, verify: bool) -> Result<FetchedFile, Error> {
        let place = self.place();
        let Some((start, digest)) = self.start else {
            return Err(Error::protocol(place, "the stream ended before the file's start"));
        };
        if self.bytes.len() as u64 != start.bytes {
            return Err(Error::protocol(
                place,
                format!("the stream ended after {} of {} bytes", self.bytes.len(), start.bytes),
            ));
        }
        if verify {
            let found = Digest::of(&self.bytes);
            if found != digest {
                return Err(Error::CorruptFile { name: self.name, expected: digest, found });
            }
        }
        Ok(FetchedFile {
            name: self.name,
            revision: start.revision,
            generation: start.generation,
            digest,
            bytes: self.bytes.freeze(),
        })
    }

    fn open(&mut self, start: FileStart) -> Result<(), Error> {
        if start.name != self.name {
            return Err(self.wrong(format!("file {:?} came instead", start.name)));
        }
        if start.bytes > self.limit {
            return Err(Error::TooLarge {
                what: self.place(),
                claimed: start.bytes,
                limit: self.limit,
                option: "max_file_bytes",
            });
        }
        let Ok(digest) = <[u8; 32]>::try_from(&*start.digest) else {
            return Err(self.wrong(format!("a digest of {} bytes", start.digest.len())));
        };
        self.start = Some((start, Digest::from_bytes(digest)));
        Ok(())
    }

    fn place(&self) -> String {
        format!("file {}", self.name)
    }

    fn wrong(&self, what: impl Into<String>) -> Error {
        Error::protocol(self.place(), what)
    }
}
