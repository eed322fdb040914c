//! Rows: the part of a router that scores some experts.

use tpad_manifest::{ByteRange, TensorRecord};

use crate::layout::RouterTensor;

/// The router's tensor with these rows alone, in this order; `None` when its
/// rows cannot be cut out as bytes. Rows that follow one another share a range.
pub(crate) fn cut(router: &RouterTensor, columns: &[u32]) -> Option<TensorRecord> {
    let Some(rows) = router.rows else {
        return router.cuttable.then(|| router.record.clone());
    };
    let mut record = router.record.clone();
    let [whole] = &*record.ranges else { return None };
    let row_bytes = whole.bytes.checked_div(rows.into())?;
    let mut ranges: Vec<ByteRange> = Vec::new();
    for column in columns {
        if *column >= rows {
            return None;
        }
        let offset = row_bytes.checked_mul((*column).into())?.checked_add(whole.offset)?;
        match ranges.last_mut() {
            Some(last) if last.offset.checked_add(last.bytes) == Some(offset) => {
                last.bytes = last.bytes.checked_add(row_bytes)?;
            }
            _ => ranges.push(ByteRange { object: whole.object.clone(), offset, bytes: row_bytes }),
        }
    }
    let axis = record.shape.iter_mut().find(|dim| **dim == u64::from(rows))?;
    *axis = u64::try_from(columns.len()).ok()?;
    record.ranges = ranges;
    Some(record)
}
