//! The reader beside `opentelemetry-proto`, on requests that proptest makes, and on damaged ones.

use std::path::Path;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span as ProtoSpan, Status, span::Event as ProtoEvent,
};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

use super::span::{Event, Value};
use super::*;

fn text(text: &str) -> AnyValue {
    AnyValue {
        value: Some(any_value::Value::StringValue(text.into())),
    }
}

fn attribute(key: &str, value: AnyValue) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(value),
        ..KeyValue::default()
    }
}

/// A span with ids, an end and these attributes.
fn proto_span(id: u8, attributes: Vec<KeyValue>) -> ProtoSpan {
    ProtoSpan {
        trace_id: vec![7; 16],
        span_id: vec![id; 8],
        name: "Retriever.retrieve".into(),
        start_time_unix_nano: 1_790_000_000_000_000_000,
        end_time_unix_nano: 1_790_000_000_012_500_000,
        attributes,
        ..ProtoSpan::default()
    }
}

fn request(spans: Vec<ProtoSpan>) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![attribute("service.name", text("shop"))],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

/// Reads a body in chunks of this size. Returns the steps and the number of spans.
fn read(body: &[u8], chunk: usize) -> (Vec<Step>, u64, Result<(), Malformed>) {
    let mut reader = ProtobufReader::new();
    let mut steps = Vec::new();
    for chunk in body.chunks(chunk.max(1)) {
        reader.push(chunk);
        loop {
            match reader.next() {
                Ok(Step::End) => break,
                Ok(step) => steps.push(step),
                Err(fault) => return (steps, reader.spans(), Err(fault)),
            }
        }
    }
    let end = reader.finish();
    (steps, reader.spans(), end)
}

fn retrievals(body: &[u8]) -> Vec<Retrieval> {
    let (steps, _, end) = read(body, usize::MAX);
    assert_eq!(end, Ok(()));
    let retrievals = steps.into_iter().map(|step| match step {
        Step::Retrieval(retrieval) => *retrieval,
        step => panic!("{step:?}"),
    });
    retrievals.collect()
}

/// The outcome of a span with these attributes, without a threshold.
fn outcome_of(attributes: Vec<KeyValue>) -> OutcomeKind {
    let body = request(vec![proto_span(1, attributes)]).encode_to_vec();
    retrievals(&body)[0].outcome(Judgement::default())
}

fn kind(kind: &str) -> KeyValue {
    attribute("openinference.span.kind", text(kind))
}

// --- The reference: what the generated types of opentelemetry-proto hold.

fn reference_value(value: Option<&AnyValue>) -> Value<'_> {
    use any_value::Value as Proto;
    match value.and_then(|value| value.value.as_ref()) {
        None => Value::Null,
        Some(Proto::StringValue(text)) => Value::Text(text.as_str().into()),
        Some(Proto::BoolValue(bool)) => Value::Bool(*bool),
        Some(Proto::IntValue(integer)) => Value::Integer(*integer),
        Some(Proto::DoubleValue(double)) => Value::Double(*double),
        Some(Proto::ArrayValue(list)) => Value::List(
            list.values
                .iter()
                .map(|value| reference_value(Some(value)))
                .collect(),
            list.values.len(),
        ),
        Some(_) => Value::Other,
    }
}

fn reference_attributes(attributes: &[KeyValue]) -> Attributes<'_> {
    let attributes = attributes
        .iter()
        .map(|KeyValue { key, value, .. }| (key.as_str().into(), reference_value(value.as_ref())));
    Attributes(attributes.collect())
}

fn reference_id<const N: usize>(id: &[u8]) -> Option<[u8; N]> {
    id.try_into().ok().filter(|id| *id != [0; N])
}

fn reference_span(span: &ProtoSpan) -> Span<'_> {
    Span {
        trace_id: reference_id(&span.trace_id),
        span_id: reference_id(&span.span_id),
        parent_id: reference_id(&span.parent_span_id),
        name: span.name.as_str().into(),
        started_at: span.start_time_unix_nano,
        ended_at: span.end_time_unix_nano,
        has_error: span.status.as_ref().is_some_and(|status| status.code == 2),
        status_message: span
            .status
            .as_ref()
            .map_or("", |status| status.message.as_str())
            .into(),
        attributes: reference_attributes(&span.attributes),
        events: span
            .events
            .iter()
            .map(|event| Event {
                name: event.name.as_str().into(),
                attributes: reference_attributes(&event.attributes),
            })
            .collect(),
    }
}

fn reference(request: &ExportTraceServiceRequest) -> Vec<Result<Retrieval, SpanFault>> {
    let mut steps = Vec::new();
    for resource in &request.resource_spans {
        let attributes = resource
            .resource
            .as_ref()
            .map(|resource| reference_attributes(&resource.attributes));
        let source = source(&attributes.unwrap_or_default());
        for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
            let span = reference_span(span);
            let mut scan = Scan::default();
            scan.set_name(span.name.as_bytes());
            for (key, value) in &span.attributes.0 {
                if let Some(text) = value.text().filter(|_| Scan::needs(key.as_bytes())) {
                    scan.set(key.as_bytes(), text.as_bytes());
                }
            }
            steps.extend(Retrieval::from_span(&scan, &span, &source));
        }
    }
    steps
}

// --- Generators.

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{0,6}",
        "\\PC{0,12}",
        Just("[]".to_owned()),
        Just(r#"{"query":"q","documents":[{"score":0.5}],"count":1}"#.to_owned()),
        Just("chroma".to_owned()),
        Just("RETRIEVER".to_owned()),
        Just("retrieval".to_owned()),
    ]
}

fn any_attribute_value() -> impl Strategy<Value = AnyValue> {
    use any_value::Value as Proto;
    let leaf = prop_oneof![
        any_text().prop_map(Proto::StringValue),
        any::<bool>().prop_map(Proto::BoolValue),
        any::<i64>().prop_map(Proto::IntValue),
        (-1e9..1e9).prop_map(Proto::DoubleValue),
        vec(any::<u8>(), 0..4).prop_map(Proto::BytesValue),
    ];
    let nested = leaf.prop_recursive(3, 12, 4, |inner| {
        vec(inner, 0..4).prop_map(|values| {
            let values = values
                .into_iter()
                .map(|value| AnyValue { value: Some(value) });
            Proto::ArrayValue(ArrayValue {
                values: values.collect(),
            })
        })
    });
    proptest::option::of(nested).prop_map(|value| AnyValue { value })
}

fn any_attribute() -> impl Strategy<Value = KeyValue> {
    let key = prop_oneof![
        Just("openinference.span.kind".to_owned()),
        Just("gen_ai.operation.name".to_owned()),
        Just("db.system".to_owned()),
        Just("input.value".to_owned()),
        Just("output.value".to_owned()),
        Just("retrieval.documents".to_owned()),
        (0..3_u8).prop_map(|index| format!("retrieval.documents.{index}.document.score")),
        Just("gen_ai.retrieval.documents".to_owned()),
        Just("error.type".to_owned()),
        any_text(),
    ];
    (key, any_attribute_value()).prop_map(|(key, value)| attribute(&key, value))
}

fn any_span() -> impl Strategy<Value = ProtoSpan> {
    let id = |length| {
        prop_oneof![
            4 => vec(any::<u8>(), length..=length),
            1 => vec(any::<u8>(), 0..20),
        ]
    };
    let event =
        (any_text(), vec(any_attribute(), 0..3)).prop_map(|(name, attributes)| ProtoEvent {
            name: if name.len() == 3 {
                "exception".into()
            } else {
                name
            },
            attributes,
            ..ProtoEvent::default()
        });
    let status = (0..3, any_text()).prop_map(|(code, message)| Status { code, message });
    let name = prop_oneof![
        any_text(),
        Just("chroma.query".into()),
        Just("vector_db_retrieve x".into())
    ];
    (
        (id(16), id(8), id(8)),
        name,
        (any::<u64>(), prop_oneof![Just(0), any::<u64>()]),
        vec(any_attribute(), 0..8),
        vec(event, 0..3),
        proptest::option::of(status),
    )
        .prop_map(
            |((trace_id, span_id, parent_span_id), name, times, attributes, events, status)| {
                ProtoSpan {
                    trace_id,
                    span_id,
                    parent_span_id,
                    name,
                    start_time_unix_nano: times.0,
                    end_time_unix_nano: times.1,
                    attributes,
                    events,
                    status,
                    trace_state: "x".into(),
                    dropped_attributes_count: 3,
                    flags: 1,
                    ..ProtoSpan::default()
                }
            },
        )
}

fn any_request() -> impl Strategy<Value = ExportTraceServiceRequest> {
    let scope = vec(any_span(), 0..4).prop_map(|spans| ScopeSpans {
        spans,
        schema_url: "s".into(),
        ..ScopeSpans::default()
    });
    let resource = proptest::option::of(vec(any_attribute(), 0..3).prop_map(|mut attributes| {
        attributes.push(attribute("service.name", text("shop")));
        Resource {
            attributes,
            ..Resource::default()
        }
    }));
    let resource_spans =
        (resource, vec(scope, 0..3)).prop_map(|(resource, scope_spans)| ResourceSpans {
            resource,
            scope_spans,
            ..ResourceSpans::default()
        });
    vec(resource_spans, 0..3)
        .prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans })
}

proptest! {
    #[test]
    fn reader_agrees_with_opentelemetry_proto(request in any_request(), chunk in 1_usize..200) {
        let body = request.encode_to_vec();
        let (steps, spans, end) = read(&body, chunk);
        prop_assert_eq!(end, Ok(()));
        let expected = reference(&request);
        let steps: Vec<_> = steps
            .into_iter()
            .map(|step| match step {
                Step::Retrieval(retrieval) => Ok(*retrieval),
                Step::Rejected(fault) => Err(fault),
                Step::End => unreachable!(),
            })
            .collect();
        prop_assert_eq!(&steps, &expected);
        let all = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
        prop_assert_eq!(spans, all.map(|scope| scope.spans.len() as u64).sum::<u64>());

        let json = serde_json::to_string(&request).unwrap();
        let parsed = JsonRequest::parse(&json).unwrap();
        prop_assert_eq!(parsed.spans, spans);
        prop_assert_eq!(parsed.steps, expected);
    }

    #[test]
    fn damaged_body_is_read_as_by_opentelemetry_proto_or_is_a_fault(
        request in any_request(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut body = request.encode_to_vec();
        prop_assume!(!body.is_empty());
        for (at, byte) in damage {
            *at.get_mut(&mut body) = byte;
        }
        body.truncate(cut.index(body.len()) + 1);
        let (_, spans, end) = read(&body, 7);
        prop_assert!(spans <= body.len() as u64);
        // prost rejects everything that is no request. The reader skips what it does not need.
        if ExportTraceServiceRequest::decode(&*body).is_ok() {
            let is_group = matches!(end, Err(Malformed::Group));
            prop_assert!(end.is_ok() || is_group, "{:?}", end);
        }
    }

    #[test]
    fn any_text_is_no_panic(json in "\\PC{0,40}") {
        let _ = JsonRequest::parse(&json);
    }
}

/// Reads a body as protobuf and as JSON. No step stands for less than a byte.
fn read_damaged(body: &[u8]) {
    let (steps, spans, _) = read(body, 64);
    assert!(steps.len() <= body.len() && spans <= body.len() as u64);
    let json = String::from_utf8_lossy(body);
    if let Ok(JsonRequest { steps, spans }) = JsonRequest::parse(&json) {
        assert!(steps.len() <= body.len() && spans <= body.len() as u64);
    }
}

#[test]
fn damaged_fixture_is_no_panic() {
    // A prime, so that the places fall on each part of the fields that repeat.
    damage_fixtures(31);
}

#[test]
#[ignore = "takes minutes without optimizations"]
fn fixture_with_any_byte_damaged_is_no_panic() {
    damage_fixtures(1);
}

/// Cuts each fixture at each `stride`-th byte, and replaces that byte.
fn damage_fixtures(stride: usize) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/otlp");
    let mut read = 0;
    for file in std::fs::read_dir(fixtures).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension == "md") {
            continue;
        }
        read += 1;
        let body = std::fs::read(&path).unwrap();
        let mut damaged = body.clone();
        for at in (0..body.len()).step_by(stride) {
            read_damaged(&body[..at]);
            for byte in [0x00, 0xff] {
                damaged[at] = byte;
                read_damaged(&damaged);
            }
            damaged[at] = body[at];
        }
    }
    assert!(read >= 11, "{read} fixtures");
}

#[test]
fn spans_without_retrievals_allocate_nothing_each() {
    let attributes: Vec<_> = (0..12)
        .map(|nth| attribute(&format!("http.request.header.{nth}"), text(&"x".repeat(30))))
        .collect();
    let body = |spans| {
        let spans = (0..spans).map(|id| proto_span(id, attributes.clone()));
        request(spans.collect()).encode_to_vec()
    };
    let allocations = |body: &[u8]| {
        let mut reader = ProtobufReader::new();
        reader.push(body);
        let info = allocation_counter::measure(|| {
            assert_eq!(reader.next(), Ok(Step::End));
        });
        info.count_total
    };
    let (few, many) = (allocations(&body(1)), allocations(&body(200)));
    assert_eq!(few, many);
}

#[test]
fn absent_documents_are_no_evidence() {
    use OutcomeKind::{NoHit, Success, Unknown};
    let document = |index: u8, score| {
        let key = format!("retrieval.documents.{index}.document.score");
        let value = Some(any_value::Value::DoubleValue(score));
        attribute(&key, AnyValue { value })
    };
    let empty = AnyValue {
        value: Some(any_value::Value::ArrayValue(ArrayValue::default())),
    };
    let output = |json| attribute("output.value", text(json));
    assert_eq!(outcome_of(vec![kind("RETRIEVER")]), Unknown);
    assert_eq!(
        outcome_of(vec![kind("retriever"), document(0, 0.1)]),
        Success
    );
    let no_document = attribute("retrieval.documents", empty);
    assert_eq!(outcome_of(vec![kind("RETRIEVER"), no_document]), NoHit);
    assert_eq!(outcome_of(vec![kind("RETRIEVER"), output("[]")]), NoHit);
    assert_eq!(
        outcome_of(vec![kind("RETRIEVER"), output(r#"{"documents": []}"#)]),
        NoHit
    );
    assert_eq!(outcome_of(vec![kind("RETRIEVER"), output("")]), Unknown);
    assert_eq!(outcome_of(vec![kind("RETRIEVER"), output("{}")]), Unknown);
}

#[test]
fn score_on_the_wrong_side_of_the_threshold_is_low_confidence() {
    let judged = |score: f64, threshold, direction| {
        let attributes = vec![
            kind("RETRIEVER"),
            attribute("retrieval.documents.0.document.score", text("-1")),
            attribute(
                "retrieval.documents.1.document.score",
                AnyValue {
                    value: Some(any_value::Value::DoubleValue(score)),
                },
            ),
        ];
        let retrieval = retrievals(&request(vec![proto_span(1, attributes)]).encode_to_vec());
        retrieval[0].outcome(Judgement {
            threshold,
            direction,
        })
    };
    assert_eq!(judged(0.4, None, None), OutcomeKind::Success);
    assert_eq!(judged(0.4, Some(0.5), None), OutcomeKind::LowConfidence);
    assert_eq!(judged(0.5, Some(0.5), None), OutcomeKind::Success);
    let lower = Some(ScoreDirection::LowerIsBetter);
    assert_eq!(judged(0.6, Some(0.5), lower), OutcomeKind::LowConfidence);
}

#[test]
fn error_is_told_from_timeout_and_cancellation() {
    let outcome = |code, status: &str, exception: Option<(&str, &str)>| {
        let mut span = proto_span(1, vec![kind("RETRIEVER")]);
        span.status = Some(Status {
            code,
            message: status.into(),
        });
        span.events
            .extend(exception.map(|(name, message)| ProtoEvent {
                name: "exception".into(),
                attributes: vec![
                    attribute("exception.type", text(name)),
                    attribute("exception.message", text(message)),
                ],
                ..ProtoEvent::default()
            }));
        let retrieval = retrievals(&request(vec![span]).encode_to_vec()).remove(0);
        let sent = retrieval.into_sent(TraceRuling::default());
        (sent.kind, sent.error_context.unwrap_or_default())
    };
    let attempt = SentKind::Attempt;
    assert_eq!(
        outcome(2, "", Some(("TimeoutError", "5 s passed"))),
        (
            attempt(OutcomeKind::Timeout),
            "TimeoutError: 5 s passed".into()
        )
    );
    assert_eq!(
        outcome(2, "context deadline exceeded", None),
        (
            attempt(OutcomeKind::Timeout),
            "context deadline exceeded".into()
        )
    );
    assert_eq!(
        outcome(2, "", Some(("asyncio.CancelledError", ""))),
        (
            attempt(OutcomeKind::Cancelled),
            "asyncio.CancelledError".into()
        )
    );
    assert_eq!(
        outcome(2, "x", Some(("ValueError", "ValueError: bad"))),
        (attempt(OutcomeKind::Error), "ValueError: bad".into())
    );
    // The application handled the exception.
    assert_eq!(
        outcome(1, "", Some(("ValueError", "bad"))),
        (attempt(OutcomeKind::Unknown), String::new())
    );
}

#[test]
fn event_id_has_the_end_in_front_and_depends_on_the_span_alone() {
    let ids = |id, end| {
        let mut span = proto_span(id, vec![kind("RETRIEVER")]);
        span.end_time_unix_nano = end;
        retrievals(&request(vec![span]).encode_to_vec())[0].event_id()
    };
    let id = ids(1, 1_790_000_000_012_500_000);
    assert_eq!(id.get_version_num(), 8);
    assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
    assert_eq!(id.as_u128() >> 80, 1_790_000_000_012);
    assert_eq!(id, ids(1, 1_790_000_000_012_900_000));
    assert_ne!(id, ids(2, 1_790_000_000_012_500_000));
    assert!(id < ids(2, 1_790_000_000_013_000_000));
}

#[test]
fn longest_latency_is_no_overflow() {
    let mut span = proto_span(1, vec![kind("RETRIEVER")]);
    (span.start_time_unix_nano, span.end_time_unix_nano) = (1, u64::MAX);
    let retrieval = retrievals(&request(vec![span]).encode_to_vec()).remove(0);
    let sent = retrieval.into_sent(TraceRuling::default());
    assert_eq!(sent.latency.unwrap().whole, u64::MAX / 1_000_000);
}

#[test]
fn record_has_the_source_that_its_resource_names() {
    let retrieval = |span| retrievals(&request(vec![span]).encode_to_vec()).remove(0);
    let mut named = retrieval(proto_span(1, vec![kind("RETRIEVER")]));
    let mut unnamed = named.clone();
    named.source = "shop".into();
    unnamed.source = UNKNOWN_SOURCE.into();
    let source = |of: Retrieval| of.into_sent(TraceRuling::default()).source;
    assert_eq!(source(named).as_deref(), Some("shop"));
    assert_eq!(source(unnamed), None);
}

#[test]
fn outer_span_wins_and_inner_one_fills_what_it_lacks() {
    let span = |attributes| {
        let mut all = vec![kind("RETRIEVER")];
        all.extend(attributes);
        retrievals(&request(vec![proto_span(1, all)]).encode_to_vec()).remove(0)
    };
    let score = |value| attribute("retrieval.documents.0.document.score", text(value));
    let inner = span(vec![attribute("input.value", text("inner")), score("0.7")]);
    let mut outer = span(vec![attribute("input.value", text("outer, longer"))]);
    outer.join(&inner);
    assert_eq!(outer.query.as_deref(), Some("outer, longer"));
    assert_eq!(
        (outer.query_len, outer.score, outer.count),
        (13, Some(0.7), Some(1))
    );
    let mut without_query = span(vec![score("0.2")]);
    without_query.join(&inner);
    assert_eq!(without_query.query.as_deref(), Some("inner"));
    assert_eq!(
        (without_query.query_len, without_query.score),
        (5, Some(0.2))
    );
    let mut empty = span(vec![attribute("output.value", text("[]"))]);
    empty.join(&inner);
    assert_eq!((empty.score, empty.count), (None, Some(0)));
}

#[test]
fn too_long_a_span_is_skipped_and_the_next_one_is_read() {
    let long = attribute("input.value", text(&"x".repeat(MAX_SPAN_BYTES)));
    let spans = vec![
        proto_span(1, vec![kind("RETRIEVER"), long]),
        proto_span(2, vec![kind("RETRIEVER")]),
    ];
    let (steps, spans, end) = read(&request(spans).encode_to_vec(), 10_000);
    assert_eq!((spans, end), (2, Ok(())));
    assert_eq!(steps[0], Step::Rejected(SpanFault::TooLong));
    assert!(matches!(&steps[1], Step::Retrieval(it) if it.id.span == [2; 8]));
}

#[test]
fn span_without_id_or_end_is_rejected_alone() {
    let retriever = || vec![kind("RETRIEVER")];
    let mut without_id = proto_span(1, retriever());
    without_id.span_id = vec![0; 8];
    let mut without_end = proto_span(2, retriever());
    without_end.end_time_unix_nano = 0;
    let mut other = proto_span(3, Vec::new());
    other.span_id = Vec::new();
    let spans = vec![without_id, without_end, other, proto_span(4, retriever())];
    let (steps, spans, _) = read(&request(spans).encode_to_vec(), 64);
    assert_eq!((spans, steps.len()), (4, 3));
    assert_eq!(steps[0], Step::Rejected(SpanFault::MissingId));
    assert_eq!(steps[1], Step::Rejected(SpanFault::MissingEnd));
}

#[test]
fn responses_are_what_opentelemetry_proto_reads() {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;

    let none = PartialSuccess::default();
    assert_eq!(
        (none.to_protobuf(), none.to_json()),
        (Vec::new(), serde_json::json!({}))
    );
    for (rejected, message) in [(0, "careful"), (300, ""), (1, "no id")] {
        let partial = PartialSuccess {
            rejected,
            message: message.into(),
        };
        let decoded = ExportTraceServiceResponse::decode(&*partial.to_protobuf()).unwrap();
        let decoded = decoded.partial_success.unwrap();
        assert_eq!(decoded.rejected_spans, rejected.cast_signed());
        assert_eq!(decoded.error_message, message);
        assert_eq!(
            partial.to_json()["partialSuccess"]["rejectedSpans"],
            rejected.to_string()
        );
    }
}
