//! Protobuf as bytes, written by hand, so that it can be written wrong.

/// A message under construction.
#[derive(Clone, Debug, Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    /// A varint field.
    pub(super) fn number(mut self, field: u64, value: u64) -> Self {
        varint(&mut self.0, field << 3);
        varint(&mut self.0, value);
        self
    }

    /// A varint field, left out when it is the default.
    pub(super) fn unless_zero(self, field: u64, value: u64) -> Self {
        if value == 0 { self } else { self.number(field, value) }
    }

    /// A length-delimited field.
    pub(super) fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        varint(&mut self.0, (field << 3) | 2);
        varint(&mut self.0, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    /// A field that holds a message.
    pub(super) fn message(self, field: u64, message: &Self) -> Self {
        self.bytes(field, &message.0)
    }

    /// A packed list of varints.
    pub(super) fn packed(self, field: u64, values: &[u64]) -> Self {
        let mut packed = Vec::new();
        values.iter().for_each(|value| varint(&mut packed, *value));
        self.bytes(field, &packed)
    }

    /// Bytes as they are.
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

pub(super) fn varint(into: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            return into.push(low & 0x7f);
        }
        into.push(low | 0x80);
    }
}

/// What no protobuf reader may accept, by name, whatever message it stands at
/// the end of.
pub(super) fn broken_tails() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("key-of-eleven-bytes", vec![0xff; 11]),
        ("key-cut-off", vec![0x80]),
        ("field-number-zero", vec![0x02, 0x00]),
        ("wire-type-six", vec![0x7e, 0x00]),
        ("wire-type-seven", vec![0x7f, 0x00]),
        ("length-cut-off", vec![0x7a]),
        ("length-beyond-the-end", vec![0x7a, 0x05, 0x00]),
        (
            "length-of-64-bits",
            vec![0x7a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        ),
        ("group-never-closed", vec![0x7b]),
        ("group-closed-twice", vec![0x7b, 0x7c, 0x7c]),
        ("fixed64-cut-off", vec![0x79, 0x00, 0x00]),
        ("fixed32-cut-off", vec![0x7d, 0x00]),
        ("deep-groups", [0x7b].repeat(200)),
    ]
}
