//! The end-to-end tests, one module for each promise.

#[test]
fn a_real_s3_server_starts() {
    let weed = tpad_tests::weed::Weed::shared();
    assert!(weed.endpoint().starts_with("http://127.0.0.1:"));
}
