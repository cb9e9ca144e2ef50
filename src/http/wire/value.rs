//! The value of one field, and what it may stand for.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use serde_json::value::RawValue;
use uuid::Uuid;

use super::moment::parse_moment;
use super::{Latency, Rejected, repaired, shown};

/// The largest number up to which every whole number is a 64-bit float.
const LARGEST_WHOLE: f64 = 9_007_199_254_740_992.0;
/// Scores beyond are what vector indexes return for "nothing found".
const LARGEST_SCORE: f64 = 3.4e38;

/// A value, as far as it is looked at.
#[derive(Debug, Default)]
pub(super) enum Value<'a> {
    /// Not there, null, or an empty cell.
    #[default]
    Null,
    Bool(bool),
    /// As it is written.
    Number(&'a str),
    Text(Cow<'a, str>),
    /// JSON.
    List(&'a str),
    /// JSON.
    Object(&'a str),
}

impl<'a> Value<'a> {
    pub(super) fn json(raw: &'a RawValue) -> Self {
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

    /// A cell of CSV.
    #[cfg(feature = "cli")]
    pub(super) fn cell(cell: &str) -> Self {
        if cell.is_empty() { Value::Null } else { Value::Text(crate::report::without_guards(cell).into()) }
    }

    /// Returns `self`, or `other` if there is none.
    pub(super) fn or(self, other: Self) -> Self {
        if matches!(self, Self::Null) { other } else { self }
    }

    /// Text, or what stands for itself as text.
    pub(super) fn text(self, field: &str) -> Result<Option<String>, Rejected> {
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => Ok(Some(text.into_owned())),
            Self::Bool(value) => Ok(Some(value.to_string())),
            Self::Number(json) => Ok(Some(json.to_owned())),
            // What a backend says may be a structure.
            Self::List(json) | Self::Object(json) if field == "error_context" => Ok(Some(compact(json))),
            Self::List(_) | Self::Object(_) => Err(Rejected::invalid(field, &self, "a string")),
        }
    }

    /// One of several names, in either case.
    pub(super) fn name(&self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Text(text) => Some(text.trim().to_ascii_lowercase()),
            Self::Bool(_) | Self::Number(_) | Self::List(_) | Self::Object(_) => Some(self.to_string()),
        }
    }

    pub(super) fn score(&self, field: &str) -> Result<Option<f32>, Rejected> {
        let number = self.number(field, "a number or null")?;
        #[expect(clippy::cast_possible_truncation, reason = "scores are kept as f32, and this one fits")]
        Ok(number.filter(|score| score.abs() <= LARGEST_SCORE).map(|score| score as f32))
    }

    pub(super) fn milliseconds(&self, field: &str) -> Result<Option<Latency>, Rejected> {
        let expected = "a number of milliseconds, 0 or more, or null";
        let Some(milliseconds) = self.number(field, expected)?.filter(|number| number.is_finite()) else {
            return Ok(None);
        };
        if milliseconds < 0.0 {
            return Err(Rejected::invalid(field, self, expected));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; `as` saturates")]
        let rounded = milliseconds.round() as u64;
        // As it is written, because a float has no more than 53 bits.
        let whole = self.written().and_then(|text| text.parse().ok()).unwrap_or(rounded);
        Ok(Some(Latency { milliseconds, whole }))
    }

    pub(super) fn count(&self, field: &str) -> Result<Option<u64>, Rejected> {
        let expected = "a whole number, 0 or more, or null";
        let Some(number) = self.whole(field, expected)? else { return Ok(None) };
        u64::try_from(number).map(Some).map_err(|_| Rejected::invalid(field, self, expected))
    }

    pub(super) fn integer(&self, field: &str) -> Result<Option<i64>, Rejected> {
        self.whole(field, "a whole number or null")
    }

    /// A list of texts as JSON; text is taken as it is.
    pub(super) fn list(self, field: &str) -> Result<Option<String>, Rejected> {
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => Ok(Some(text.into_owned())),
            Self::List(json) => Ok(Some(compact(json))),
            Self::Bool(_) | Self::Number(_) | Self::Object(_) => {
                Err(Rejected::invalid(field, &self, "a list of strings or null"))
            }
        }
    }

    /// Text, or a number, whose digits are all kept.
    pub(super) fn conversation(self, field: &str) -> Result<Option<String>, Rejected> {
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => Ok(Some(text.into_owned())),
            Self::Number(json) => Ok(Some(whole_digits(json).unwrap_or_else(|| json.to_owned()))),
            Self::Bool(_) | Self::List(_) | Self::Object(_) => {
                Err(Rejected::invalid(field, &self, "a string, a number or null"))
            }
        }
    }

    pub(super) fn uuid(&self, field: &str) -> Result<Option<Uuid>, Rejected> {
        let expected = "a UUID or null";
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => {
                Uuid::try_parse(text.trim()).map(Some).map_err(|_| Rejected::invalid(field, self, expected))
            }
            Self::Bool(_) | Self::Number(_) | Self::List(_) | Self::Object(_) => {
                Err(Rejected::invalid(field, self, expected))
            }
        }
    }

    pub(super) fn moment(&self, field: &str) -> Result<Option<SystemTime>, Rejected> {
        let expected = "a moment such as 2026-11-24T10:30:36Z, or Unix seconds or milliseconds";
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => parse_moment(text).map(Some).ok_or_else(|| Rejected::invalid(field, self, expected)),
            Self::Number(json) => parse_moment(json).map(Some).ok_or_else(|| Rejected::invalid(field, self, expected)),
            Self::Bool(_) | Self::List(_) | Self::Object(_) => Err(Rejected::invalid(field, self, expected)),
        }
    }

    #[cfg(feature = "cli")]
    pub(super) fn text_ref(&self) -> Option<&str> {
        self.written()
    }

    /// The text of a number, or of a string that may be one.
    fn written(&self) -> Option<&str> {
        match self {
            Self::Number(json) => Some(json),
            Self::Text(text) => Some(text.trim()),
            Self::Null | Self::Bool(_) | Self::List(_) | Self::Object(_) => None,
        }
    }

    /// A number; `None` if it is none by its own account: null, an empty string, NaN.
    fn number(&self, field: &str, expected: &str) -> Result<Option<f64>, Rejected> {
        if matches!(self, Self::Null) {
            return Ok(None);
        }
        let text = self.written().ok_or_else(|| Rejected::invalid(field, self, expected))?;
        if text.is_empty() {
            return Ok(None);
        }
        // Rust reads NaN, inf and infinity in either case, too.
        let number: f64 = text.parse().map_err(|_| Rejected::invalid(field, self, expected))?;
        Ok((!number.is_nan()).then_some(number))
    }

    fn whole(&self, field: &str, expected: &str) -> Result<Option<i64>, Rejected> {
        if let Some(number) = self.written().and_then(|text| text.parse().ok()) {
            return Ok(Some(number));
        }
        match self.number(field, expected)? {
            None => Ok(None),
            #[expect(clippy::cast_possible_truncation, reason = "a whole number within 2^53")]
            Some(number) if number.fract() == 0.0 && number.abs() <= LARGEST_WHOLE => Ok(Some(number as i64)),
            Some(_) => Err(Rejected::invalid(field, self, expected)),
        }
    }
}

/// As JSON has it, on one line, and its beginning only.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Number(json) | Self::List(json) | Self::Object(json) => f.write_str(&shown(json)),
            Self::Text(text) => write!(f, "\"{}\"", shown(text)),
        }
    }
}

/// The text of a JSON string.
fn unquoted(json: &str) -> Cow<'_, str> {
    match json.strip_prefix('"').and_then(|json| json.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => plain.into(),
        _ => {
            let text = serde_json::from_str::<String>(json).or_else(|_| serde_json::from_str(&repaired(json)));
            text.map_or_else(|_| json.into(), Cow::Owned)
        }
    }
}

/// JSON without the spaces between its parts.
fn compact(json: &str) -> String {
    serde_json::from_str::<serde_json::Value>(json).map_or_else(|_| json.to_owned(), |value| value.to_string())
}

/// The digits of a number that is written in another way, as `1e3` or `7.0`.
fn whole_digits(json: &str) -> Option<String> {
    let number: f64 = json.parse().ok().filter(|_| json.contains(['.', 'e', 'E']))?;
    #[expect(clippy::cast_possible_truncation, reason = "a whole number within 2^53")]
    (number.fract() == 0.0 && number.abs() <= LARGEST_WHOLE).then(|| (number as i64).to_string())
}
