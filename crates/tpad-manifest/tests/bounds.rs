//! What a hostile publisher can write down in a few bytes is not compared with
//! itself over and over: time grows with the size of documents, not with their
//! product.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tpad_manifest::{
    BlockTemplate, Catalog, Digest, Dtype, GateUp, GroupRun, IndexHeader, Manifest, ObjectRecord,
    Orientation, Part, Projection, Role, Segment, SegmentEntry, TensorTemplate, TierId,
};

const MOST: Duration = Duration::from_secs(1);

/// What this thread has used of a processor: a loaded machine does not make a
/// check slow.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanos = stat.split_whitespace().next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.expect("time on the processor"))
}

fn tensor(dtype: &str) -> TensorTemplate {
    TensorTemplate {
        name: "w".into(),
        dtype: Dtype::from(dtype),
        shape: vec![2, 4],
        role: Role { projection: Projection::Down, part: Part::Weight },
        orientation: Orientation::OutIn,
        gate_up: GateUp::Unknown,
        values_per_element: 1,
        sliced: false,
    }
}

fn entry(layer: u32) -> SegmentEntry {
    SegmentEntry {
        layer,
        offset: 0,
        bytes: 1,
        digest: Digest::of(b""),
        blocks: 1,
        image_bytes: 0,
        parameters: 0,
    }
}

fn header(templates: usize, tensors: usize, layers: u32) -> IndexHeader {
    IndexHeader {
        tier: Some("a".into()),
        objects: vec![ObjectRecord { path: "x".into(), bytes: 4096 }],
        templates: vec![BlockTemplate { tensors: vec![tensor("BF16"); tensors] }; templates],
        segments: (0..layers).map(entry).collect(),
    }
}

#[test]
fn groups_of_one_large_template_read_it_once() {
    let header = header(1, 1024, 1);
    let groups = vec![GroupRun { experts: 0, template: 0 }; 65_536];
    let segment = Segment { groups, ..Segment::default() };
    let began = processor_time();
    let problems = segment.check(&header, &header.segments[0]);
    let took = processor_time() - began;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].message.contains("0 blocks"), "{problems:?}");
    assert!(took < MOST, "{took:?}");
}

#[test]
fn an_index_is_held_against_its_manifest_in_one_pass() {
    // Every layer and every tensor of the index is one that the manifest does
    // not have, and both have as many as they may.
    let layers: Vec<String> =
        (70_000..70_000 + 65_536).map(|n| format!("{{\"layer\":{n}}}")).collect();
    let dtypes = vec!["\"F32\""; 100_000].join(",");
    let text = format!(
        r#"{{"format_version":"1.1","layers":[{}],"tiers":[{{"id":"a","parameter_budget":1,
        "groups":[{{"experts":1}}],"compatibility":{{"dtypes":[{dtypes}]}}}}]}}"#,
        layers.join(",")
    );
    let loaded = Manifest::parse(text.as_bytes()).expect("an honest, if odd, manifest");
    let header = Arc::new(header(64, 1024, 65_536));
    let tiers = BTreeMap::from([(TierId::Name("a".into()), header)]);
    let began = processor_time();
    let problems = Catalog::new(loaded, tiers, None).expect_err("they contradict each other");
    let took = processor_time() - began;
    assert!(problems[0].message.contains("the index has layer 0"), "{:?}", problems[0]);
    assert!(problems.len() < 1000, "{} problems", problems.len());
    assert!(took < MOST, "{took:?}");
}
