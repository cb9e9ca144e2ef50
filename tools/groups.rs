//! Shows which queries of a file share a group: one query a line, or a language, a tab and a query.
//! Prints a table by language, and with `--pairs` each query that is not alone with the first one
//! of its group.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::Instant;

use clap::Parser;
use failure_logger::program::{first_of_group, normalized};

#[derive(Parser)]
struct Args {
    /// File; standard input if missing.
    file: Option<std::path::PathBuf>,
    /// Also print the queries that share a group though they are different texts.
    #[arg(long)]
    pairs: bool,
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let text = match args.file {
        Some(file) => std::fs::read_to_string(file)?,
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
    };
    let mut by_language: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let (language, query) = line.split_once('\t').unwrap_or(("", line));
        by_language.entry(language).or_default().push(query.into());
    }
    println!("language queries same_text similar ms");
    for (language, queries) in by_language {
        let begin = Instant::now();
        let first = first_of_group(&queries);
        let ms = begin.elapsed().as_millis();
        // Queries that differ in spaces alone are the same text.
        let text = |query: &str| normalized(query).replace(' ', "");
        let (mut same, mut similar) = (0, 0);
        let mut pairs = Vec::new();
        for (nth, first) in first
            .iter()
            .enumerate()
            .filter(|(nth, first)| nth != *first)
        {
            if text(&queries[nth]) == text(&queries[*first]) {
                same += 1;
            } else {
                similar += 1;
                pairs.push((&queries[*first], &queries[nth]));
            }
        }
        println!("{language} {} {same} {similar} {ms}", queries.len());
        if args.pairs {
            pairs
                .iter()
                .for_each(|(one, other)| println!("  {one}\n  {other}\n"));
        }
    }
    Ok(())
}
