//! The value of one field, and its conversion into the types of a record.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::http::wire::moment::parse_moment;
use crate::http::wire::{Latency, Rejected, excerpt, repaired};
use crate::model::source::Labels;

/// 2^53. A 64-bit float represents every whole number up to this exactly.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;
/// Largest valid score. Vector indexes return larger ones, such as `FLT_MAX`, for "no result".
const MAX_SCORE: f64 = 3.4e38;

/// Value of a field. Numbers, lists and objects are parsed only when they are needed.
#[derive(Debug, Default)]
pub(crate) enum Value<'a> {
    /// Missing field, null, or empty cell.
    #[default]
    Null,
    Bool(bool),
    /// Number in its original form.
    Number(&'a str),
    Text(Cow<'a, str>),
    /// List as JSON.
    List(&'a str),
    /// Object as JSON.
    Object(&'a str),
}

impl<'a> Value<'a> {
    /// Returns the value of a JSON field.
    pub(crate) fn json(raw: &'a RawValue) -> Self {
        let json = raw.get();
        match json.bytes().next() {
            Some(b'n') | None => Self::Null,
            Some(first @ (b't' | b'f')) => Self::Bool(first == b't'),
            Some(b'"') => Self::Text(unquoted(json)),
            Some(b'[') => Self::List(json),
            Some(b'{') => Self::Object(json),
            Some(_) => Self::Number(json),
        }
    }

    /// Returns the value of a cell of CSV.
    #[cfg(feature = "program")]
    pub(crate) fn cell(cell: &str) -> Self {
        if cell.is_empty() {
            Value::Null
        } else {
            Value::Text(crate::report::without_guards(cell).into())
        }
    }

    /// Returns `self`, or `other` if `self` is null.
    pub(crate) fn or(self, other: Self) -> Self {
        if matches!(self, Self::Null) {
            other
        } else {
            self
        }
    }

    /// Converts the value to text. Numbers and booleans keep their form.
    pub(crate) fn text(self, field: &'static str) -> Result<Option<String>, Rejected> {
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => Ok(Some(text.into_owned())),
            Self::Bool(value) => Ok(Some(value.to_string())),
            Self::Number(json) => Ok(Some(json.to_owned())),
            // The error of a backend may be structured.
            Self::List(json) | Self::Object(json) if field == "error_context" => {
                Ok(Some(compact(json)))
            }
            Self::List(_) | Self::Object(_) => Err(Rejected::invalid(field, &self, "a string")),
        }
    }

    /// Converts the value to a name in lower case. The caller compares it to the known names.
    pub(crate) fn name(&self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Text(text) => Some(text.trim().to_ascii_lowercase()),
            Self::Bool(_) | Self::Number(_) | Self::List(_) | Self::Object(_) => {
                Some(self.to_string())
            }
        }
    }

    /// Converts the value to a score.
    pub(crate) fn score(&self, field: &'static str) -> Result<Option<f32>, Rejected> {
        let number = self.number(field, "a number or null")?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the log stores scores as f32, and this one is in its range"
        )]
        Ok(number
            .filter(|score| score.abs() <= MAX_SCORE)
            .map(|score| score as f32))
    }

    /// Converts the value to a latency.
    pub(crate) fn milliseconds(&self, field: &'static str) -> Result<Option<Latency>, Rejected> {
        let expected = "a number of milliseconds, 0 or more, or null";
        let Some(milliseconds) = self
            .number(field, expected)?
            .filter(|number| number.is_finite())
        else {
            return Ok(None);
        };
        if milliseconds < 0.0 {
            return Err(Rejected::invalid(field, self, expected));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative; `as` saturates"
        )]
        let rounded = milliseconds.round() as u64;
        // Parses the original text, because a float has only 53 bits.
        let whole = self
            .number_text()
            .and_then(|text| text.parse().ok())
            .unwrap_or(rounded);
        Ok(Some(Latency {
            milliseconds,
            whole,
        }))
    }

    /// Converts the value to a whole number that is not negative.
    pub(crate) fn count(&self, field: &'static str) -> Result<Option<u64>, Rejected> {
        let expected = "a whole number, 0 or more, or null";
        let Some(number) = self.whole(field, expected)? else {
            return Ok(None);
        };
        u64::try_from(number)
            .map(Some)
            .map_err(|_| Rejected::invalid(field, self, expected))
    }

    /// Converts the value to a whole number.
    pub(crate) fn integer(&self, field: &'static str) -> Result<Option<i64>, Rejected> {
        self.whole(field, "a whole number or null")
    }

    /// Converts the value to a list as JSON. Text is returned unchanged, because exports contain
    /// the list as text.
    pub(crate) fn list(self, field: &'static str) -> Result<Option<String>, Rejected> {
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => Ok(Some(text.into_owned())),
            Self::List(json) => Ok(Some(compact(json))),
            Self::Bool(_) | Self::Number(_) | Self::Object(_) => {
                Err(Rejected::invalid(field, &self, "a list of strings or null"))
            }
        }
    }

    /// Converts the value to the id of a conversation. A number keeps all its digits.
    pub(crate) fn conversation(self, field: &'static str) -> Result<Option<String>, Rejected> {
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => Ok(Some(text.into_owned())),
            Self::Number(json) => Ok(Some(whole_digits(json).unwrap_or_else(|| json.to_owned()))),
            Self::Bool(_) | Self::List(_) | Self::Object(_) => Err(Rejected::invalid(
                field,
                &self,
                "a string, a number or null",
            )),
        }
    }

    /// Converts the value to a UUID.
    pub(crate) fn uuid(&self, field: &'static str) -> Result<Option<Uuid>, Rejected> {
        let expected = "a UUID or null";
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => Uuid::try_parse(text.trim())
                .map(Some)
                .map_err(|_| Rejected::invalid(field, self, expected)),
            Self::Bool(_) | Self::Number(_) | Self::List(_) | Self::Object(_) => {
                Err(Rejected::invalid(field, self, expected))
            }
        }
    }

    /// Converts the value to labels. A number or a boolean is text, and null is no label. Text is
    /// an object as JSON, because a cell of CSV contains it so.
    pub(crate) fn labels(&self, field: &'static str) -> Result<Labels, Rejected> {
        let expected = "an object of at most four strings or null, with keys of a to z, 0 to 9, \
             _, . and -";
        let invalid = || Rejected::invalid(field, self, expected);
        let json = match self {
            Self::Null => return Ok(Labels::default()),
            Self::Text(text) => &**text,
            Self::Object(json) => json,
            Self::Bool(_) | Self::Number(_) | Self::List(_) => return Err(invalid()),
        };
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json)
            .or_else(|_| serde_json::from_str(&repaired(json)))
            .map_err(|_| invalid())?;
        let mut pairs: Vec<(&str, Cow<'_, str>)> = Vec::new();
        for (key, value) in &object {
            match value {
                serde_json::Value::Null => {}
                serde_json::Value::String(text) => pairs.push((key, text.into())),
                serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {
                    pairs.push((key, value.to_string().into()));
                }
                serde_json::Value::Array(_) | serde_json::Value::Object(_) => return Err(invalid()),
            }
        }
        Labels::new(pairs.iter().map(|(key, value)| (*key, &**value))).map_err(|_| invalid())
    }

    /// Converts the value to a moment.
    pub(crate) fn moment(&self, field: &'static str) -> Result<Option<SystemTime>, Rejected> {
        let expected = "a moment such as 2026-11-24T10:30:36Z, or Unix seconds or milliseconds";
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => parse_moment(text)
                .map(Some)
                .ok_or_else(|| Rejected::invalid(field, self, expected)),
            Self::Number(json) => parse_moment(json)
                .map(Some)
                .ok_or_else(|| Rejected::invalid(field, self, expected)),
            Self::Bool(_) | Self::List(_) | Self::Object(_) => {
                Err(Rejected::invalid(field, self, expected))
            }
        }
    }

    #[cfg(feature = "program")]
    pub(crate) fn text_ref(&self) -> Option<&str> {
        self.number_text()
    }

    /// Returns the text of a number, or of a string that may contain a number.
    fn number_text(&self) -> Option<&str> {
        match self {
            Self::Number(json) => Some(json),
            Self::Text(text) => Some(text.trim()),
            Self::Null | Self::Bool(_) | Self::List(_) | Self::Object(_) => None,
        }
    }

    /// Converts the value to a number. Returns `None` for values that mean "no number": null, an
    /// empty string and NaN.
    fn number(&self, field: &'static str, expected: &str) -> Result<Option<f64>, Rejected> {
        if matches!(self, Self::Null) {
            return Ok(None);
        }
        let text = self
            .number_text()
            .ok_or_else(|| Rejected::invalid(field, self, expected))?;
        if text.is_empty() {
            return Ok(None);
        }
        // `parse` also accepts NaN, inf and infinity, regardless of case.
        let number: f64 = text
            .parse()
            .map_err(|_| Rejected::invalid(field, self, expected))?;
        Ok((!number.is_nan()).then_some(number))
    }

    fn whole(&self, field: &'static str, expected: &str) -> Result<Option<i64>, Rejected> {
        if let Some(number) = self.number_text().and_then(|text| text.parse().ok()) {
            return Ok(Some(number));
        }
        match self.number(field, expected)? {
            None => Ok(None),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a whole number within 2^53"
            )]
            Some(number) if number.fract() == 0.0 && number.abs() <= MAX_EXACT_INTEGER => {
                Ok(Some(number as i64))
            }
            Some(_) => Err(Rejected::invalid(field, self, expected)),
        }
    }
}

/// Formats the beginning of the value on one line, for messages.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Number(json) | Self::List(json) | Self::Object(json) => {
                f.write_str(&excerpt(json))
            }
            Self::Text(text) => write!(f, "\"{}\"", excerpt(text)),
        }
    }
}

/// Returns the text of a JSON string.
fn unquoted(json: &str) -> Cow<'_, str> {
    match json
        .strip_prefix('"')
        .and_then(|json| json.strip_suffix('"'))
    {
        Some(plain) if !plain.contains('\\') => plain.into(),
        _ => {
            let text = serde_json::from_str::<String>(json)
                .or_else(|_| serde_json::from_str(&repaired(json)));
            text.map_or_else(|_| json.into(), Cow::Owned)
        }
    }
}

/// Returns JSON without whitespace between its tokens.
fn compact(json: &str) -> String {
    serde_json::from_str::<serde_json::Value>(json)
        .map_or_else(|_| json.to_owned(), |value| value.to_string())
}

/// Returns the digits of a whole number in the form of a float, such as `1e3` or `7.0`. Returns
/// `None` for all other numbers.
fn whole_digits(json: &str) -> Option<String> {
    let number: f64 = json
        .parse()
        .ok()
        .filter(|_| json.contains(['.', 'e', 'E']))?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a whole number within 2^53"
    )]
    (number.fract() == 0.0 && number.abs() <= MAX_EXACT_INTEGER)
        .then(|| (number as i64).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_an_object_of_at_most_four_texts() {
        let labels = |json: &str| {
            let raw = RawValue::from_string(json.to_owned()).unwrap();
            Value::json(&raw)
                .labels("labels")
                .map(|labels| labels.to_json())
        };
        for (json, expected) in [
            ("null", "{}"),
            ("{}", "{}"),
            (r#"{"b": "2", "a": "1"}"#, r#"{"a":"1","b":"2"}"#),
            (
                r#"{"a": 1.50, "b": true, "c": null}"#,
                r#"{"a":"1.5","b":"true"}"#,
            ),
            (r#""{\"a\": \"1\"}""#, r#"{"a":"1"}"#),
        ] {
            assert_eq!(labels(json).unwrap(), expected, "{json}");
        }
        for json in [
            "[]",
            "7",
            r#""v1""#,
            r#"{"A": "1"}"#,
            r#"{"a": {}}"#,
            r#"{"a": "", "b": "", "c": "", "d": "", "e": ""}"#,
        ] {
            let rejected = labels(json).unwrap_err();
            assert!(
                rejected.text.contains("at most four strings"),
                "{rejected:?}"
            );
        }
    }
}
