//! An image on its way in.

use bytes::{Bytes, BytesMut};

/// The most memory that is taken for bytes which have not come: a larger image
/// grows as it arrives, so a claim alone costs nothing.
const TRUST_BYTES: u64 = 64 << 20;

/// The bytes of an image so far.
#[derive(Debug)]
pub(super) struct Image {
    bytes: u64,
    parts: Parts,
}

#[derive(Debug)]
enum Parts {
    None,
    /// The image came in one message: it stays where it was received.
    Whole(Bytes),
    Several(BytesMut),
}

/// More bytes came than were announced.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Excess(pub(super) u64);

impl Image {
    /// An image of which `bytes` are announced.
    pub(super) fn of(bytes: u64) -> Self {
        Self { bytes, parts: Parts::None }
    }

    pub(super) fn received(&self) -> u64 {
        match &self.parts {
            Parts::None => 0,
            Parts::Whole(bytes) => bytes.len() as u64,
            Parts::Several(bytes) => bytes.len() as u64,
        }
    }

    pub(super) fn announced(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_complete(&self) -> bool {
        self.received() == self.bytes
    }

    pub(super) fn push(&mut self, payload: Bytes) -> Result<(), Excess> {
        let missing = self.bytes - self.received();
        let length = payload.len() as u64;
        if length > missing {
            return Err(Excess(length - missing));
        }
        match &mut self.parts {
            Parts::Several(bytes) => {
                let rest = usize::try_from(missing).unwrap_or(usize::MAX);
                if bytes.capacity() - bytes.len() < payload.len() {
                    bytes.reserve(rest.min(bytes.len().max(payload.len())));
                }
                bytes.extend_from_slice(&payload);
            }
            Parts::None | Parts::Whole(_) if length == self.bytes => {
                self.parts = Parts::Whole(payload);
            }
            Parts::None | Parts::Whole(_) => {
                let trusted = usize::try_from(self.bytes.min(TRUST_BYTES)).unwrap_or(0);
                let mut bytes = BytesMut::with_capacity(trusted.max(payload.len()));
                bytes.extend_from_slice(&payload);
                self.parts = Parts::Several(bytes);
            }
        }
        Ok(())
    }

    pub(super) fn into_bytes(self) -> Bytes {
        match self.parts {
            Parts::None => Bytes::new(),
            Parts::Whole(bytes) => bytes,
            Parts::Several(bytes) => bytes.freeze(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_and_a_whole_image_is_not_copied() {
        let whole = Bytes::from(vec![7u8; 256]);
        let mut image = Image::of(256);
        image.push(whole.clone()).expect("fits");
        assert!(image.is_complete());
        assert_eq!(image.into_bytes().as_ptr(), whole.as_ptr());

        let mut image = Image::of(300);
        for piece in [100u8, 150, 50] {
            assert!(!image.is_complete());
            image.push(Bytes::from(vec![piece; usize::from(piece)])).expect("fits");
        }
        assert!(image.is_complete());
        assert_eq!(image.push(Bytes::from_static(b"x")), Err(Excess(1)));
        let bytes = image.into_bytes();
        assert_eq!((bytes.len(), bytes[99], bytes[100], bytes[299]), (300, 100, 150, 50));
    }

    #[test]
    fn a_claim_alone_takes_no_memory() {
        let mut image = Image::of(u64::MAX);
        image.push(Bytes::from_static(b"x")).expect("fits");
        let Parts::Several(bytes) = &image.parts else { unreachable!("one of many pieces") };
        assert!(bytes.capacity() as u64 <= TRUST_BYTES);
        assert_eq!(image.received(), 1);
    }
}
