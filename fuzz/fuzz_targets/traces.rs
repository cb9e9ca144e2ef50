//! Arbitrary bytes are an export of OpenTelemetry or a fault, in protobuf and in JSON. The reader of
//! protobuf finds the same in chunks of any size.
#![no_main]

use failure_logger::program::{TraceCounts, read_json_traces, read_protobuf_traces};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let protobuf = read_protobuf_traces(body, usize::MAX);
    for TraceCounts { steps, spans } in [protobuf, read_json_traces(body)] {
        // A span has a byte at least.
        assert!(steps <= body.len());
        assert!(spans <= body.len() as u64);
    }
    // Fixed sizes, because the corpus is plain exports: no byte of the input stands for a size.
    for chunk_bytes in [1, 7, 4096] {
        assert_eq!(read_protobuf_traces(body, chunk_bytes), protobuf);
    }
});
