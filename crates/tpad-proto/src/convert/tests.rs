use tpad_manifest::{GateUp, Orientation, Part, Projection, TierId};

use super::*;

fn record() -> BlockRecord {
    let tensor = |name: &str, dtype: &str, shape: &[u64], projection, part| TensorRecord {
        name: name.into(),
        dtype: dtype.into(),
        shape: shape.to_vec(),
        role: Role { projection, part },
        orientation: Orientation::OutIn,
        gate_up: GateUp::Interleaved,
        values_per_element: 2,
        sliced: true,
        ranges: Vec::new(),
    };
    BlockRecord {
        id: BlockId::of(b"image"),
        tensors: vec![
            tensor("a.weight", "U8", &[3, 5], Projection::GateUp, Part::Weight),
            tensor("a.scale", "F8_E8M0", &[3, 1], Projection::GateUp, Part::Scale),
        ],
        source: Some(Source { expert: 4, column: 9 }),
    }
}

fn key() -> BlockKey {
    let key = ExpertKey { tier: TierId::Number(7), group: 1, expert: 2 };
    BlockKey::Expert { key, layer: 3 }
}

fn message() -> v1::Block {
    block(&key(), &record(), v1::Medium::Dram).expect("it has a size")
}

#[test]
fn keys_round_trip() {
    let tier = TierId::Name("tier_10b".into());
    for key in [key(), BlockKey::Router { tier, layer: 0 }, BlockKey::Dense { name: "x.y".into() }]
    {
        assert_eq!(BlockKey::try_from(v1::BlockKey::from(&key)), Ok(key));
    }
}

#[test]
fn blocks_round_trip() {
    let wire = message();
    assert_eq!(wire.image_bytes, 512);
    assert_eq!(wire.tensors[1].offset, 256);
    assert_eq!(wire.tensors[1].bytes, 3);
    assert_eq!(<(BlockKey, BlockRecord)>::try_from(wire), Ok((key(), record())));
}

#[test]
fn what_a_peer_leaves_out_or_invents_is_named() {
    type Change = fn(&mut v1::Block);
    let cases: [(Change, &str); 8] = [
        (|b| b.key = None, "key is missing"),
        (|b| b.block_id = "short".into(), "block_id has 5 bytes, 32 are expected"),
        (|b| b.router_column = None, "source_expert and router_column come together"),
        (|b| b.tensors[0].projection = 0, "projection is missing"),
        (|b| b.tensors[0].part = 77, "part is 77, which this version does not know"),
        (|b| b.tensors[1].offset = 255, "is said to be 3 bytes at 255"),
        (|b| b.tensors[1].shape = vec![u64::MAX, 9], "overflows"),
        (|b| b.image_bytes = 511, "image_bytes is 511, the tensors make 512"),
    ];
    for (change, expected) in cases {
        let mut wire = message();
        change(&mut wire);
        let error = <(BlockKey, BlockRecord)>::try_from(wire).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn a_tier_id_that_no_manifest_holds_is_refused() {
    let wire = v1::ExpertKey { tier: "a/b".into(), group: 0, expert: 0 };
    assert!(matches!(ExpertKey::try_from(wire), Err(WireError::Tier(_))));
}
