//! Streams with one thing wrong: an error, or the right blocks all the same.

use std::collections::BTreeMap;

use std::task::{Context, Poll};

use proptest::prelude::*;
use prost::Message as _;
use tonic::Status;
use tpad_manifest::{BlockId, ExpertKey, TierId};
use tpad_proto::v1;

use super::super::reader::BlockReader;
use super::*;
use crate::receive::ReplyBytes;

/// The image of expert `n`: sizes differ, so that pieces do not fit by chance.
fn image(n: u32) -> Vec<u8> {
    let bytes = 256 * (n as usize + 1);
    (0..=u8::MAX).cycle().map(|at| at ^ u8::try_from(n).unwrap_or(0)).take(bytes).collect()
}

fn key(expert: u32) -> BlockKey {
    let key = ExpertKey { tier: TierId::Number(1), group: 0, expert };
    BlockKey::Expert { key, layer: 0 }
}

fn block(expert: u32) -> Part {
    let image = image(expert);
    let bytes = image.len() as u64;
    Part::Block(Block {
        key: Some((&key(expert)).into()),
        block_id: BlockId::of(&image).as_bytes().to_vec().into(),
        image_bytes: bytes,
        tensors: vec![v1::Tensor {
            name: "w".to_owned(),
            dtype: "U8".to_owned(),
            shape: vec![bytes],
            bytes,
            projection: v1::Projection::Up.into(),
            part: v1::Part::Weight.into(),
            values_per_element: 1,
            ..v1::Tensor::default()
        }],
        ..Block::default()
    })
}

fn stream(experts: u32) -> Vec<Part> {
    let bytes = (0..experts).map(|n| image(n).len() as u64).sum();
    let start = v1::StreamStart {
        model: "m".to_owned(),
        blocks: experts.into(),
        bytes,
        ..Default::default()
    };
    let blocks = (0..experts).flat_map(|expert| {
        let pieces = image(expert).chunks(200).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let pieces = pieces.into_iter().map(|piece| Part::Payload(piece.into()));
        std::iter::once(block(expert)).chain(pieces)
    });
    std::iter::once(Part::Start(start)).chain(blocks).collect()
}

/// A reply that is all there, handed out a few bytes at a time.
struct Whole(Vec<u8>, usize);

impl ReplyBytes for Whole {
    fn poll_read(&mut self, _: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, Status>> {
        let bytes = into.len().min(self.0.len()).min(self.1);
        into[..bytes].copy_from_slice(&self.0[..bytes]);
        self.0.drain(..bytes);
        Poll::Ready(Ok(bytes))
    }

    fn status(&mut self) -> Status {
        Status::ok("")
    }
}

/// The blocks of a stream, digests checked, or the first error.
fn read(parts: Vec<Part>, experts: u32) -> Result<BTreeMap<BlockKey, Vec<u8>>, Error> {
    let mut bytes = Vec::new();
    for part in parts {
        let part = Some(BlockPart { part: Some(part) });
        let message = v1::FetchExpertsResponse { part }.encode_to_vec();
        bytes.push(0);
        bytes.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
        bytes.extend(message);
    }
    let keys = (0..experts).map(|expert| ExpertKey { tier: TierId::Number(1), group: 0, expert });
    let fetch =
        crate::FetchExperts { model: "m".into(), keys: keys.collect(), ..Default::default() };
    let reader = BlockReader::over(Whole(bytes, 113), fetch.into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut reader = reader.await?;
        let mut blocks = BTreeMap::new();
        let mut memory = vec![0; 1 << 16];
        while let Some(bytes) = reader.next().await? {
            let image = &mut memory[..usize::try_from(bytes).expect("small")];
            reader.receive(image).await?;
            let block = reader.close()?.with_image(0..image.len(), |_, range| Some(range))?;
            let found = BlockId::of(image);
            if found != block.id {
                return Err(Error::CorruptBlock { key: block.key, expected: block.id, found });
            }
            assert_eq!(block.tensors[0].bytes, block.image);
            blocks.insert(block.key, image.to_vec());
        }
        Ok(blocks)
    })
}

#[derive(Clone, Debug)]
enum Fault {
    Drop(prop::sample::Index),
    Repeat(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    Flip(prop::sample::Index, prop::sample::Index, u8),
    Cut(prop::sample::Index),
}

fn fault() -> impl Strategy<Value = Fault> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        at().prop_map(Fault::Drop),
        at().prop_map(Fault::Repeat),
        (at(), at()).prop_map(|(a, b)| Fault::Swap(a, b)),
        (at(), at(), 1..=u8::MAX).prop_map(|(part, byte, mask)| Fault::Flip(part, byte, mask)),
        at().prop_map(Fault::Cut),
    ]
}

fn spoil(parts: &mut Vec<Part>, fault: &Fault) {
    let length = parts.len();
    match fault {
        Fault::Drop(at) => drop(parts.remove(at.index(length))),
        Fault::Repeat(at) => {
            let part = parts[at.index(length)].clone();
            parts.insert(at.index(length), part);
        }
        Fault::Swap(a, b) => parts.swap(a.index(length), b.index(length)),
        Fault::Cut(at) => parts.truncate(at.index(length)),
        Fault::Flip(at, byte, mask) => {
            if let Part::Payload(payload) = &mut parts[at.index(length)] {
                let mut bytes = payload.to_vec();
                let byte = byte.index(bytes.len());
                bytes[byte] ^= mask;
                *payload = bytes.into();
            }
        }
    }
}

fn right(experts: u32) -> BTreeMap<BlockKey, Vec<u8>> {
    (0..experts).map(|expert| (key(expert), image(expert))).collect()
}

proptest! {
    #[test]
    fn a_spoiled_stream_is_an_error_or_still_right(experts in 1u32..5, fault in fault()) {
        let whole = stream(experts);
        let mut parts = whole.clone();
        spoil(&mut parts, &fault);
        match read(parts.clone(), experts) {
            Ok(blocks) => prop_assert_eq!(blocks, right(experts)),
            Err(_) => prop_assert!(parts != whole, "a whole stream was refused"),
        }
    }
}

#[test]
fn a_block_that_comes_twice_does_not_hide_one_that_is_missing() {
    let mut parts = stream(2);
    // Equal sizes: counts and bytes alone would agree.
    let Part::Start(start) = &mut parts[0] else { unreachable!("the first") };
    start.bytes = 2 * image(0).len() as u64;
    let first = parts[1..4].to_vec();
    let twice = parts.into_iter().take(4).chain(first).collect();
    let error = read(twice, 2).expect_err("the second block is missing");
    assert!(error.to_string().contains("came twice"), "{error}");
}
