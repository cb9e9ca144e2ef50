//! Redaction of records, before they enter the buffer.
//!
//! The library calls [`Redaction::apply`] before a record enters the buffer. No part of the
//! original text reaches the buffer, the database, its journal or the log. Rules that are added
//! later do not change stored rows: `delete` erases those.
//!
//! Redaction cannot fail. All that can be wrong is checked at the start, so that no record is
//! stored without it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use failure_logger::program::normalized;
use failure_logger::{BoundedText, RetrievalFailureRecord};

use super::CommandError;

/// Maximum number of rules. Each rule reads each text once, in the path of every record.
const MAX_RULES: usize = 64;
/// Maximum size of a compiled pattern. Matching takes linear time with any pattern. The limit
/// therefore bounds the memory and the time of the start only.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// Minimum length of the key of `query_text = hash`. A reader of the database could try all short
/// keys with a frequent query.
const MIN_KEY_BYTES: usize = 16;

/// Rule that replaces text in queries, errors and conversation ids. The query, the error and the
/// conversation id are the fields with text of persons. The name of the strategy and the types of
/// edges come from the application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    /// Regular expression in the syntax of the crate `regex`. It matches anywhere in the text, and
    /// case counts unless it begins with `(?i)`.
    pattern: String,
    /// Text in place of each match; `$1` is the first group.
    #[serde(default = "default_replacement")]
    replacement: String,
}

/// Returns the default replacement. The brackets show a reader that the text is not original.
fn default_replacement() -> String {
    "[redacted]".into()
}

/// Treatment of query texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum QueryText {
    /// Stores the text.
    Keep,
    /// Stores a keyed hash (HMAC-SHA-256), which is equal for equal queries.
    Hash,
    /// Stores an empty text.
    Drop,
}

/// Compiled rules, in the order of the settings. A rule sees the text that the rules before it
/// left.
pub(super) struct Redaction {
    rules: Vec<(Regex, String)>,
    query: QueryRedaction,
}

/// Treatment of queries, with the key that it needs. The state of the hash is in a box, because it
/// is hundreds of bytes large.
enum QueryRedaction {
    Keep,
    Hash(Box<Hmac<Sha256>>),
    Drop,
}

impl Redaction {
    /// Compiles the rules and reads the key.
    ///
    /// # Errors
    ///
    /// Names the rule by its number, from 1, because a pattern may be long. `hash` without a key is
    /// an error: a hash without a key can be reversed by a list of frequent queries.
    pub(super) fn new(
        rules: &[Rule],
        query: QueryText,
        key_file: Option<&Path>,
    ) -> Result<Self, CommandError> {
        // The number is checked before the rules are compiled, because compilation is the expensive
        // part.
        if rules.len() > MAX_RULES {
            let message = format!(
                "redact: {} rules: expected {MAX_RULES} at most",
                rules.len()
            );
            return Err(CommandError::Usage(message));
        }
        let compiled = |(rule, nth): (&Rule, usize)| {
            let pattern = RegexBuilder::new(&rule.pattern)
                .size_limit(MAX_PATTERN_BYTES)
                .build();
            let pattern = pattern
                .map_err(|error| CommandError::Usage(format!("redact: rule {nth}: {error}")))?;
            Ok((pattern, rule.replacement.clone()))
        };
        let rules = rules
            .iter()
            .zip(1..)
            .map(compiled)
            .collect::<Result<_, CommandError>>()?;
        let query = match (query, key_file) {
            (QueryText::Keep, _) => QueryRedaction::Keep,
            (QueryText::Drop, _) => QueryRedaction::Drop,
            (QueryText::Hash, Some(path)) => QueryRedaction::Hash(Box::new(key(path)?)),
            (QueryText::Hash, None) => {
                return Err(CommandError::Usage(
                    "query_text = hash: expected a key; set query_hash_key_file to a file with at least 16 bytes".into(),
                ));
            }
        };
        Ok(Self { rules, query })
    }

    /// Returns `true` if records are left unchanged. The logger then needs no redactor, and a call
    /// stays free of its cost.
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty() && matches!(self.query, QueryRedaction::Keep)
    }

    /// Redacts a record in place. A hashed or dropped query needs no rules. The errors and the
    /// conversation id may repeat the query, and get the rules in any case.
    pub(super) fn apply(&self, record: &mut RetrievalFailureRecord) {
        match &self.query {
            QueryRedaction::Keep => {
                // A query without a match keeps the length that the sender gave, which may exceed
                // the text.
                let before = record.query_text.clone();
                record.query_text = self.replaced(&record.query_text);
                // The original length would reveal something about the replaced text.
                if record.query_text != before {
                    record.query_len = record.query_text.len();
                }
            }
            QueryRedaction::Hash(key) => set_query(record, &hashed(key, &record.query_text)),
            QueryRedaction::Drop => set_query(record, ""),
        }
        // Errors often quote the query or a part of a document.
        record.error_context = record
            .error_context
            .as_ref()
            .map(|text| self.replaced(text));
        if let Some(id) = record.conversation_id.take() {
            record.conversation_id = Some(self.replaced::<128>(id.as_str()).as_str().into());
        }
    }

    /// Applies the rules. The result is cut to `N` characters once more, because a replacement may
    /// be longer than its match.
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

/// Replaces the query and its length in bytes, which would otherwise be that of the original.
fn set_query(record: &mut RetrievalFailureRecord, text: &str) {
    (record.query_text, record.query_len) = (text.into(), text.len());
}

/// Returns the first 16 bytes of the keyed hash of the normal form of a query. Queries with the same
/// normal form have the same hash, because the report groups them. Half of the hash suffices: two of a billion queries are equal by chance with a probability of less than one in
/// 10^20.
fn hashed(key: &Hmac<Sha256>, query: &str) -> String {
    let mut mac = key.clone();
    mac.update(normalized(query).as_bytes());
    let bytes = mac.finalize().into_bytes();
    bytes
        .iter()
        .take(16)
        .fold(String::from("hash:"), |hash, byte| {
            format!("{hash}{byte:02x}")
        })
}

/// Reads a key. Fails if other users can read the file. White space at both ends is skipped,
/// because editors end a file with a line feed.
fn key(path: &Path) -> Result<Hmac<Sha256>, CommandError> {
    let invalid = |cause: &dyn std::fmt::Display| {
        CommandError::Usage(format!("query_hash_key_file = {}: {cause}", path.display()))
    };
    let bytes = fs::read(path).map_err(|error| invalid(&error))?;
    let key = bytes.trim_ascii();
    if key.len() < MIN_KEY_BYTES {
        return Err(invalid(&format_args!(
            "expected a key of at least {MIN_KEY_BYTES} bytes"
        )));
    }
    if fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0) {
        return Err(invalid(
            &"other users can read the key; restrict the file with chmod 600",
        ));
    }
    Hmac::new_from_slice(key).map_err(|error| invalid(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use failure_logger::RetrievalFailureType;

    fn record() -> RetrievalFailureRecord {
        RetrievalFailureRecord {
            conversation_id: Some("of ada@example.org".into()),
            error_context: Some("no answer for ada@example.org".into()),
            ..RetrievalFailureRecord::new(
                RetrievalFailureType::NoHit,
                "s",
                "Mail of ada@example.org, card 1234?",
            )
        }
    }

    fn rule(pattern: &str, replacement: &str) -> Rule {
        Rule {
            pattern: pattern.into(),
            replacement: replacement.into(),
        }
    }

    #[test]
    fn rules_replace_text_in_every_field() {
        let rules = [
            rule(r"[\w.]+@([\w.]+)", "[mail at $1]"),
            rule(r"\d{4}", "[digits]"),
        ];
        let redaction = Redaction::new(&rules, QueryText::Keep, None).unwrap();
        let mut record = record();
        redaction.apply(&mut record);
        assert_eq!(
            record.query_text,
            "Mail of [mail at example.org], card [digits]?"
        );
        assert_eq!(record.query_len, record.query_text.len());
        assert_eq!(
            record.error_context.unwrap(),
            "no answer for [mail at example.org]"
        );
        assert_eq!(
            record.conversation_id.unwrap().as_str(),
            "of [mail at example.org]"
        );
        let mut plain = RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "s", "plain");
        plain.query_len = 4000;
        redaction.apply(&mut plain);
        assert_eq!(
            (plain.query_text.as_str(), plain.query_len),
            ("plain", 4000)
        );
    }

    #[test]
    fn query_hash_depends_on_the_key_and_groups_equal_queries() {
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
            assert_eq!(record.query_len, 37, "the length reveals nothing");
            record.query_text.as_str().to_owned()
        };
        assert_eq!(
            hash(&one, "Where is the key?"),
            hash(&one, "where is the KEY")
        );
        assert_ne!(
            hash(&one, "where is the key"),
            hash(&one, "where is the door")
        );
        assert_ne!(
            hash(&one, "where is the key"),
            hash(&other, "where is the key")
        );
        assert!(hash(&one, "where").starts_with("hash:"));
        let nothing = Redaction::new(&[], QueryText::Drop, None).unwrap();
        let mut record = record();
        nothing.apply(&mut record);
        assert_eq!((record.query_text.as_str(), record.query_len), ("", 0));
    }

    #[test]
    fn invalid_rule_or_key_is_an_error_that_names_it() {
        let error_text =
            |rules: &[Rule], query, key: Option<&Path>| match Redaction::new(rules, query, key) {
                Err(error) => error.text(),
                Ok(_) => panic!("expected an error"),
            };
        assert!(
            error_text(&[rule("a", ""), rule("(", "")], QueryText::Keep, None)
                .starts_with("redact: rule 2: ")
        );
        assert!(
            error_text(&[rule(r"(\pL{1000}){1000}", "")], QueryText::Keep, None).contains("rule 1")
        );
        assert!(
            error_text(&vec![rule("a", ""); 65], QueryText::Keep, None)
                .contains("65 rules: expected 64 at most")
        );
        assert!(error_text(&[], QueryText::Hash, None).contains("query_hash_key_file"));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "short").unwrap();
        assert!(error_text(&[], QueryText::Hash, Some(file.path())).contains("at least 16 bytes"));
        fs::write(file.path(), "0123456789abcdef").unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        let text = error_text(&[], QueryText::Hash, Some(file.path()));
        assert!(
            text.contains("chmod 600") && !text.contains("0123"),
            "{text}"
        );
    }
}
