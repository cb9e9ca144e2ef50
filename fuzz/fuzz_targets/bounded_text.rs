//! A bounded text consists of the first characters of any text, whether it comes from a slice, a
//! string or JSON.
#![no_main]

use failure_logger::BoundedText;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let expected: String = text.chars().take(8).collect();
    assert_eq!(BoundedText::<8>::from(text), *expected);
    // A string with unused capacity is converted in its own way, which gives that memory back.
    let mut roomy = String::with_capacity(2 * text.len() + 100);
    roomy.push_str(text);
    assert_eq!(BoundedText::<8>::from(roomy), *expected);
    let json = serde_json::to_string(text).expect("text is JSON");
    assert_eq!(
        serde_json::from_str::<BoundedText<8>>(&json).expect("JSON is text"),
        *expected
    );
});
