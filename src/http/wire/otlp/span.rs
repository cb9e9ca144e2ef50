//! Spans of a request in one form, whichever encoding they arrived in.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::value::RawValue;

use super::protobuf::{Field, Fields, Malformed};

/// Maximum depth of nested attribute values. Deeper ones are read as [`Value::Null`].
const MAX_DEPTH: u32 = 8;
/// Maximum number of attributes that are read from a retrieval, and of its events. A retrieval of a
/// thousand documents has about four thousand attributes.
const MAX_ATTRIBUTES: usize = 16_384;
/// Maximum number of elements that are read from a list.
const MAX_ELEMENTS: usize = 16_384;

/// Span of a retrieval, borrowed from the body of its request.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Span<'a> {
    pub(super) trace_id: Option<[u8; 16]>,
    pub(super) span_id: Option<[u8; 8]>,
    /// `None` for the first span of a trace.
    pub(super) parent_id: Option<[u8; 8]>,
    pub(super) name: Cow<'a, str>,
    /// Unix nanoseconds; 0 if the sender left it out.
    pub(super) started_at: u64,
    /// Unix nanoseconds; 0 if the sender left it out.
    pub(super) ended_at: u64,
    pub(super) has_error: bool,
    pub(super) status_message: Cow<'a, str>,
    pub(super) attributes: Attributes<'a>,
    pub(super) events: Vec<Event<'a>>,
}

/// Event of a span, such as an exception.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Event<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) attributes: Attributes<'a>,
}

/// Attributes in their order.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Attributes<'a>(pub(super) Vec<(Cow<'a, str>, Value<'a>)>);

impl<'a> Attributes<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&Value<'a>> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.text().filter(|text| !text.is_empty())
    }

    fn push(&mut self, key: Cow<'a, str>, value: Value<'a>) {
        if self.0.len() < MAX_ATTRIBUTES {
            self.0.push((key, value));
        }
    }
}

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Text(Cow<'a, str>),
    Bool(bool),
    Integer(i64),
    Double(f64),
    /// The length counts all elements, also those that were not read.
    List(Vec<Value<'a>>, usize),
    /// Bytes or a map, neither of which any dialect uses.
    Other,
}

impl Value<'_> {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null
            | Self::Bool(_)
            | Self::Integer(_)
            | Self::Double(_)
            | Self::List(..)
            | Self::Other => None,
        }
    }

    /// Returns a number, also one that was sent as text.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(number) => Some(*number as f64),
            Self::Double(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Null | Self::Bool(_) | Self::List(..) | Self::Other => None,
        }
    }

    /// Returns a number of results.
    pub(super) fn count(&self) -> Option<u64> {
        match self {
            Self::Integer(number) => u64::try_from(*number).ok(),
            Self::Text(text) => text.trim().parse().ok(),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a whole number below 2^53"
            )]
            Self::Double(number)
                if (0.0..9e15).contains(number) && number.fract().abs() < f64::EPSILON =>
            {
                Some(*number as u64)
            }
            Self::Double(_) | Self::Null | Self::Bool(_) | Self::List(..) | Self::Other => None,
        }
    }
}

/// Reads a span. Fields that no dialect uses are skipped.
pub(super) fn from_protobuf(message: &[u8]) -> Result<Span<'_>, Malformed> {
    let mut span = Span::default();
    for field in Fields::new(message) {
        match field? {
            (1, id) => span.trace_id = id.bytes()?.try_into().ok(),
            (2, id) => span.span_id = id.bytes()?.try_into().ok(),
            (4, id) => span.parent_id = id.bytes()?.try_into().ok(),
            (5, name) => span.name = String::from_utf8_lossy(name.bytes()?),
            (7, time) => span.started_at = time.fixed64()?,
            (8, time) => span.ended_at = time.fixed64()?,
            (9, attribute) => attribute_from_protobuf(attribute.bytes()?, &mut span.attributes)?,
            (11, event) if span.events.len() < MAX_ATTRIBUTES => {
                span.events.push(event_from_protobuf(event.bytes()?)?);
            }
            (15, status) => {
                for field in Fields::new(status.bytes()?) {
                    match field? {
                        (2, message) => {
                            span.status_message = String::from_utf8_lossy(message.bytes()?);
                        }
                        (3, code) => span.has_error = code.varint()? == STATUS_ERROR,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(span.without_empty_ids())
}

/// `STATUS_CODE_ERROR`.
const STATUS_ERROR: u64 = 2;

impl Span<'_> {
    /// An id of zeros is none, by the specification.
    fn without_empty_ids(mut self) -> Self {
        self.trace_id = self.trace_id.filter(|id| *id != [0; 16]);
        self.span_id = self.span_id.filter(|id| *id != [0; 8]);
        self.parent_id = self.parent_id.filter(|id| *id != [0; 8]);
        self
    }
}

fn event_from_protobuf(message: &[u8]) -> Result<Event<'_>, Malformed> {
    let mut event = Event::default();
    for field in Fields::new(message) {
        match field? {
            (2, name) => event.name = String::from_utf8_lossy(name.bytes()?),
            (3, attribute) => attribute_from_protobuf(attribute.bytes()?, &mut event.attributes)?,
            _ => {}
        }
    }
    Ok(event)
}

/// Reads an attribute of a resource, span or event.
pub(super) fn attribute_from_protobuf<'a>(
    message: &'a [u8],
    attributes: &mut Attributes<'a>,
) -> Result<(), Malformed> {
    let (key, value) = key_and_value(message)?;
    let value = match value {
        Some(value) => value_from_protobuf(value, 0)?,
        None => Value::Null,
    };
    attributes.push(String::from_utf8_lossy(key), value);
    Ok(())
}

/// Returns the bytes of the key and of the value of an attribute.
#[inline]
pub(super) fn key_and_value(message: &[u8]) -> Result<(&[u8], Option<&[u8]>), Malformed> {
    let (mut key, mut value): (&[u8], _) = (&[], None);
    for field in Fields::new(message) {
        match field? {
            (1, bytes) => key = bytes.bytes()?,
            (2, bytes) => value = Some(bytes.bytes()?),
            _ => {}
        }
    }
    Ok((key, value))
}

/// Returns the text of a value that is text.
#[inline]
pub(super) fn text_of_value(message: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let mut text = None;
    for field in Fields::new(message) {
        if let (1, bytes) = field? {
            text = Some(bytes.bytes()?);
        }
    }
    Ok(text)
}

fn value_from_protobuf(message: &[u8], depth: u32) -> Result<Value<'_>, Malformed> {
    let mut value = Value::Null;
    for field in Fields::new(message) {
        value = match field? {
            (1, text) => Value::Text(String::from_utf8_lossy(text.bytes()?)),
            (2, bool) => Value::Bool(bool.varint()? != 0),
            (3, integer) => Value::Integer(integer.varint()?.cast_signed()),
            (4, double) => Value::Double(f64::from_bits(double.fixed64()?)),
            (5, list) if depth < MAX_DEPTH => list_from_protobuf(list.bytes()?, depth)?,
            (5..=7, Field::Bytes(_)) => Value::Other,
            (5..=7, _) => return Err(Malformed::UnexpectedWireType),
            _ => continue,
        };
    }
    Ok(value)
}

fn list_from_protobuf(message: &[u8], depth: u32) -> Result<Value<'_>, Malformed> {
    let (mut elements, mut length) = (Vec::new(), 0);
    for field in Fields::new(message) {
        if let (1, element) = field? {
            length += 1;
            if elements.len() < MAX_ELEMENTS {
                elements.push(value_from_protobuf(element.bytes()?, depth + 1)?);
            }
        }
    }
    Ok(Value::List(elements, length))
}

/// Span in OTLP/JSON: names in lowerCamelCase, ids in hex, 64-bit numbers as text or numbers.
/// Unknown fields are ignored, as the specification demands.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonSpan<'a> {
    #[serde(borrow, default)]
    trace_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    span_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    parent_span_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    start_time_unix_nano: Option<&'a RawValue>,
    #[serde(borrow, default)]
    end_time_unix_nano: Option<&'a RawValue>,
    #[serde(borrow, default)]
    attributes: Option<Vec<JsonAttribute<'a>>>,
    #[serde(borrow, default)]
    events: Option<Vec<JsonEvent<'a>>>,
    #[serde(borrow, default)]
    status: Option<JsonStatus<'a>>,
}

#[derive(serde::Deserialize)]
struct JsonEvent<'a> {
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    attributes: Option<Vec<JsonAttribute<'a>>>,
}

#[derive(serde::Deserialize)]
struct JsonStatus<'a> {
    #[serde(borrow, default)]
    message: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    code: Option<&'a RawValue>,
}

/// Attribute in OTLP/JSON.
#[derive(serde::Deserialize)]
pub(super) struct JsonAttribute<'a> {
    #[serde(borrow, default)]
    pub(super) key: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) value: Option<JsonValue<'a>>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JsonValue<'a> {
    #[serde(borrow, default)]
    pub(super) string_value: Option<Cow<'a, str>>,
    #[serde(default)]
    bool_value: Option<bool>,
    #[serde(borrow, default)]
    int_value: Option<&'a RawValue>,
    #[serde(borrow, default)]
    double_value: Option<&'a RawValue>,
    #[serde(borrow, default)]
    array_value: Option<JsonArray<'a>>,
    #[serde(default)]
    kvlist_value: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    bytes_value: Option<serde::de::IgnoredAny>,
}

#[derive(serde::Deserialize)]
struct JsonArray<'a> {
    #[serde(borrow, default)]
    values: Option<Vec<&'a RawValue>>,
}

/// Reads a span in OTLP/JSON.
pub(super) fn from_json(json: &str) -> Result<Span<'_>, serde_json::Error> {
    let json: JsonSpan<'_> = serde_json::from_str(json)?;
    let status = json.status.unwrap_or(JsonStatus {
        message: None,
        code: None,
    });
    let events = json.events.unwrap_or_default().into_iter();
    let span = Span {
        trace_id: json.trace_id.as_deref().and_then(id),
        span_id: json.span_id.as_deref().and_then(id),
        parent_id: json.parent_span_id.as_deref().and_then(id),
        name: json.name.unwrap_or_default(),
        started_at: json.start_time_unix_nano.and_then(number).unwrap_or(0),
        ended_at: json.end_time_unix_nano.and_then(number).unwrap_or(0),
        // Some senders write the name of the enum's value.
        has_error: status
            .code
            .is_some_and(|code| matches!(unquoted(code), "2" | "STATUS_CODE_ERROR")),
        status_message: status.message.unwrap_or_default(),
        attributes: attributes_from_json(json.attributes.unwrap_or_default()),
        events: events
            .take(MAX_ATTRIBUTES)
            .map(|event| Event {
                name: event.name.unwrap_or_default(),
                attributes: attributes_from_json(event.attributes.unwrap_or_default()),
            })
            .collect(),
    };
    Ok(span.without_empty_ids())
}

/// Reads attributes in OTLP/JSON.
pub(super) fn attributes_from_json(json: Vec<JsonAttribute<'_>>) -> Attributes<'_> {
    let mut attributes = Attributes::default();
    for JsonAttribute { key, value } in json {
        let value = value.map_or(Value::Null, |value| value_from_json(value, 0));
        attributes.push(key.unwrap_or_default(), value);
    }
    attributes
}

fn value_from_json(json: JsonValue<'_>, depth: u32) -> Value<'_> {
    if let Some(text) = json.string_value {
        Value::Text(text)
    } else if let Some(bool) = json.bool_value {
        Value::Bool(bool)
    } else if let Some(integer) = json.int_value {
        unquoted(integer)
            .parse()
            .map_or(Value::Null, Value::Integer)
    } else if let Some(double) = json.double_value {
        // Protobuf's JSON has NaN and the infinities as text.
        unquoted(double).parse().map_or(Value::Null, Value::Double)
    } else if let Some(array) = json.array_value.filter(|_| depth < MAX_DEPTH) {
        let values = array.values.unwrap_or_default();
        let elements = values.iter().take(MAX_ELEMENTS);
        let elements = elements.map(|element| {
            serde_json::from_str(element.get())
                .map_or(Value::Null, |element| value_from_json(element, depth + 1))
        });
        Value::List(elements.collect(), values.len())
    } else if json.kvlist_value.is_some() || json.bytes_value.is_some() {
        Value::Other
    } else {
        Value::Null
    }
}

/// Returns a number without the quotation marks that 64-bit numbers have in protobuf's JSON.
fn unquoted(json: &RawValue) -> &str {
    json.get().trim_matches('"')
}

fn number(json: &RawValue) -> Option<u64> {
    unquoted(json).parse().ok()
}

/// Parses an id: hex, or the base64 that generic converters of protobuf write. The lengths of the
/// two never agree.
fn id<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() == 2 * N && text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        let id = u128::from_str_radix(text, 16).ok()?.to_be_bytes();
        return id.last_chunk().copied();
    }
    let bytes = ANY_BASE64.decode(text).ok()?;
    bytes.try_into().ok()
}

/// Base64 with and without padding.
const ANY_BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hex_or_base64_of_their_length() {
        let id_8: [u8; 8] = [0xee, 0xe1, 0x9b, 0x7e, 0xc3, 0xc1, 0xb1, 0x74];
        for text in [
            "eee19b7ec3c1b174",
            "EEE19B7EC3C1B174",
            "7uGbfsPBsXQ=",
            "7uGbfsPBsXQ",
        ] {
            assert_eq!(id(text), Some(id_8), "{text}");
            assert_eq!(id::<16>(text), None, "{text}");
        }
        assert_eq!(
            id::<16>("AAAAAAAAAAAAAAAAAAAAAQ=="),
            Some([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
        );
        for text in [
            "",
            "eee19b7ec3c1b17",
            "eee19b7ec3c1b17x",
            "+ee19b7ec3c1b174",
            "7uGbfsPBsX!=",
        ] {
            assert_eq!(id::<8>(text), None, "{text}");
        }
    }

    #[test]
    fn json_span_has_numbers_as_text_and_unknown_fields() {
        let span = from_json(
            r#"{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174",
            "parentSpanId":"0000000000000000","name":"a \"name\"","kind":3,"flags":{"x":[1]},
            "startTimeUnixNano":"1544712660000000000","endTimeUnixNano":1544712661000000000,
            "status":{"code":"2","message":"down"},
            "events":[{"name":"exception","attributes":[{"key":"exception.type","value":{"stringValue":"E"}}]}],
            "attributes":[{"key":"i","value":{"intValue":"-7"}},{"key":"d","value":{"doubleValue":"NaN"}},
              {"key":"l","value":{"arrayValue":{}}},{"key":"m","value":{"kvlistValue":{"values":[]}}},
              {"key":"e","value":{"arrayValue":{"values":[{"stringValue":"x"},{"boolValue":true}]}}},
              {"key":"n"},{"value":{"intValue":1}}]}"#,
        )
        .unwrap();
        assert_eq!(span.name, "a \"name\"");
        assert_eq!((span.parent_id, span.has_error), (None, true));
        assert_eq!(
            (span.started_at, span.ended_at),
            (1_544_712_660_000_000_000, 1_544_712_661_000_000_000)
        );
        assert_eq!(span.events[0].attributes.text("exception.type"), Some("E"));
        let attributes = &span.attributes;
        assert_eq!(attributes.get("i"), Some(&Value::Integer(-7)));
        assert!(matches!(attributes.get("d"), Some(Value::Double(nan)) if nan.is_nan()));
        assert_eq!(attributes.get("l"), Some(&Value::List(Vec::new(), 0)));
        assert_eq!(attributes.get("m"), Some(&Value::Other));
        let list = Value::List(vec![Value::Text("x".into()), Value::Bool(true)], 2);
        assert_eq!(attributes.get("e"), Some(&list));
        assert_eq!(attributes.get("n"), Some(&Value::Null));
    }

    #[test]
    fn counts_are_whole_and_not_negative() {
        assert_eq!(Value::Integer(3).count(), Some(3));
        assert_eq!(Value::Integer(-1).count(), None);
        assert_eq!(Value::Double(4.0).count(), Some(4));
        assert_eq!(Value::Double(4.5).count(), None);
        assert_eq!(Value::Double(f64::NAN).count(), None);
        assert_eq!(Value::Text(" 5 ".into()).count(), Some(5));
        assert_eq!(Value::Text("five".into()).count(), None);
    }
}
