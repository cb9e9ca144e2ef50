//! The examples that end by themselves, run as the documents say.

use std::process::Command;

/// Returns the output of an example.
fn output(example: &str, arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["run", "--locked", "--quiet", "--example", example, "--"])
        .args(arguments);
    let output = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Returns the number in front of a word.
fn number(output: &str, word: &str) -> u64 {
    let (before, _) = output.split_once(word).expect(word);
    before
        .split_whitespace()
        .last()
        .and_then(|number| number.parse().ok())
        .expect(word)
}

#[test]
fn actors_account_for_each_record() {
    let said = output("actors", &[]);
    let (_, end) = said.split_once("logger restarts").expect(&said);
    let (stored, given_up) = (number(end, "stored"), number(end, "given up"));
    assert_eq!(stored + given_up, 124, "{said}");
    assert!(given_up > 0 && stored >= 64, "{said}");
    assert!(
        end.contains(&format!(
            "received {stored} = persisted {stored} + dropped 0 + buffered 0"
        )),
        "{said}"
    );
}

#[test]
fn own_pool_finds_in_both_tables() {
    let said = output("own_pool", &["--try"]);
    assert!(
        said.contains("search?text=moon: []\nfailing: [\"1 x moon\"]\n"),
        "{said}"
    );
    assert!(
        said.ends_with("received 1 = persisted 1 + dropped 0 + buffered 0\n"),
        "{said}"
    );
}
