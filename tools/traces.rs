//! Traces for a service: mixed traffic of prepared requests on connections that are kept alive.
//!
//! One span in ten is a retrieval, and one retrieval in five has found nothing. Every request has
//! new span ids, which are written into its prepared body, so that nothing is a repeated export.
//!
//! ```console
//! failure-logger serve --db traces.db &
//! cargo run --release --example traces -- --seconds 60
//! ```

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;

#[derive(Parser)]
struct Args {
    /// Address of the service.
    #[arg(long, default_value = "127.0.0.1:4318")]
    address: String,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Connections, each with a thread of its own.
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// Spans of a request.
    #[arg(long, default_value_t = 512)]
    spans: u64,
    /// Size of a span in bytes. What exceeds 600 is text in one attribute, as a captured prompt is.
    #[arg(long, default_value_t = 600)]
    bytes: usize,
    /// Compress the bodies. Compression needs the ids of a body before, so that 64 bodies are
    /// prepared, and their retrievals are repeated exports from the 65th request on.
    #[arg(long)]
    gzip: bool,
}

/// Id that every prepared span has, where a request writes its own.
const PLACEHOLDER: [u8; 8] = *b"SPAN-ID!";

/// Prepared body, with the places of its span ids.
struct Body {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn text(text: impl Into<String>) -> any_value::Value {
    any_value::Value::StringValue(text.into())
}

/// A span of about the wanted size with twelve attributes.
fn span(nth: u64, bytes: usize) -> Span {
    let mut attributes: Vec<KeyValue> = (0..8)
        .map(|attr| {
            attribute(
                &format!("app.attribute.{attr}"),
                text("a value of some length"),
            )
        })
        .collect();
    if nth.is_multiple_of(10) {
        attributes.push(attribute("openinference.span.kind", text("RETRIEVER")));
        attributes.push(attribute(
            "input.value",
            text(format!("where is the key of room {nth}?")),
        ));
        if nth.is_multiple_of(50) {
            attributes.push(attribute("output.value", text("[]")));
        } else {
            let score = any_value::Value::DoubleValue(0.7);
            attributes.push(attribute("retrieval.documents.0.document.score", score));
        }
    } else {
        attributes.push(attribute("http.request.method", text("GET")));
        attributes.push(attribute(
            "http.response.status_code",
            any_value::Value::IntValue(200),
        ));
        attributes.push(attribute("url.path", text("/api/v1/things")));
    }
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let now = u64::try_from(now.as_nanos()).unwrap_or_default();
    let mut span = Span {
        trace_id: [&nth.to_be_bytes()[..], &[7; 8]].concat(),
        span_id: PLACEHOLDER.into(),
        // A parent that is no retrieval, as in most applications: retrievals wait for it.
        parent_span_id: vec![5; 8],
        name: "VectorIndexRetriever.retrieve".into(),
        start_time_unix_nano: now - 12_000_000,
        end_time_unix_nano: now,
        attributes,
        ..Span::default()
    };
    let missing = bytes.saturating_sub(span.encoded_len() + 24);
    span.attributes
        .push(attribute("llm.prompt", text("p".repeat(missing))));
    span
}

fn body(args: &Args) -> Body {
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![attribute("service.name", text("load"))],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans: (0..args.spans).map(|nth| span(nth, args.bytes)).collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    let bytes = request.encode_to_vec();
    let places = bytes
        .windows(PLACEHOLDER.len())
        .enumerate()
        .filter_map(|(at, window)| (window == PLACEHOLDER).then_some(at))
        .collect();
    Body { bytes, places }
}

impl Body {
    /// Gives each span a new id.
    fn renew(&mut self, ids: &AtomicU64) {
        let first = ids.fetch_add(self.places.len() as u64, Ordering::Relaxed);
        for (id, place) in (first..).zip(&self.places) {
            self.bytes[*place..place + 8].copy_from_slice(&id.to_be_bytes());
        }
    }
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = async_compression::tokio::write::GzipEncoder::new(Vec::new());
    futures_executor::block_on(async {
        encoder.write_all(bytes).await.expect("memory");
        encoder.shutdown().await.expect("memory");
    });
    encoder.into_inner()
}

/// Sends requests until the time is over. Returns the number of spans that got a 200, and of
/// requests that got a 503 and were sent again.
fn run(args: &Args, ids: &AtomicU64, until: Instant) -> (u64, u64) {
    let mut prepared = body(args);
    let compressed: Vec<Vec<u8>> = (0..if args.gzip { 64 } else { 0 })
        .map(|_| {
            prepared.renew(ids);
            gzipped(&prepared.bytes)
        })
        .collect();
    let encoding = if args.gzip {
        "Content-Encoding: gzip\r\n"
    } else {
        ""
    };
    let mut stream = TcpStream::connect(&args.address).expect("a service at --address");
    stream.set_nodelay(true).expect("a socket");
    let (mut spans, mut retried) = (0, 0);
    let mut response = [0; 4096];
    for nth in 0.. {
        if Instant::now() >= until {
            break;
        }
        if !args.gzip {
            prepared.renew(ids);
        }
        let bytes = compressed
            .get(nth % compressed.len().max(1))
            .unwrap_or(&prepared.bytes);
        let head = format!(
            "POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n\
             {encoding}Content-Length: {}\r\n\r\n",
            bytes.len()
        );
        loop {
            stream.write_all(head.as_bytes()).expect("a connection");
            stream.write_all(bytes).expect("a connection");
            let length = stream.read(&mut response).expect("a response");
            let status = &response[9..12.min(length)];
            if status == b"200" {
                spans += args.spans;
                break;
            }
            assert_eq!(
                status,
                b"503",
                "{}",
                String::from_utf8_lossy(&response[..length])
            );
            retried += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    (spans, retried)
}

fn main() {
    let args = Args::parse();
    // Ids of another run would be repeated exports.
    let start = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let ids = AtomicU64::new(u64::try_from(start.as_nanos()).unwrap_or_default());
    let began = Instant::now();
    let until = began + Duration::from_secs(args.seconds);
    let (spans, retried) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.connections)
            .map(|_| scope.spawn(|| run(&args, &ids, until)))
            .collect();
        threads
            .into_iter()
            .fold((0, 0), |(spans, retried), thread| {
                let (more, again) = thread.join().expect("a thread");
                (spans + more, retried + again)
            })
    });
    let seconds = began.elapsed().as_secs_f64();
    let size = body(&args).bytes.len() as f64 / args.spans as f64;
    println!("spans {spans}");
    println!("spans_per_second {:.0}", spans as f64 / seconds);
    println!(
        "megabytes_per_second {:.0}",
        spans as f64 * size / seconds / 1e6
    );
    println!("bytes_per_span {size:.0}");
    println!(
        "retrievals {}",
        spans / args.spans * args.spans.div_ceil(10)
    );
    println!("failures {}", spans / args.spans * args.spans.div_ceil(50));
    println!("retried_requests {retried}");
}
