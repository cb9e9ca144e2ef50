//! A complete search service that records its failed searches.
//!
//! It serves BM25 full-text search (SQLite's FTS5) over HTTP. A monitor counts each search, and
//! logs those without a result, with a low score, with a timeout or with an error:
//!
//! ```text
//! cargo run --release --example search_app
//! curl 'http://127.0.0.1:8080/search?q=what+happens+when+the+disk+is+full'
//! ```
//!
//! With `--queries FILE`, it sends itself all queries of a file, prints which ones failed, and
//! suggests thresholds. With `--judgements FILE`, it also compares failures with the relevance of
//! the results.

use std::collections::{BTreeSet, HashSet};
use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use actix::{Actor, Addr, Context, Handler, Message, Recipient};
use actix_web::http::StatusCode;
use actix_web::rt;
use actix_web::{App, HttpResponse, HttpServer, get, web};
use clap::Parser;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool};
use diesel::sql_types::{Float, Text};
use failure_logger::monitor::{Scored, Timeout, TimeoutOr};
use failure_logger::{
    FailureFilter, FailureLogger, LoggerConfig, LoggerHandle, PageRequest, RetrievalFailureRecord,
    RetrievalFailureType, StrategyMonitor, TimeRange,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

/// Name under which the monitor counts the searches.
const STRATEGY: &str = "bm25";
/// Maximum number of results of a search.
const MAX_HITS: usize = 10;
/// Maximum length of a query. A longer one could become an expression of thousands of words.
const MAX_QUERY_BYTES: usize = 1000;
/// Maximum size of a response that the program reads from itself.
const MAX_RESPONSE_BYTES: usize = 1 << 20;
/// Strategy of slow searches. It differs from [`STRATEGY`], because the monitor has counted their
/// attempts already.
const SLOW_STRATEGY: &str = "bm25, slow";
/// Maximum number of concurrent searches. Further ones wait for a connection, and the wait is part
/// of their latency.
const MAX_SEARCHES: u32 = 4;
/// Maximum number of failed queries in the summary.
const MAX_WORST: usize = 10;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Full-text search over HTTP that records its failed searches.
#[derive(Parser)]
struct Args {
    /// Documents: a JSON-lines file (id, title, text), or a folder of .md and .txt files
    #[arg(long, default_value = env!("CARGO_MANIFEST_DIR"))]
    corpus: PathBuf,
    /// Score below which the best hit is of low confidence; BM25 scores depend on corpus and query
    #[arg(long, default_value_t = 2.0)]
    threshold: f32,
    /// Timeout of a search in milliseconds
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
    /// Latency in milliseconds at which a successful search is logged as slow
    #[arg(long, default_value_t = 250)]
    slow_ms: u64,
    /// Database file of the failed searches
    #[arg(long, default_value = "search-failures.db")]
    db: String,
    /// Address to listen on [default: 127.0.0.1:8080, or with --queries any free port]
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Send the queries of this JSON-lines file (id, query) to the server, then stop it
    #[arg(long)]
    queries: Option<PathBuf>,
    /// Table of the relevant documents: query id, document id and relevance, below a line of names
    #[arg(long, requires = "queries")]
    judgements: Option<PathBuf>,
    /// Thresholds whose failure rate is predicted
    #[arg(long, value_delimiter = ',', requires = "queries")]
    predict: Vec<f64>,
}

#[actix_web::main]
async fn main() -> ExitCode {
    // The logger warns through `tracing`, for example if its database cannot be written.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .init();
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let queries = args
        .queries
        .as_deref()
        .map(json_lines::<Query>)
        .transpose()?;
    let relevant = args.judgements.as_deref().map(judgements).transpose()?;
    let documents = documents(&args.corpus)?;
    let index = SearchIndex::build(&documents)?;

    if args.db.contains(':') {
        return Err(format!("--db {}: expected the path of a file", args.db).into());
    }
    let begun = SystemTime::now();
    let logger = FailureLogger::spawn(LoggerConfig::new(&args.db))?;
    // This is the only clone of the address, because each one enlarges the logger's mailbox.
    let reports = logger.addr().clone().recipient();
    let watcher = LatencyWatcher {
        slow_ms: args.slow_ms,
        reports,
    }
    .start();

    // The state is built once, because the factory below runs in every worker.
    let app = web::Data::new(SearchApp {
        index,
        monitor: logger
            .strategy(STRATEGY)
            .confidence_threshold(args.threshold)
            .timeout(Duration::from_millis(args.timeout_ms)),
        watcher: watcher.clone(),
        threshold: args.threshold,
    });
    let port = if queries.is_some() { 0 } else { 8080 };
    let listen = args.listen.unwrap_or((Ipv4Addr::LOCALHOST, port).into());
    let server = HttpServer::new(move || App::new().app_data(app.clone()).service(search))
        .bind(listen)
        .map_err(|error| {
            format!("cannot listen on {listen}: {error}; choose another address with --listen")
        })?;
    let url = format!(
        "http://{}/search",
        server.addrs().first().unwrap_or(&listen)
    );
    println!("{} documents are searchable at {url}; try", documents.len());
    println!("    curl '{url}?q=how+are+failures+recorded'\n");

    let server = server.run();
    let stop = server.handle();
    // The server is a task of its own, because it must also be polled while it stops.
    let server = rt::spawn(server);
    let sent = match queries {
        Some(queries) => {
            let sent = send_queries(&url, &queries, relevant.as_ref()).await;
            stop.stop(true).await;
            sent
        }
        None => Ok(()), // Ctrl-C and SIGTERM stop the server.
    };
    server.await??;

    // The server has ended, so that no further search follows. The watcher handles its mailbox to
    // the end before the logger closes.
    watcher.send(CaughtUp).await?;
    let stats = logger.shutdown().await?.stats;
    let run = TimeRange::between(begun, SystemTime::now() + Duration::from_millis(1))?;
    summarize(&logger, run, &args).await?;
    println!("\n{stats}");
    sent
}

/// Sends the queries to the server, one after the other. With `relevant`, pairs of a query and a
/// document, prints how many of the successes and failures found a relevant document.
async fn send_queries(
    url: &str,
    queries: &[Query],
    relevant: Option<&HashSet<(String, String)>>,
) -> Result<()> {
    // The client has no timeout, because the server responds with 504 after its own.
    let client = awc::Client::builder().disable_timeout().finish();
    let mut rejected = 0;
    // The first index is 1 for a failed search. The second is 1 if a relevant document was found.
    let mut counts = [[0_u32; 2]; 2];
    for Query { id, query } in queries {
        let request = client.get(url).query(&[("q", query)])?;
        let mut response = request
            .send()
            .await
            .map_err(|error| format!("no response to {query:?}: {error}"))?;
        // The body is read to its end, so that the connection serves the next query.
        let body = response.body().limit(MAX_RESPONSE_BYTES).await?;
        if response.status().is_client_error() {
            rejected += 1;
        } else if let Some(relevant) = relevant {
            let SearchResponse { outcome, hits, .. } = serde_json::from_slice(&body)?;
            let found = hits
                .iter()
                .any(|hit| relevant.contains(&(id.clone(), hit.id.clone())));
            counts[usize::from(outcome != "success")][usize::from(found)] += 1;
        }
    }
    println!(
        "sent {} queries, {rejected} of them rejected as invalid",
        queries.len()
    );
    if relevant.is_some() {
        println!("\nqueries              a relevant document in the first {MAX_HITS}    none");
        for (name, [without, with]) in [("that succeeded", counts[0]), ("that failed", counts[1])] {
            println!("    {name:<14}    {with:>34}    {without:>4}");
        }
    }
    Ok(())
}

/// State that the workers share.
struct SearchApp {
    index: SearchIndex,
    monitor: StrategyMonitor<Timeout>,
    watcher: Addr<LatencyWatcher>,
    threshold: f32,
}

#[derive(Deserialize)]
struct SearchRequest {
    #[serde(default)]
    q: String,
}

#[derive(Serialize, Deserialize)]
struct SearchResponse {
    /// `success`, or the type of failure.
    outcome: String,
    latency_ms: u64,
    hits: Vec<Hit>,
}

#[get("/search")]
async fn search(app: web::Data<SearchApp>, request: web::Query<SearchRequest>) -> HttpResponse {
    let query = request.into_inner().q;
    // A mistake of the client is no failure of the search, and must not change its rate.
    if query.trim().is_empty() || query.len() > MAX_QUERY_BYTES {
        return HttpResponse::BadRequest().body(format!(
            "expected ?q= with 1 to {MAX_QUERY_BYTES} bytes of text\n"
        ));
    }
    let started = Instant::now();
    // Counts the search, and logs it if it fails.
    let found = app
        .monitor
        .observe(&query, find(app.clone(), query.clone()))
        .await;
    let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);

    let (status, outcome, hits) = match found {
        Ok(hits) => (StatusCode::OK, app.judge(&hits), hits),
        Err(TimeoutOr::Timeout(_)) => (StatusCode::GATEWAY_TIMEOUT, "timeout", vec![]),
        Err(TimeoutOr::Other(_)) => (StatusCode::INTERNAL_SERVER_ERROR, "error", vec![]),
    };
    if outcome == "success" {
        app.watcher.do_send(Searched(RetrievalFailureRecord {
            top_score: hits.first().map(|best| best.score),
            confidence_threshold: Some(app.threshold),
            result_count: hits.len(),
            latency_ms,
            ..RetrievalFailureRecord::new(RetrievalFailureType::Timeout, SLOW_STRATEGY, &query)
        }));
    }
    HttpResponse::build(status).json(SearchResponse {
        outcome: outcome.into(),
        latency_ms,
        hits,
    })
}

/// Searches on a thread that may block. A timeout drops this future, and the thread still ends its
/// search.
async fn find(app: web::Data<SearchApp>, query: String) -> Result<Vec<Hit>> {
    web::block(move || app.index.search(&query)).await?
}

impl SearchApp {
    /// Returns the outcome of a search without an error, by the same rule as the monitor.
    fn judge(&self, hits: &[Hit]) -> &'static str {
        match hits.first() {
            None => "no_hit",
            Some(best) if best.score < self.threshold => "low_confidence",
            Some(_) => "success",
        }
    }
}

/// Logs slow searches that succeeded. It is an actor, because it also shows how another actor sends
/// records to the logger.
struct LatencyWatcher {
    slow_ms: u64,
    reports: Recipient<RetrievalFailureRecord>,
}

impl Actor for LatencyWatcher {
    type Context = Context<Self>;
}

/// Successful search, as the record that is logged if it was slow.
#[derive(Message)]
#[rtype(result = "()")]
struct Searched(RetrievalFailureRecord);

impl Handler<Searched> for LatencyWatcher {
    type Result = ();

    fn handle(&mut self, Searched(mut record): Searched, _: &mut Context<Self>) {
        if record.latency_ms < self.slow_ms {
            return;
        }
        let context = format!(
            "slow: {} ms, expected under {} ms",
            record.latency_ms, self.slow_ms
        );
        record.error_context = Some(context.into());
        // `try_send` returns the record if the mailbox is full. A slow search may be lost then.
        if let Err(error) = self.reports.try_send(record) {
            tracing::warn!(%error, "cannot log a slow search");
        }
    }
}

/// Message without content. Its response shows that the watcher has handled all earlier messages.
#[derive(Message)]
#[rtype(result = "()")]
struct CaughtUp;

impl Handler<CaughtUp> for LatencyWatcher {
    type Result = ();

    fn handle(&mut self, _: CaughtUp, _: &mut Context<Self>) {}
}

/// Documents in a temporary FTS5 index, in a file apart from the log of failures.
struct SearchIndex {
    pool: Pool<ConnectionManager<SqliteConnection>>,
    /// The file is deleted when this value is dropped.
    _file: NamedTempFile,
}

/// Result of a search.
#[derive(QueryableByName, Serialize, Deserialize)]
struct Hit {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    title: String,
    /// BM25 score. Higher is better.
    #[diesel(sql_type = Float)]
    score: f32,
}

/// Tells the monitor the score of a hit, from which it judges the search.
impl Scored for Hit {
    fn score(&self) -> f32 {
        self.score
    }
}

impl SearchIndex {
    /// Creates the index in one transaction.
    fn build(documents: &[Document]) -> Result<Self> {
        let file = NamedTempFile::new()?;
        let manager = ConnectionManager::<SqliteConnection>::new(file.path().to_string_lossy());
        let pool = Pool::builder().max_size(MAX_SEARCHES).build(manager)?;
        pool.get()?.transaction(|conn| {
            diesel::sql_query(
                "CREATE VIRTUAL TABLE documents USING fts5 (id UNINDEXED, title, text, tokenize = \
                 'porter unicode61')",
            )
            .execute(conn)?;
            for Document { id, title, text } in documents {
                diesel::sql_query("INSERT INTO documents VALUES (?, ?, ?)")
                    .bind::<Text, _>(id)
                    .bind::<Text, _>(title)
                    .bind::<Text, _>(text)
                    .execute(conn)?;
            }
            QueryResult::Ok(())
        })?;
        Ok(Self { pool, _file: file })
    }

    /// Returns the documents with any of the query's words, best first.
    fn search(&self, query: &str) -> Result<Vec<Hit>> {
        let expression = fts5_expression(query);
        if expression.is_empty() {
            return Ok(vec![]);
        }
        // A lower `rank` is better in FTS5, and a higher score is better for the monitor.
        let hits = diesel::sql_query(format!(
            "SELECT id, title, -rank AS score FROM documents WHERE documents MATCH ? ORDER BY \
             rank LIMIT {MAX_HITS}"
        ))
        .bind::<Text, _>(expression)
        .load(&mut self.pool.get()?)?;
        Ok(hits)
    }
}

/// Returns an expression such as `"each" OR "word"`, or an empty text if there is no word. The
/// quotes keep the text of a user from being an operator or a syntax error. Each word occurs once,
/// because a repetition must not raise the score.
fn fts5_expression(query: &str) -> String {
    let query = query.to_lowercase();
    let words: BTreeSet<&str> = query
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    words
        .iter()
        .map(|word| format!("\"{word}\""))
        .collect::<Vec<_>>()
        .join(" OR ")
}

/// Line of a corpus, or a section of a file.
#[derive(Deserialize)]
struct Document {
    id: String,
    #[serde(default)]
    title: String,
    text: String,
}

/// Line of the file of `--queries`.
#[derive(Deserialize)]
struct Query {
    #[serde(default)]
    id: String,
    query: String,
}

/// Reads the pairs of a query's id and the id of a relevant document.
fn judgements(path: &Path) -> Result<HashSet<(String, String)>> {
    let text = read(path)?;
    let pairs = text.lines().skip(1).filter_map(|line| {
        let [query, document, relevance] = line.split('\t').collect::<Vec<_>>().try_into().ok()?;
        (relevance.parse::<i32>().ok()? > 0).then(|| (query.to_owned(), document.to_owned()))
    });
    Ok(pairs.collect())
}

/// Reads the corpus. A corpus without documents is an error, because each search in it would fail.
fn documents(corpus: &Path) -> Result<Vec<Document>> {
    let mut documents = vec![];
    if corpus.is_dir() {
        read_folder(corpus, corpus, &mut documents)?;
    } else {
        documents = json_lines(corpus)?;
    }
    if documents.is_empty() {
        return Err(format!(
            "no documents in {}; choose others with --corpus",
            corpus.display()
        )
        .into());
    }
    Ok(documents)
}

/// Reads a file of JSON lines and skips empty ones. An error names the file and the line.
fn json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let parse = |(nth, line)| {
        serde_json::from_str(line)
            .map_err(|error| format!("{}, line {}: {error}", path.display(), nth + 1).into())
    };
    read(path)?
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(parse)
        .collect()
}

/// Adds the documents in a folder and below it, in the order of their names, so that each run has
/// the same index.
fn read_folder(root: &Path, folder: &Path, documents: &mut Vec<Document>) -> Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = path.strip_prefix(root)?.to_string_lossy();
        let extension = path.extension().and_then(|extension| extension.to_str());
        // Hidden folders and the output of Cargo contain the documents of other projects.
        if entry.file_type()?.is_dir() && !name.starts_with('.') && name != "target" {
            read_folder(root, &path, documents)?;
        } else if let Some("md" | "txt") = extension {
            documents.extend(sections(&name, &read(&path)?, extension == Some("md")));
        }
    }
    Ok(())
}

/// Returns a document for each section of a Markdown file, or a single one for other text. A
/// section is a better result than a whole manual. The first line is the title.
fn sections(name: &str, text: &str, markdown: bool) -> Vec<Document> {
    let mut sections: Vec<Document> = vec![];
    let mut in_code = false;
    for line in text.lines() {
        in_code ^= line.starts_with("```");
        let heading = markdown && !in_code && line.starts_with('#');
        match sections.last_mut() {
            Some(section) if !heading => section.text.extend([line, "\n"]),
            _ => sections.push(Document {
                id: format!("{name}#{}", sections.len() + 1),
                title: line.trim_start_matches(['#', ' ']).to_owned(),
                text: String::new(),
            }),
        }
    }
    sections
}

/// Reads a file as text. Bytes that are not UTF-8 become replacement characters, because one such
/// file must not end the program.
fn read(path: &Path) -> Result<String> {
    let bytes =
        fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Prints the failures of this run, the worst queries, and thresholds.
async fn summarize(logger: &LoggerHandle, run: TimeRange, args: &Args) -> Result<()> {
    let reader = logger.reader();
    let page = reader
        .list(
            FailureFilter {
                range: Some(run),
                ..FailureFilter::default()
            },
            PageRequest::newest(1000),
        )
        .await?;
    println!("\nfailed searches by type, in {}:", args.db);
    if page.failures.is_empty() {
        println!("    none");
    }
    for failure_type in RetrievalFailureType::ALL {
        let count = page
            .failures
            .iter()
            .filter(|failure| failure.failure_type == failure_type)
            .count();
        if count > 0 {
            println!("{count:>8}  {failure_type}");
        }
    }
    let mut worst = page.failures;
    worst.retain(|failure| {
        matches!(
            failure.failure_type,
            RetrievalFailureType::NoHit | RetrievalFailureType::LowConfidence
        )
    });
    // A search without a hit has no score. `None` sorts first.
    worst.sort_by(|one, other| {
        one.top_score
            .partial_cmp(&other.top_score)
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    if !worst.is_empty() {
        println!("\nworst queries, with their best score:");
    }
    for failure in worst.iter().take(MAX_WORST) {
        let score = failure
            .top_score
            .map_or_else(|| "no hit".to_owned(), |score| format!("{score:.2}"));
        // The text of a user may contain control characters of a terminal.
        let query: String = failure
            .query_text
            .chars()
            .take(100)
            .flat_map(char::escape_debug)
            .collect();
        println!("{score:>8}  {query}");
    }

    // The counts include other runs of the same minute, because attempts are counted by the minute.
    let calibration = reader.calibration(STRATEGY, run).await?;
    if let Some(rate) = calibration.failure_rate {
        println!(
            "\n{} searches, {:.1} % failed at a threshold of {}",
            calibration.attempts,
            100.0 * rate,
            args.threshold
        );
    }
    for threshold in &args.predict {
        if let Some(rate) = calibration.failure_rate_at(*threshold) {
            println!(
                "    at {threshold}, {:.1} % would have failed",
                100.0 * rate
            );
        }
    }
    for rate in [0.01, 0.05, 0.1] {
        if let Some(threshold) = calibration.threshold_for(rate) {
            println!("    for {:.0} %, choose {threshold:.2}", 100.0 * rate);
        }
    }
    Ok(())
}
