//! The address of the database, which may contain a password.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// A `database_url` as it was given. `Display`, `Debug` and `Serialize` replace its password by
/// `***`, so that no log, error or printed setting contains it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct DatabaseUrl(String);

/// What stands in the place of a secret.
const REDACTED: &str = "***";

impl DatabaseUrl {
    /// Returns the URL with its password. The result must not be printed.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// Replaces the value, as a setting is parsed.
    pub(crate) fn replace(&mut self, url: String) {
        self.0 = url;
    }

    /// Returns `true` if the scheme is PostgreSQL's.
    pub(crate) fn is_postgres(&self) -> bool {
        scheme_and_rest(&self.0).is_some()
    }

    /// Returns `text` without the password of this URL. A message of libpq may repeat parts of a
    /// URL that it cannot parse.
    #[cfg(feature = "postgres")]
    pub(crate) fn scrub(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        for secret in secrets(&self.0) {
            let decoded = percent_decoded(secret);
            for secret in [secret, &decoded] {
                if !secret.is_empty() {
                    clean = clean.replace(secret, REDACTED);
                }
            }
        }
        clean
    }
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redacted(&self.0))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", redacted(&self.0))
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&redacted(&self.0))
    }
}

/// Returns the text with `***` in the place of each password of a PostgreSQL URL.
pub(crate) fn redacted(url: &str) -> String {
    let mut clean = url.to_owned();
    // From the last one, so that the positions of the others stay.
    let mut found: Vec<&str> = secrets(url);
    found.sort_by_key(|secret| std::cmp::Reverse(secret.as_ptr()));
    for secret in found {
        let start = secret.as_ptr() as usize - url.as_ptr() as usize;
        clean.replace_range(start..start + secret.len(), REDACTED);
    }
    clean
}

/// Returns the passwords of a PostgreSQL URL: that of the user, and those among the parameters.
///
/// The user's one ends at the last `@` of the whole text, because a password may contain `/`, `?`
/// or `@` that its author did not encode. In doubt this hides too much.
fn secrets(url: &str) -> Vec<&str> {
    let Some((_, rest)) = scheme_and_rest(url) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let (user, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
    if let Some((_, password)) = user.split_once(':') {
        found.push(password);
    }
    let parameters = rest
        .split_once('?')
        .map_or("", |(_, parameters)| parameters);
    found.extend(parameters.split('&').filter_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.to_ascii_lowercase()
            .contains("password")
            .then_some(value)
    }));
    found
}

/// Returns the parts around `://` of a PostgreSQL URL.
fn scheme_and_rest(url: &str) -> Option<(&str, &str)> {
    url.split_once("://").filter(|(scheme, _)| {
        ["postgres", "postgresql"]
            .iter()
            .any(|name| scheme.eq_ignore_ascii_case(name))
    })
}

/// Returns the text with each `%XX` decoded, as libpq passes it on.
#[cfg(feature = "postgres")]
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        let code = tail.split_at_checked(2).and_then(|(digits, tail)| {
            let code = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
            Some((code, tail))
        });
        rest = match code.filter(|_| *byte == b'%') {
            Some((code, tail)) => {
                bytes.push(code);
                tail
            }
            None => {
                bytes.push(*byte);
                tail
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_is_shown_by_no_form_of_a_url() {
        for (url, shown) in [
            ("postgres://u:secret@h:5433/d", "postgres://u:***@h:5433/d"),
            (
                "postgresql://u:secret@h/d?a=b",
                "postgresql://u:***@h/d?a=b",
            ),
            ("POSTGRES://u:secret@h", "POSTGRES://u:***@h"),
            ("postgres://u:se/secret?x@y@h/d", "postgres://u:***@h/d"),
            ("postgres://u:@h/d", "postgres://u:***@h/d"),
            (
                "postgres:///d?user=u&password=secret&sslpassword=secret&port=1",
                "postgres:///d?user=u&password=***&sslpassword=***&port=1",
            ),
            ("postgres://u@h/d", "postgres://u@h/d"),
            ("a:secret@b.db", "a:secret@b.db"),
        ] {
            let url = DatabaseUrl::from(url.to_owned());
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("{shown:?}"));
            assert_eq!(serde_json::to_value(&url).unwrap(), shown);
        }
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn password_is_taken_out_of_messages() {
        let url = DatabaseUrl::from("postgres://u:s%2Fecret@h/d".to_owned());
        assert_eq!(
            url.scrub("invalid \"s%2Fecret\", password \"s/ecret\" is wrong for u"),
            "invalid \"***\", password \"***\" is wrong for u"
        );
    }
}
