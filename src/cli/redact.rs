//! Redaction of what comes in, by the service's settings, before anything is queued.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::Failure;
use crate::record::{BoundedText, RetrievalFailureRecord};
use crate::report::normalized;

/// Rules at most, and bytes of a compiled pattern: matching takes linear time, whatever the pattern.
const MAX_RULES: usize = 64;
const MAX_PATTERN_BYTES: usize = 1 << 20;
const LEAST_KEY_BYTES: usize = 16;

/// Text that is replaced in queries, errors and conversation ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    /// A regular expression, in the syntax of the crate `regex`.
    pattern: String,
    /// What stands in its place; `$1` is its first group.
    #[serde(default = "redacted")]
    replacement: String,
}

fn redacted() -> String {
    "[redacted]".into()
}

/// What is kept of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum QueryText {
    /// The text.
    Keep,
    /// A keyed hash (HMAC-SHA-256): equal queries stay equal.
    Hash,
    /// Nothing.
    Drop,
}

/// Rules that are read and compiled.
pub(super) struct Redaction {
    rules: Vec<(Regex, String)>,
    query: Query,
}

enum Query {
    Keep,
    Hash(Box<Hmac<Sha256>>),
    Drop,
}

impl Redaction {
    pub(super) fn new(rules: &[Rule], query: QueryText, key_file: Option<&Path>) -> Result<Self, Failure> {
        if rules.len() > MAX_RULES {
            let said = format!("redact: {} rules: expected {MAX_RULES} at most", rules.len());
            return Err(Failure::Usage(said));
        }
        let compiled = |(rule, nth): (&Rule, usize)| {
            let pattern = RegexBuilder::new(&rule.pattern).size_limit(MAX_PATTERN_BYTES).build();
            let pattern = pattern.map_err(|error| Failure::Usage(format!("redact: rule {nth}: {error}")))?;
            Ok((pattern, rule.replacement.clone()))
        };
        let rules = rules.iter().zip(1..).map(compiled).collect::<Result<_, Failure>>()?;
        let query = match (query, key_file) {
            (QueryText::Keep, _) => Query::Keep,
            (QueryText::Drop, _) => Query::Drop,
            (QueryText::Hash, Some(path)) => Query::Hash(Box::new(key(path)?)),
            (QueryText::Hash, None) => {
                return Err(Failure::Usage(
                    "query_text = hash: expected query_hash_key_file, a file with a key".into(),
                ));
            }
        };
        Ok(Self { rules, query })
    }

    /// Returns `true` if everything is kept as it is.
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty() && matches!(self.query, Query::Keep)
    }

    pub(super) fn apply(&self, record: &mut RetrievalFailureRecord) {
        match &self.query {
            Query::Keep => {
                let before = record.query_text.clone();
                record.query_text = self.replaced(&record.query_text);
                // The length of what was there would tell of it.
                if record.query_text != before {
                    record.query_len = record.query_text.len();
                }
            }
            Query::Hash(key) => set_query(record, &hashed(key, &record.query_text)),
            Query::Drop => set_query(record, ""),
        }
        record.error_context = record.error_context.as_ref().map(|text| self.replaced(text));
        if let Some(id) = record.conversation_id.take() {
            record.conversation_id = Some(self.replaced::<128>(id.as_str()).as_str().into());
        }
    }

    fn replaced<const N: usize>(&self, text: &str) -> BoundedText<N> {
        let mut text = text.to_owned();
        for (pattern, replacement) in &self.rules {
            if let std::borrow::Cow::Owned(replaced) = pattern.replace_all(&text, replacement) {
                text = replaced;
            }
        }
        text.into()
    }
}

fn set_query(record: &mut RetrievalFailureRecord, text: &str) {
    (record.query_text, record.query_len) = (text.into(), text.len());
}

/// The same for queries that differ in case and punctuation only, as in a group of the report.
fn hashed(key: &Hmac<Sha256>, query: &str) -> String {
    let mut mac = key.clone();
    mac.update(normalized(query).as_bytes());
    let bytes = mac.finalize().into_bytes();
    bytes.iter().take(16).fold(String::from("hash:"), |hash, byte| format!("{hash}{byte:02x}"))
}

fn key(path: &Path) -> Result<Hmac<Sha256>, Failure> {
    let refused =
        |what: &dyn std::fmt::Display| Failure::Usage(format!("query_hash_key_file = {}: {what}", path.display()));
    let bytes = fs::read(path).map_err(|error| refused(&error))?;
    let key = bytes.trim_ascii();
    if key.len() < LEAST_KEY_BYTES {
        return Err(refused(&format_args!("expected a key of at least {LEAST_KEY_BYTES} bytes")));
    }
    if fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0) {
        return Err(refused(&"others than its owner may read the key; chmod 600 keeps them out"));
    }
    Hmac::new_from_slice(key).map_err(|error| refused(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RetrievalFailureType;

    fn record() -> RetrievalFailureRecord {
        RetrievalFailureRecord {
            conversation_id: Some("of ada@example.org".into()),
            error_context: Some("no answer for ada@example.org".into()),
            ..RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "s", "Mail of ada@example.org, card 1234?")
        }
    }

    fn rule(pattern: &str, replacement: &str) -> Rule {
        Rule { pattern: pattern.into(), replacement: replacement.into() }
    }

    #[test]
    fn rules_replace_text_wherever_it_may_be() {
        let rules = [rule(r"[\w.]+@([\w.]+)", "[mail at $1]"), rule(r"\d{4}", "[digits]")];
        let redaction = Redaction::new(&rules, QueryText::Keep, None).unwrap();
        let mut record = record();
        redaction.apply(&mut record);
        assert_eq!(record.query_text, "Mail of [mail at example.org], card [digits]?");
        assert_eq!(record.query_len, record.query_text.len());
        assert_eq!(record.error_context.unwrap(), "no answer for [mail at example.org]");
        assert_eq!(record.conversation_id.unwrap().as_str(), "of [mail at example.org]");
        let mut plain = RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "s", "plain");
        plain.query_len = 4000;
        redaction.apply(&mut plain);
        assert_eq!((plain.query_text.as_str(), plain.query_len), ("plain", 4000));
    }

    #[test]
    fn hash_of_a_query_depends_on_the_key_and_groups_equal_queries() {
        let folder = tempfile::tempdir().unwrap();
        let with = |key: &str| {
            let path = folder.path().join(key);
            fs::write(&path, format!("{key}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            Redaction::new(&[], QueryText::Hash, Some(&path)).unwrap()
        };
        let (one, other) = (with("0123456789abcdef"), with("0123456789abcdeg"));
        let hash = |redaction: &Redaction, query: &str| {
            let mut record = RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "s", query);
            redaction.apply(&mut record);
            assert_eq!(record.query_len, 37, "the length tells nothing");
            record.query_text.as_str().to_owned()
        };
        assert_eq!(hash(&one, "Where is the key?"), hash(&one, "where is the KEY"));
        assert_ne!(hash(&one, "where is the key"), hash(&one, "where is the door"));
        assert_ne!(hash(&one, "where is the key"), hash(&other, "where is the key"));
        assert!(hash(&one, "where").starts_with("hash:"));
        let nothing = Redaction::new(&[], QueryText::Drop, None).unwrap();
        let mut record = record();
        nothing.apply(&mut record);
        assert_eq!((record.query_text.as_str(), record.query_len), ("", 0));
    }

    #[test]
    fn rule_or_key_that_cannot_be_used_is_an_error_with_its_place() {
        let refused = |rules: &[Rule], query, key: Option<&Path>| match Redaction::new(rules, query, key) {
            Err(failure) => failure.text(),
            Ok(_) => panic!("it is refused"),
        };
        assert!(refused(&[rule("a", ""), rule("(", "")], QueryText::Keep, None).starts_with("redact: rule 2: "));
        assert!(refused(&[rule(r"(\pL{1000}){1000}", "")], QueryText::Keep, None).contains("rule 1"));
        assert!(refused(&vec![rule("a", ""); 65], QueryText::Keep, None).contains("65 rules: expected 64 at most"));
        assert!(refused(&[], QueryText::Hash, None).contains("query_hash_key_file"));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "short").unwrap();
        assert!(refused(&[], QueryText::Hash, Some(file.path())).contains("at least 16 bytes"));
        fs::write(file.path(), "0123456789abcdef").unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        let said = refused(&[], QueryText::Hash, Some(file.path()));
        assert!(said.contains("chmod 600") && !said.contains("0123"), "{said}");
    }
}
