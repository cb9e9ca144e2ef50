//! The record of a failed retrieval, and the bounded text that keeps it small.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

use crate::model::outcome::RetrievalFailureType;
use crate::model::source::{Labels, SourceName};
use crate::model::stats::LogOutcome;

/// One retrieval that failed. At most about 8 KB, whatever it was built from.
///
/// ```
/// use failure_logger::{RetrievalFailureRecord, RetrievalFailureType};
///
/// let record = RetrievalFailureRecord {
///     top_score: Some(0.21),
///     confidence_threshold: Some(0.3),
///     result_count: 3,
///     latency_ms: 12,
///     ..RetrievalFailureRecord::new(RetrievalFailureType::LowConfidence, "semantic", "where is the key?")
/// };
/// assert_eq!(record.query_len, 17);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetrievalFailureRecord {
    /// The conversation in which retrieval failed, if there is one.
    #[serde(default)]
    pub conversation_id: Option<ConversationId>,
    /// Turn within the conversation; 0 where unknown.
    #[serde(default)]
    pub turn_index: i64,
    /// The type of the failure.
    pub failure_type: RetrievalFailureType,
    /// Name of the strategy that was tried: `semantic`, `bm25`, `graph` and so on.
    pub retrieval_strategy: StrategyName,
    /// The query, cut to 512 characters.
    pub query_text: BoundedQuery,
    /// Length in bytes of the original query, before any cut.
    #[serde(default)]
    pub query_len: usize,
    /// Best score that was found. NaN and infinities are stored as NULL.
    #[serde(default)]
    pub top_score: Option<f32>,
    /// The score below which a result does not count. NaN and infinities are stored as NULL.
    #[serde(default)]
    pub confidence_threshold: Option<f32>,
    /// Number of results that were found.
    #[serde(default)]
    pub result_count: usize,
    /// Duration of the retrieval, in milliseconds.
    #[serde(default)]
    pub latency_ms: u64,
    /// JSON list of the graph edge types that were followed. A list that was cut is stored without
    /// the elements that did not fit, so that it stays JSON.
    #[serde(default)]
    pub edge_types: Option<BoundedText<1024>>,
    /// Message of the backend, cut to 256 characters.
    #[serde(default)]
    pub error_context: Option<BoundedText<256>>,
    /// The program that sent the record, such as the `service.name` of its traces; cut to 64
    /// characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceName>,
    /// Labels of the sender, such as its version.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl RetrievalFailureRecord {
    /// A record of `failure_type` with everything else unknown: 0, or `None`.
    /// `query_len` is taken from `query` before it is cut.
    pub fn new(
        failure_type: RetrievalFailureType,
        retrieval_strategy: impl Into<StrategyName>,
        query: &str,
    ) -> Self {
        Self {
            conversation_id: None,
            turn_index: 0,
            failure_type,
            retrieval_strategy: retrieval_strategy.into(),
            query_text: query.into(),
            query_len: query.len(),
            top_score: None,
            confidence_threshold: None,
            result_count: 0,
            latency_ms: 0,
            edge_types: None,
            error_context: None,
            source: None,
            labels: Labels::default(),
        }
    }
}

/// Other actors send it to [`FailureLogger`](crate::FailureLogger). The result is the outcome of
/// the call.
impl actix::Message for RetrievalFailureRecord {
    type Result = LogOutcome;
}

/// Identifies a conversation; stored as text of at most 128 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConversationId(BoundedText<128>);

impl ConversationId {
    /// The identifier as it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<i64> for ConversationId {
    fn from(id: i64) -> Self {
        Self(id.to_string().into())
    }
}

impl From<&str> for ConversationId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl From<String> for ConversationId {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Text of at most `N` characters (Unicode scalar values) that holds no more memory than it needs.
///
/// Longer text is cut after the `N`th character, and the memory behind the cut is given back.
/// Text of at most `N` *bytes* is taken as it is, without being looked at.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize)]
#[serde(transparent)]
pub struct BoundedText<const N: usize>(Box<str>);

/// A query, as the log stores it.
pub(crate) type BoundedQuery = BoundedText<512>;
/// The name of a strategy, as the log stores it.
pub(crate) type StrategyName = BoundedText<64>;

impl<const N: usize> BoundedText<N> {
    /// The length from which on a text is cut.
    pub(crate) const MAX_CHARACTERS: usize = N;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part of `text` that fits.
    fn prefix(text: &str) -> &str {
        if text.len() <= N {
            return text;
        }
        match text.char_indices().nth(N) {
            Some((end, _)) => &text[..end],
            None => text,
        }
    }
}

impl<const N: usize> From<&str> for BoundedText<N> {
    fn from(text: &str) -> Self {
        Self(Self::prefix(text).into())
    }
}

impl<const N: usize> From<String> for BoundedText<N> {
    fn from(mut text: String) -> Self {
        text.truncate(Self::prefix(&text).len());
        // Reallocates if there is anything to give back, also where nothing was cut.
        Self(text.into_boxed_str())
    }
}

impl<const N: usize> Deref for BoundedText<N> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const N: usize> AsRef<str> for BoundedText<N> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<const N: usize> Borrow<str> for BoundedText<N> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<const N: usize> PartialEq<str> for BoundedText<N> {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl<const N: usize> PartialEq<&str> for BoundedText<N> {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

impl<const N: usize> fmt::Debug for BoundedText<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const N: usize> fmt::Display for BoundedText<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de, const N: usize> Deserialize<'de> for BoundedText<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const N: usize>;

        impl<const N: usize> serde::de::Visitor<'_> for Visitor<N> {
            type Value = BoundedText<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(text.into())
            }

            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok(text.into())
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

/// `text` as it is if it is a whole JSON list or no list at all; of a list that was cut, the
/// elements that are whole.
///
/// Elements are found by their top-level commas, outside strings and nested brackets.
pub(crate) fn whole_json_list(text: BoundedText<1024>) -> BoundedText<1024> {
    if !text.starts_with('[') {
        return text;
    }
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    // Up to here elements are whole: just behind `[` or just before a top-level comma.
    let mut whole = 1;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' if depth > 1 => depth -= 1,
            b']' | b'}' => return text,
            b',' if depth == 1 => whole = at,
            _ => {}
        }
    }
    // A full text whose last element is whole but whose `]` was cut loses that element too:
    // there is no room for it and the bracket.
    let mut list = text[..whole].to_owned();
    list.push(']');
    list.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity_kept(text: BoundedText<512>) -> usize {
        String::from(text.0).capacity()
    }

    #[test]
    fn text_of_exactly_n_characters_is_kept_and_one_more_is_cut() {
        for unit in ["x", "é", "語", "🦀"] {
            assert_eq!(
                BoundedText::<512>::from(unit.repeat(512)).as_str(),
                unit.repeat(512)
            );
            assert_eq!(
                BoundedText::<512>::from(unit.repeat(513)).as_str(),
                unit.repeat(512)
            );
            assert_eq!(
                BoundedText::<512>::from(unit.repeat(1000).as_str()).as_str(),
                unit.repeat(512)
            );
        }
    }

    #[test]
    fn a_cut_gives_its_memory_back() {
        assert_eq!(capacity_kept("x".repeat(1 << 20).into()), 512);
        assert_eq!(capacity_kept("🦀".repeat(1 << 18).into()), 4 * 512);
    }

    #[test]
    fn spare_capacity_is_given_back_even_if_nothing_is_cut() {
        let mut text = String::with_capacity(1 << 20);
        text.push_str("short");
        assert_eq!(capacity_kept(text.into()), 5);
    }

    #[test]
    fn a_whole_list_and_a_text_that_is_no_list_stay_as_they_are() {
        for text in [
            r#"["causes","part_of"]"#,
            "[]",
            r#"["a]","b\"]"]"#,
            r#"[["a"],{"b":[1]}]"#,
            "causes,part_of",
            "",
        ] {
            assert_eq!(whole_json_list(text.into()), text);
        }
    }

    #[test]
    fn a_cut_list_keeps_its_whole_elements() {
        let cut = |text: &str| whole_json_list(text.into()).as_str().to_owned();
        assert_eq!(
            cut(r#"["causes","part_of","rel"#),
            r#"["causes","part_of"]"#
        );
        assert_eq!(cut(r#"["causes","part_of""#), r#"["causes"]"#);
        assert_eq!(cut(r#"["a,b","c\",d"#), r#"["a,b"]"#);
        assert_eq!(cut(r#"["a",["b","c"#), r#"["a"]"#);
        assert_eq!(cut(r#"["never closed"#), "[]");
        assert_eq!(cut("["), "[]");
    }

    proptest::proptest! {
        #[test]
        fn a_list_that_was_cut_anywhere_is_a_list_again(
            elements in proptest::collection::vec(".{0,40}", 0..60),
            cut in 0..2000_usize,
        ) {
            let list = serde_json::to_string(&elements).unwrap();
            let cut: String = list.chars().take(cut.max(1)).collect();
            let kept: Vec<String> = serde_json::from_str(&whole_json_list(cut.as_str().into())).unwrap();
            proptest::prop_assert_eq!(&kept[..], &elements[..kept.len()]);
        }

        #[test]
        fn whatever_else_there_is_is_no_reason_to_panic(text in "[\\[\\]{},\\\\\"a ]{0,60}") {
            let _ = whole_json_list(text.as_str().into());
        }
    }

    #[test]
    fn a_list_of_any_length_becomes_json_that_fits() {
        for elements in [1, 10, 100, 1000] {
            let list = serde_json::to_string(&vec!["语\"x,"; elements]).unwrap();
            let stored = whole_json_list(list.as_str().into());
            let back: Vec<String> = serde_json::from_str(&stored).unwrap();
            assert!(stored.chars().count() <= 1024);
            assert_eq!(back.len() == elements, list.chars().count() <= 1024);
        }
    }
}
