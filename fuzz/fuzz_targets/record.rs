//! Arbitrary JSON is either rejected with a reason or becomes a record with bounded texts. An
//! accepted record stays equal when it is written as JSON and read.
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
    // The limits are those of the columns. They count characters, because the text is for people.
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

    let written = serde_json::to_string(&record).expect("a record is JSON");
    let read: RetrievalFailureRecord =
        serde_json::from_str(&written).expect("its JSON is a record");
    // A score that is too large for 32 bits becomes an infinity, which is null in JSON.
    let finite = |score: Option<f32>| score.is_none_or(f32::is_finite);
    if finite(record.top_score) && finite(record.confidence_threshold) {
        assert_eq!(read, record);
    }
});
