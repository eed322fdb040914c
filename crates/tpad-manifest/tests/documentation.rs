//! `docs/manifest.md` and the schema say what the code does.

use serde_json::Value;
use tpad_manifest::Manifest;

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/manifest.schema.json");
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/manifest.md");

/// The fields of the schema's objects, as `Type.field`.
fn fields(schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let definitions = schema["$defs"].as_object().expect("records have definitions");
    let records = definitions.iter().map(|(name, record)| (name.as_str(), record));
    for (name, record) in records.chain([("Manifest", schema)]) {
        for field in record["properties"].as_object().into_iter().flatten() {
            found.push(format!("{name}.{}", field.0));
        }
    }
    found
}

#[test]
fn the_schema_is_the_one_that_the_code_generates() {
    let schema = Manifest::schema();
    let kept = std::fs::read_to_string(SCHEMA).unwrap_or_default();
    if serde_json::from_str::<Value>(&kept).ok().as_ref() != Some(&schema) {
        let generated = serde_json::to_string_pretty(&schema).expect("writes") + "\n";
        let fresh = std::env::temp_dir().join("manifest.schema.json");
        std::fs::write(&fresh, generated).expect("the temporary folder is writable");
        panic!(
            "docs/manifest.schema.json is not what the code generates; read {} and copy it there",
            fresh.display()
        );
    }
}

#[test]
fn every_field_has_its_row_with_a_default() {
    let text = std::fs::read_to_string(DOCUMENT).expect("docs/manifest.md is there");
    let rows: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let name = cells.next()?.trim_end_matches('`').to_owned();
            let default = cells.nth(1)?.trim().to_owned();
            Some((name, default))
        })
        .collect();
    let fields = fields(&Manifest::schema());
    for field in &fields {
        let row = rows.iter().find(|(name, _)| name == field);
        let (_, default) = row.unwrap_or_else(|| panic!("docs/manifest.md has no row for {field}"));
        assert!(!default.is_empty(), "{field} has no default in docs/manifest.md");
    }
    for (name, _) in rows.iter().filter(|(name, _)| name.contains('.')) {
        assert!(fields.contains(name), "docs/manifest.md has a row for {name}, the code has not");
    }
}
