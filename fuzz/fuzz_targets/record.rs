//! A record from arbitrary JSON: bounded, or refused with a reason; and what was accepted comes
//! back as it is.
#![no_main]

use failure_logger::RetrievalFailureRecord;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let record: RetrievalFailureRecord = match serde_json::from_slice(json) {
        Ok(record) => record,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let characters = |text: &str| text.chars().count();
    assert!(characters(&record.retrieval_strategy) <= 64);
    assert!(characters(&record.query_text) <= 512);
    assert!(
        record
            .conversation_id
            .as_ref()
            .is_none_or(|id| characters(id.as_str()) <= 128)
    );
    assert!(
        record
            .edge_types
            .as_ref()
            .is_none_or(|list| characters(list) <= 1024)
    );
    assert!(
        record
            .error_context
            .as_ref()
            .is_none_or(|text| characters(text) <= 256)
    );

    let again = serde_json::to_string(&record).expect("a record is JSON");
    let back: RetrievalFailureRecord = serde_json::from_str(&again).expect("and JSON is a record");
    // A score too large for 32 bits is an infinity, which JSON writes as null.
    let finite = |score: Option<f32>| score.is_none_or(f32::is_finite);
    if finite(record.top_score) && finite(record.confidence_threshold) {
        assert_eq!(back, record);
    }
});
