//! The sender of a record: its source, and labels such as its version.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::Error as _;
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::record::BoundedText;

/// The name of a program that sends records, such as the `service.name` of its traces.
pub(crate) type SourceName = BoundedText<64>;

/// Maximum number of labels of a record.
const MAX_LABELS: usize = 4;
/// Maximum length of a key, in bytes.
const MAX_KEY_BYTES: usize = 32;

/// Labels of a record, such as the version of a deployment or of an index: at most four.
///
/// A key has 1 to 32 characters of `a` to `z`, `0` to `9`, `_`, `.` and `-`. A value is cut to 64
/// characters. Labels are equal if they have the same pairs, in whatever order they were given. A
/// clone shares them and allocates nothing.
///
/// ```
/// use failure_logger::Labels;
///
/// let labels = Labels::new([("version", "1.4"), ("index", "2026-11")])?;
/// assert_eq!(labels, Labels::new([("index", "2026-11"), ("version", "1.4")])?);
/// assert_eq!(labels.get("version"), Some("1.4"));
/// # Ok::<(), failure_logger::LabelError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels(Option<Arc<[Label]>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Label {
    key: Box<str>,
    value: BoundedText<64>,
}

/// Reason why labels are invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LabelError {
    /// The key is empty, too long, or has other characters. It is cut to 32 characters here.
    InvalidKey(String),
    /// There are more than four labels.
    TooMany,
}

impl fmt::Display for LabelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidKey(key) => write!(
                f,
                "invalid key of a label {key:?}: expected 1 to {MAX_KEY_BYTES} characters of a to \
                 z, 0 to 9, _, . and -"
            ),
            Self::TooMany => write!(f, "too many labels: expected at most {MAX_LABELS}"),
        }
    }
}

impl std::error::Error for LabelError {}

impl Labels {
    /// Returns these labels. The last value of a key counts.
    ///
    /// # Errors
    ///
    /// A key is invalid, or there are more than four.
    pub fn new<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, LabelError> {
        let mut labels: BTreeMap<&str, BoundedText<64>> = BTreeMap::new();
        for (key, value) in pairs {
            if !is_key(key) {
                let shown = key.chars().take(MAX_KEY_BYTES).collect();
                return Err(LabelError::InvalidKey(shown));
            }
            labels.insert(key, value.into());
            if labels.len() > MAX_LABELS {
                return Err(LabelError::TooMany);
            }
        }
        let labels = labels.into_iter().map(|(key, value)| Label {
            key: key.into(),
            value,
        });
        Ok(Self((labels.len() > 0).then(|| labels.collect())))
    }

    /// Returns the value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter()
            .find_map(|(k, value)| (k == key).then_some(value))
    }

    /// Returns the keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let labels = self.0.as_deref().unwrap_or_default();
        labels.iter().map(|label| (&*label.key, &*label.value))
    }

    /// Returns `true` if there is no label.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the labels as the database has them: a JSON object in the order of its keys.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }

    /// Returns the labels that the database has. Text that this program did not write is no label.
    pub(crate) fn from_stored(json: Option<&str>) -> Self {
        json.and_then(|json| serde_json::from_str(json).ok())
            .unwrap_or_default()
    }
}

fn is_key(key: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&key.len())
        && key
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-'))
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.iter() {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of at most {MAX_LABELS} strings")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Labels, A::Error> {
                let mut pairs: Vec<(String, String)> = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    // A key may come twice, but an object of any length is not held in memory.
                    if pairs.len() == 4 * MAX_LABELS {
                        return Err(A::Error::custom(LabelError::TooMany));
                    }
                    pairs.push(pair);
                }
                Labels::new(pairs.iter().map(|(key, value)| (&**key, &**value)))
                    .map_err(A::Error::custom)
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

/// The source of a record and its labels, of which it has at least one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Sender {
    /// Not empty.
    pub(crate) source: Option<SourceName>,
    pub(crate) labels: Labels,
}

impl Sender {
    pub(crate) fn new(source: Option<SourceName>, labels: Labels) -> Option<Self> {
        let source = source.filter(|source| !source.is_empty());
        (source.is_some() || !labels.is_empty()).then_some(Self { source, labels })
    }
}

/// Id of a sender in a log. Attempts and failures without one have [`NO_SENDER`].
pub(crate) type SenderId = i64;

/// Stands for neither a source nor labels.
pub(crate) const NO_SENDER: SenderId = 0;

/// Selects what was sent by some sources. Default: everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceFilter {
    /// Only that of one of these sources. An empty text stands for no source. Empty: of any.
    pub source: Vec<String>,
    /// Only that which has all of these labels.
    pub labels: Labels,
}

impl SourceFilter {
    /// Returns `true` if everything is selected.
    pub(crate) fn is_empty(&self) -> bool {
        self.source.is_empty() && self.labels.is_empty()
    }

    /// Returns the ids of those of `senders` that are selected.
    pub(crate) fn ids(&self, senders: &[(SenderId, Sender)]) -> impl Iterator<Item = SenderId> {
        let none = self.selects(None).then_some(NO_SENDER);
        let selected = senders.iter().filter(|(_, of)| self.selects(Some(of)));
        none.into_iter().chain(selected.map(|(id, _)| *id))
    }

    /// Returns `true` if what `sender` sent is selected. `None`: it has neither source nor labels.
    pub(crate) fn selects(&self, sender: Option<&Sender>) -> bool {
        let source = sender
            .and_then(|sender| sender.source.as_deref())
            .unwrap_or_default();
        let has = |(key, value): (&str, &str)| {
            sender.is_some_and(|sender| sender.labels.get(key) == Some(value))
        };
        (self.source.is_empty() || self.source.iter().any(|name| name == source))
            && self.labels.iter().all(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_equal_in_any_order_and_sorted_by_key() {
        let labels = Labels::new([("b", "2"), ("a", "1"), ("b", "3")]).unwrap();
        assert_eq!(labels, Labels::new([("a", "1"), ("b", "3")]).unwrap());
        assert_eq!(labels.to_json(), r#"{"a":"1","b":"3"}"#);
        assert_eq!((labels.get("b"), labels.get("c")), (Some("3"), None));
        assert_eq!(Labels::from_stored(Some(&labels.to_json())), labels);
    }

    #[test]
    fn no_labels_are_an_empty_object() {
        let none = Labels::new([]).unwrap();
        assert!(none.is_empty());
        assert_eq!((none.to_json().as_str(), none), ("{}", Labels::default()));
    }

    #[test]
    fn invalid_keys_and_a_fifth_label_are_refused() {
        let long = "k".repeat(33);
        for key in ["", "Version", "a b", "é", "a:b", &long] {
            let error = Labels::new([(key, "v")]).unwrap_err();
            assert!(matches!(error, LabelError::InvalidKey(_)), "{key}");
        }
        let four = [("a", ""), ("b", ""), ("c", ""), ("d-._9", "")];
        assert!(Labels::new(four).is_ok());
        assert!(Labels::new(four.into_iter().chain([("a", "x")])).is_ok());
        let five = Labels::new(four.into_iter().chain([("e", "")]));
        assert_eq!(five, Err(LabelError::TooMany));
    }

    #[test]
    fn value_is_cut_to_64_characters() {
        let labels = Labels::new([("v", &*"é".repeat(70))]).unwrap();
        assert_eq!(labels.get("v").unwrap().chars().count(), 64);
    }

    #[test]
    fn text_in_the_database_that_is_no_label_is_left_out() {
        for json in [None, Some(""), Some("[]"), Some("{\"A\":\"\"}"), Some("{")] {
            assert!(Labels::from_stored(json).is_empty());
        }
        let many = format!("{{{}\"a\":\"1\"}}", "\"a\":\"1\",".repeat(99));
        assert!(Labels::from_stored(Some(&many)).is_empty());
    }

    #[test]
    fn filter_selects_by_any_source_and_all_labels() {
        let sender = |source: &str, labels: &[(&str, &str)]| {
            let labels = Labels::new(labels.iter().copied()).unwrap();
            Sender::new(Some(source.into()), labels)
        };
        let filter = |source: &[&str], labels: &[(&str, &str)]| SourceFilter {
            source: source.iter().copied().map(Into::into).collect(),
            labels: Labels::new(labels.iter().copied()).unwrap(),
        };
        let senders = [
            None,
            sender("api", &[]),
            sender("api", &[("index", "7"), ("env", "prod")]),
            sender("job", &[("index", "7")]),
            sender("", &[("index", "8")]),
        ];
        let selected = |filter: SourceFilter| {
            let of = |sender: &Option<Sender>| filter.selects(sender.as_ref());
            senders.iter().map(of).collect::<Vec<bool>>()
        };
        for (source, labels, expected) in [
            (&[][..], &[][..], [true, true, true, true, true]),
            (&["api"], &[], [false, true, true, false, false]),
            (&[""], &[], [true, false, false, false, true]),
            (&["api", "job"], &[], [false, true, true, true, false]),
            (&[], &[("index", "7")], [false, false, true, true, false]),
            (
                &["job"],
                &[("index", "7")],
                [false, false, false, true, false],
            ),
            (
                &[],
                &[("index", "7"), ("env", "prod")],
                [false, false, true, false, false],
            ),
            (&[], &[("env", "")], [false; 5]),
        ] {
            assert_eq!(
                selected(filter(source, labels)),
                expected,
                "{source:?} {labels:?}"
            );
        }
    }
}
