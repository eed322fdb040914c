//! Checkpoints whose shard is one of the hostile corpus are refused by the
//! importer with the file and the place, and nothing is written.

use std::fs::File;
use std::io::Write as _;
use std::process::Command;

use tpad_tests::checkpoint::said;
use tpad_tests::hostile::{Claim, Kind, each};
use tpad_tests::scene::play;
use tpad_tests::tools;

/// Cases whose file would be larger cannot be laid on every file system.
const MOST_FILE_BYTES: u64 = 1 << 40;

#[test]
fn hostile_shards_are_refused_by_the_importer() {
    play(async |scene| {
        let mut count = 0;
        let mut wrong = Vec::new();
        each(|case| {
            let (Kind::Shard, Claim::Whole(bytes)) = (case.kind, case.claim) else { return };
            if case.path().is_none() || bytes > MOST_FILE_BYTES {
                return;
            }
            let root = scene.directory().join(&case.name);
            std::fs::create_dir(&root).expect("a new directory");
            let mut shard = File::create(root.join("model.safetensors")).expect("room");
            shard.write_all(&case.bytes).expect("room");
            // What the file claims to hold behind its header is a hole.
            shard.set_len(bytes).expect("a sparse file");
            let mut import = Command::new(tools::program("tpactl"));
            import.arg("import").arg(&root).args(["--model", "hostile"]);
            import.arg("--state-dir").arg(scene.directory().join("import-state"));
            let output = import.output().expect("tpactl runs");
            let words = said(&output);
            let place = [&case.place, &case.says, "model.safetensors"];
            if output.status.success() || !place.iter().all(|word| words.contains(&**word)) {
                wrong.push(format!("{}: {place:?} are expected: {words}", case.name));
            }
            if root.join("tpad").exists() {
                wrong.push(format!("{}: something was written", case.name));
            }
            count += 1;
        });
        assert!(count > 80, "{count} cases");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}
