//! Repair of almost valid JSON, as the libraries of several languages write it.

/// Numbers of Python, JavaScript and C that JSON does not have.
const NON_JSON_NUMBERS: [&str; 8] = [
    "NaN",
    "nan",
    "-Infinity",
    "Infinity",
    "-inf",
    "inf",
    "-NaN",
    "-nan",
];

/// Replaces NaN and infinities by null, lone surrogates by U+FFFD, and control characters within
/// strings by their escapes. Valid JSON is returned unchanged.
pub(crate) fn repaired(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(next) = rest.find(['"', 'N', 'n', 'I', 'i', '-']) {
        let (before, from) = rest.split_at(next);
        out.push_str(before);
        rest = from;
        if let Some(string) = rest.strip_prefix('"') {
            out.push('"');
            rest = copy_string(string, &mut out);
        } else if let Some(name) = NON_JSON_NUMBERS
            .iter()
            .find(|name| starts_with_word(rest, name))
        {
            out.push_str("null");
            rest = rest.get(name.len()..).unwrap_or_default();
        } else {
            let mut characters = rest.chars();
            out.extend(characters.next());
            rest = characters.as_str();
        }
    }
    out.push_str(rest);
    out
}

/// Returns `true` if `text` begins with `name` as a whole word.
fn starts_with_word(text: &str, name: &str) -> bool {
    text.strip_prefix(name)
        .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_alphanumeric()))
}

/// Copies a string, including its closing quote. Returns the rest of the text.
fn copy_string<'a>(string: &'a str, out: &mut String) -> &'a str {
    let mut rest = string;
    while let Some(next) = rest.find(|c: char| c == '"' || c == '\\' || c < ' ') {
        let (before, from) = rest.split_at(next);
        out.push_str(before);
        let mut characters = from.chars();
        match characters.next() {
            Some('"') => {
                out.push('"');
                return characters.as_str();
            }
            Some('\\') => rest = copy_escape(from, out),
            Some(control) => {
                out.push_str(&format!("\\u{:04x}", u32::from(control)));
                rest = characters.as_str();
            }
            None => return "",
        }
    }
    out.push_str(rest);
    ""
}

/// Copies an escape sequence or a surrogate pair. Returns the rest of the text.
fn copy_escape<'a>(escape: &'a str, out: &mut String) -> &'a str {
    let Some(unit) = code_unit(escape) else {
        let end = escape
            .char_indices()
            .nth(2)
            .map_or(escape.len(), |(end, _)| end);
        let (escape, rest) = escape.split_at(end);
        out.push_str(escape);
        return rest;
    };
    let (first, rest) = escape.split_at(6);
    match unit {
        0xD800..0xDC00 if code_unit(rest).is_some_and(|low| (0xDC00..0xE000).contains(&low)) => {
            let (second, rest) = rest.split_at(6);
            out.push_str(first);
            out.push_str(second);
            rest
        }
        0xD800..0xE000 => {
            out.push_str("\\ufffd");
            rest
        }
        _ => {
            out.push_str(first);
            rest
        }
    }
}

/// Returns the code unit of an escape `\uXXXX` at the beginning of the text.
fn code_unit(escape: &str) -> Option<u32> {
    let digits = escape.strip_prefix("\\u")?.get(..4)?;
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_becomes_json_and_strings_keep_their_words() {
        for (json, expected) in [
            (
                r#"{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN"}"#,
                r#"{"a": null, "b": [null, null], "c": "NaN"}"#,
            ),
            (
                r#"{"a":nan,"b":-inf,"n":null,"t":true,"m":-1}"#,
                r#"{"a":null,"b":null,"n":null,"t":true,"m":-1}"#,
            ),
            (
                r#"{"a": "cut \ud83d", "b": "\udc00x"}"#,
                r#"{"a": "cut \ufffd", "b": "\ufffdx"}"#,
            ),
            (
                r#"{"a": "\ud83d\udd11 \\ud83d \" NaN"}"#,
                r#"{"a": "\ud83d\udd11 \\ud83d \" NaN"}"#,
            ),
            (
                r#"{"a": "\ud83d\ud83d\udd11"}"#,
                r#"{"a": "\ufffd\ud83d\udd11"}"#,
            ),
            ("{\"a\": \"tab\there\"}", r#"{"a": "tab\u0009here"}"#),
            (r#"{"a": Nano}"#, r#"{"a": Nano}"#),
            (r#"{"a": "not closed NaN"#, r#"{"a": "not closed NaN"#),
            (r#"{"a": "\u12"#, r#"{"a": "\u12"#),
        ] {
            assert_eq!(repaired(json), expected, "{json}");
        }
    }

    proptest::proptest! {
        #[test]
        fn json_stays_as_it_is(text in ".{0,40}", number in proptest::num::f64::NORMAL) {
            let json = serde_json::json!({"text": text, "list": [number, null, true, text]}).to_string();
            proptest::prop_assert_eq!(repaired(&json), json);
        }

        #[test]
        fn nothing_is_a_reason_to_panic(text in "[\\\\u\"d8Naif0-9{}é\\x00-]{0,60}") {
            let _ = repaired(&text);
        }
    }
}
