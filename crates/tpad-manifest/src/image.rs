//! A block's image: its tensors in index order, each on a 256-byte boundary,
//! zero padded.

use crate::SizeError;

/// Tensors start, and images end, on a multiple of this: what GPU loads and
/// direct I/O both like.
pub const IMAGE_ALIGN_BYTES: u64 = 256;

/// Where a block's tensors lie in its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLayout {
    /// Each tensor's first byte.
    pub offsets: Vec<u64>,
    /// The image's size, padding included.
    pub bytes: u64,
}

impl ImageLayout {
    /// The layout of tensors of these sizes, in order.
    ///
    /// # Errors
    /// [`SizeError::Overflow`] when the image would not fit in 64 bits.
    pub fn of(tensor_bytes: impl IntoIterator<Item = u64>) -> Result<Self, SizeError> {
        let overflow = |n| SizeError::Overflow(vec![n], "U8".into());
        let mut offsets = Vec::new();
        let mut end = 0u64;
        for bytes in tensor_bytes {
            offsets.push(end);
            end = end
                .checked_add(bytes)
                .and_then(|end| end.checked_next_multiple_of(IMAGE_ALIGN_BYTES))
                .ok_or_else(|| overflow(bytes))?;
        }
        Ok(Self { offsets, bytes: end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_aligned_and_the_end_is_padded() {
        let layout = ImageLayout::of([1, 256, 257, 0]).expect("small");
        assert_eq!(layout.offsets, [0, 256, 512, 1024]);
        assert_eq!(layout.bytes, 1024);
        assert!(ImageLayout::of([u64::MAX, 1]).is_err());
    }
}
