//! Search for a part of a text, as people expect it: in either case, of any script.

use unicode_normalization::UnicodeNormalization as _;

/// A part of a text that is searched for.
pub(crate) struct Folded(String);

impl Folded {
    pub(crate) fn new(part: &str) -> Self {
        Self(folded(part))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns `true` if `text` contains `part`, which is [`Folded`].
pub(crate) fn contains(text: &str, part: &str) -> bool {
    if !text.is_ascii() {
        return folded(text).contains(part);
    }
    // Most text: nothing is copied.
    part.is_empty() || text.as_bytes().windows(part.len()).any(|window| window.eq_ignore_ascii_case(part.as_bytes()))
}

/// Text in which upper and lower case, composed and decomposed letters, and wide and narrow ones are the same. Letter by
/// letter, so that `ß` is `ss`, and each sigma is one.
fn folded(text: &str) -> String {
    text.nfkc().flat_map(char::to_uppercase).flat_map(char::to_lowercase).nfkc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_in_either_case_of_any_script() {
        for (text, part) in [
            ("Where is the KEY?", "the key"),
            ("Москва", "москва"),
            ("москва", "МОСК"),
            ("ΟΔΟΣ", "οδος"),
            ("οδος 7", "ΟΔΟΣ"),
            ("Straße", "STRASSE"),
            ("strasse", "straße"),
            ("café", "cafe\u{301}"),
            ("CAFE\u{301}", "café"),
            ("ＫＥＹ", "key"),
            ("ﬁnd", "FIND"),
            ("a\0behind", "BEHIND"),
            ("100%_\\", "%_\\"),
            ("anything", ""),
            ("", ""),
        ] {
            assert!(contains(text, Folded::new(part).as_str()), "{part} in {text}");
        }
        for (text, part) in [("cafe", "café"), ("key", "keys"), ("", "x"), ("Москва", "moskva"), ("a", "\0")] {
            assert!(!contains(text, Folded::new(part).as_str()), "{part} in {text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn each_part_is_found_in_upper_and_lower_case(before in ".{0,9}", part in ".{1,9}", after in ".{0,9}") {
            let text = format!("{before} {part} {after}");
            for part in [part.clone(), part.to_lowercase(), part.to_uppercase()] {
                // What combines with its neighbour is another letter.
                if folded(&text).contains(&folded(&part)) {
                    proptest::prop_assert!(contains(&text, Folded::new(&part).as_str()));
                }
            }
            proptest::prop_assert!(contains(&text, Folded::new(&text.to_uppercase()).as_str()));
        }
    }
}
