//! What a reply hands to HTTP/2 at a time: what is small with what follows it.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::edge::in_flight::Share;
use crate::edge::stream::StreamState;

/// Bytes that HTTP/2 writes as one frame, if the client takes frames of that length;
/// counted as the client's until they are dropped.
pub(in crate::edge) struct Data {
    /// Messages' headers. Copied before the payload they would cost its copy, and as a frame
    /// of their own a write, which wakes the client for next to nothing.
    head: Bytes,
    payload: Bytes,
    /// Last: what is counted is dropped before it.
    _counted: Counted,
}

struct Counted {
    bytes: u64,
    stream: Arc<StreamState>,
    share: Arc<Share>,
}

impl Data {
    pub(in crate::edge) fn new(
        head: Bytes,
        payload: Bytes,
        stream: &Arc<StreamState>,
        share: &Arc<Share>,
    ) -> Self {
        // usize is 64 bits wherever this runs.
        let bytes = (head.len() + payload.len()) as u64;
        stream.sends(bytes);
        share.add(bytes);
        let (stream, share) = (Arc::clone(stream), Arc::clone(share));
        Self { head, payload, _counted: Counted { bytes, stream, share } }
    }
}

impl Buf for Data {
    fn remaining(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    fn chunk(&self) -> &[u8] {
        if self.head.is_empty() { &self.payload } else { &self.head }
    }

    fn advance(&mut self, count: usize) {
        let of_head = count.min(self.head.len());
        self.head.advance(of_head);
        self.payload.advance(count - of_head);
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = [&self.head, &self.payload].into_iter().filter(|part| !part.is_empty());
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        count
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.stream.taken(self.bytes, || self.share.remove(self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::EdgeMetrics;
    use crate::edge::in_flight::{InFlight, PeerName};

    /// Of both parts, and what counts them.
    fn data(head: &'static [u8], payload: &'static [u8]) -> (Data, EdgeMetrics) {
        let metrics = EdgeMetrics::default();
        let all = Arc::new(InFlight::new(64 << 20, 16 << 20, 1, &metrics));
        let share = Arc::new(all.join(PeerName::User(None)));
        let (head, payload) = (Bytes::from_static(head), Bytes::from_static(payload));
        (Data::new(head, payload, &StreamState::current(), &share), metrics)
    }

    fn slices(data: &Data, most: usize) -> Vec<Vec<u8>> {
        let mut slices = vec![IoSlice::new(&[]); most];
        let count = data.chunks_vectored(&mut slices);
        slices[..count].iter().map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn both_parts_are_read_in_order_however_much_at_a_time() {
        for step in 1..=7 {
            let (mut data, _) = data(b"abc", b"defg");
            let mut read = Vec::new();
            while data.has_remaining() {
                let taken = step.min(data.remaining());
                read.extend(data.copy_to_bytes(taken));
            }
            assert_eq!(read, b"abcdefg", "{step} at a time");
            assert!(slices(&data, 2).is_empty());
        }
    }

    #[test]
    fn both_parts_are_written_at_once_as_far_as_they_are_there() {
        let (mut both, _) = data(b"abc", b"de");
        assert_eq!(slices(&both, 4), [b"abc".to_vec(), b"de".to_vec()]);
        assert_eq!(slices(&both, 1), [b"abc".to_vec()]);
        both.advance(1);
        assert_eq!(slices(&both, 4), [b"bc".to_vec(), b"de".to_vec()]);
        both.advance(3);
        assert_eq!(slices(&both, 4), [b"e".to_vec()]);
        assert_eq!(slices(&data(b"", b"de").0, 4), [b"de".to_vec()]);
        assert_eq!(slices(&data(b"abc", b"").0, 4), [b"abc".to_vec()]);
    }

    #[test]
    fn it_counts_as_held_until_it_is_dropped_and_as_sent_from_then_on() {
        let (mut data, metrics) = data(b"abc", b"de");
        data.advance(4);
        assert_eq!((metrics.in_flight_bytes.get(), metrics.sent_bytes.get()), (5, 0));
        drop(data);
        assert_eq!((metrics.in_flight_bytes.get(), metrics.sent_bytes.get()), (0, 5));
    }
}
