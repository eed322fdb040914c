//! What there is.

use anyhow::Result;
use serde_json::json;

use crate::log::Log;
use crate::stage::Stage;

/// Says what there is.
///
/// # Errors
/// When the driver does not say.
pub fn run(stage: &Stage, log: &Log) -> Result<()> {
    log.say(
        &format!("driver: {}", stage.driver.version()),
        "driver",
        &json!({ "kind": stage.driver.kind(), "version": stage.driver.version() }),
    );
    for facts in stage.driver.devices()? {
        let memory = stage.driver.open(&facts.uuid.into())?.memory()?;
        let line = format!(
            "device {}: {}, {}, {:.1} GiB, {:.1} free, memory in steps of {} KiB, exports: {}",
            facts.index,
            facts.name,
            facts.uuid,
            gib(facts.total_bytes),
            gib(memory.free_bytes),
            facts.granularity_bytes / 1024,
            facts.exports,
        );
        log.say(&line, "device", &json!({ "facts": facts, "memory": memory }));
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
