//! A complete search service that records its failed searches.
//!
//! It serves BM25 full-text search (SQLite's FTS5) over HTTP, and hands every search that found
//! nothing, found nothing good, took too long or broke to the failure logger:
//!
//! ```text
//! cargo run --release --example search_app
//! curl 'http://127.0.0.1:8080/search?q=what+happens+when+the+disk+is+full'
//! ```
//!
//! With `--queries FILE` it sends itself all queries of a file, then tells which ones failed.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, Context, Handler, Message, Recipient};
use actix_web::http::StatusCode;
use actix_web::rt::{self, time::timeout};
use actix_web::{App, HttpResponse, HttpServer, get, web};
use clap::Parser;
use diesel::dsl::{count_star, max};
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool};
use diesel::sql_types::{Float, Text};
use failure_logger::RetrievalFailureType::{LowConfidence, NoHit, Timeout};
use failure_logger::{FailureLogger, LoggerConfig, LoggerHandle, RetrievalFailureRecord, RetrievalFailureType, Stats};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

const STRATEGY: &str = "bm25";
const MAX_HITS: usize = 10;
const MAX_QUERY_BYTES: usize = 1000;
/// Searches that run at once; more wait for a connection, and that counts as their time.
const MAX_SEARCHES: u32 = 4;
/// Failed queries that the summary shows.
const WORST: i64 = 10;

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
    /// How long a search may take
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
    /// How long a search may take before it is reported as slow, though it succeeded
    #[arg(long, default_value_t = 250)]
    slow_ms: u64,
    /// Database of the failed searches: a path
    #[arg(long, default_value = "search-failures.db")]
    db: String,
    /// Address to listen on [default: 127.0.0.1:8080, or with --queries any free port]
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Send the queries of this JSON-lines file (query) to the server, then stop it
    #[arg(long)]
    queries: Option<PathBuf>,
}

#[actix_web::main]
async fn main() -> ExitCode {
    // The logger warns through `tracing`, for example when its database cannot be written.
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr).init();
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let questions = args.queries.as_deref().map(json_lines::<Question>).transpose()?;
    let documents = documents(&args.corpus)?;
    let index = SearchIndex::build(&documents)?;

    if args.db.contains(':') {
        return Err(format!("--db {}: expected the path of a file", args.db).into());
    }
    let logger = FailureLogger::spawn(LoggerConfig::new(&args.db))?;
    let last_run = last_failure(&args.db)?;
    // The only clone of the address: each one enlarges the logger's mailbox.
    let reports = logger.addr().clone().recipient();
    let watcher = LatencyWatcher { slow_ms: args.slow_ms, reports }.start();

    // Built once, for the factory below runs in every worker.
    let app = web::Data::new(SearchApp {
        index,
        logger: logger.clone(),
        watcher: watcher.clone(),
        threshold: args.threshold,
        timeout: Duration::from_millis(args.timeout_ms),
    });
    let port = if questions.is_some() { 0 } else { 8080 };
    let listen = args.listen.unwrap_or((Ipv4Addr::LOCALHOST, port).into());
    let server = HttpServer::new(move || App::new().app_data(app.clone()).service(search))
        .bind(listen)
        .map_err(|error| format!("cannot listen on {listen}: {error}; choose another address with --listen"))?;
    let url = format!("http://{}/search", server.addrs().first().unwrap_or(&listen));
    println!("{} documents are searchable at {url}; try", documents.len());
    println!("    curl '{url}?q=how+are+failures+recorded'\n");

    let server = server.run();
    let stop = server.handle();
    // A task of its own, because the server also has to be polled while it is being stopped.
    let server = rt::spawn(server);
    let asked = match questions {
        Some(questions) => {
            let asked = ask(&url, &questions).await;
            stop.stop(true).await;
            asked
        }
        None => Ok(()), // Ctrl-C and SIGTERM stop it.
    };
    server.await??;

    // Nobody searches any more. What the watcher was told is reported before the logger closes.
    watcher.send(CaughtUp).await?;
    let stats = logger.shutdown().await?.stats;
    summarize(&args.db, last_run, &stats)?;
    asked
}

/// Sends each question to the server, one after the other.
async fn ask(url: &str, questions: &[Question]) -> Result<()> {
    // The server has a timeout itself, and what it says about that is an answer too.
    let client = awc::Client::builder().disable_timeout().finish();
    let mut refused = 0;
    for Question { query } in questions {
        let request = client.get(url).query(&[("q", query)])?;
        let mut answer = request.send().await.map_err(|error| format!("no answer to {query:?}: {error}"))?;
        refused += usize::from(answer.status().is_client_error());
        // Read to its end, so that the connection serves the next question.
        answer.body().await?;
    }
    println!("asked {} questions, {refused} of them refused as invalid", questions.len());
    Ok(())
}

/// What the handlers share.
struct SearchApp {
    index: SearchIndex,
    logger: LoggerHandle,
    watcher: Addr<LatencyWatcher>,
    threshold: f32,
    timeout: Duration,
}

#[derive(Deserialize)]
struct SearchRequest {
    #[serde(default)]
    q: String,
}

#[derive(Serialize)]
struct SearchAnswer {
    /// `success`, or the type of failure.
    outcome: &'static str,
    latency_ms: u64,
    hits: Vec<Hit>,
}

#[get("/search")]
async fn search(app: web::Data<SearchApp>, request: web::Query<SearchRequest>) -> HttpResponse {
    let query = request.into_inner().q;
    // A mistake of the client is no failure of the search.
    if query.trim().is_empty() || query.len() > MAX_QUERY_BYTES {
        return HttpResponse::BadRequest().body(format!("expected ?q= with 1 to {MAX_QUERY_BYTES} bytes of text\n"));
    }
    let started = Instant::now();
    let found = timeout(app.timeout, find(app.clone(), query.clone())).await;
    let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);

    let (status, failure, cause, hits) = match found {
        Ok(Ok(hits)) => (StatusCode::OK, app.judge(&hits), None, hits),
        Ok(Err(error)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, Some(RetrievalFailureType::Error), Some(error.to_string()), vec![])
        }
        Err(elapsed) => (StatusCode::GATEWAY_TIMEOUT, Some(Timeout), Some(elapsed.to_string()), vec![]),
    };
    // Written as a timeout for the case that the watcher finds it slow.
    let record = RetrievalFailureRecord {
        top_score: hits.first().map(|best| best.score),
        confidence_threshold: Some(app.threshold),
        result_count: hits.len(),
        latency_ms,
        error_context: cause.map(Into::into),
        ..RetrievalFailureRecord::new(failure.unwrap_or(Timeout), STRATEGY, &query)
    };
    // Either, or: nothing is logged twice.
    if failure.is_some() {
        app.logger.log(record); // What is dropped is counted, and the logger warns of it.
    } else {
        app.watcher.do_send(Searched(record));
    }
    let outcome = failure.map_or("success", |failure| failure.as_str());
    HttpResponse::build(status).json(SearchAnswer { outcome, latency_ms, hits })
}

/// Searches on a thread that may block. It goes on if nobody waits any more.
async fn find(app: web::Data<SearchApp>, query: String) -> Result<Vec<Hit>> {
    web::block(move || app.index.search(&query)).await?
}

impl SearchApp {
    fn judge(&self, hits: &[Hit]) -> Option<RetrievalFailureType> {
        match hits.first() {
            None => Some(NoHit),
            Some(best) if best.score < self.threshold => Some(LowConfidence),
            Some(_) => None,
        }
    }
}

/// Reports searches that succeeded, but slowly.
struct LatencyWatcher {
    slow_ms: u64,
    reports: Recipient<RetrievalFailureRecord>,
}

impl Actor for LatencyWatcher {
    type Context = Context<Self>;
}

/// A search that succeeded.
#[derive(Message)]
#[rtype(result = "()")]
struct Searched(RetrievalFailureRecord);

impl Handler<Searched> for LatencyWatcher {
    type Result = ();

    fn handle(&mut self, Searched(mut record): Searched, _: &mut Context<Self>) {
        if record.latency_ms < self.slow_ms {
            return;
        }
        let context = format!("slow: {} ms, expected under {} ms", record.latency_ms, self.slow_ms);
        record.error_context = Some(context.into());
        if let Err(error) = self.reports.try_send(record) {
            tracing::warn!(%error, "a slow search was not reported");
        }
    }
}

/// Answered when the watcher has seen everything it was sent before.
#[derive(Message)]
#[rtype(result = "()")]
struct CaughtUp;

impl Handler<CaughtUp> for LatencyWatcher {
    type Result = ();

    fn handle(&mut self, _: CaughtUp, _: &mut Context<Self>) {}
}

/// Documents in a temporary FTS5 index, apart from the log of failures.
struct SearchIndex {
    pool: Pool<ConnectionManager<SqliteConnection>>,
    /// Deleted with the index.
    _file: NamedTempFile,
}

#[derive(QueryableByName, Serialize)]
struct Hit {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    title: String,
    /// Higher is better.
    #[diesel(sql_type = Float)]
    score: f32,
}

impl SearchIndex {
    fn build(documents: &[Document]) -> Result<Self> {
        let file = NamedTempFile::new()?;
        let manager = ConnectionManager::<SqliteConnection>::new(file.path().to_string_lossy());
        let pool = Pool::builder().max_size(MAX_SEARCHES).build(manager)?;
        pool.get()?.transaction(|conn| {
            diesel::sql_query(
                "CREATE VIRTUAL TABLE documents USING fts5 (id UNINDEXED, title, text, tokenize = 'porter unicode61')",
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

    /// The documents with any of the query's words, best first.
    fn search(&self, query: &str) -> Result<Vec<Hit>> {
        let expression = fts5_expression(query);
        if expression.is_empty() {
            return Ok(vec![]);
        }
        // FTS5 ranks by bm25(), where lower is better.
        let hits = diesel::sql_query(format!(
            "SELECT id, title, -rank AS score FROM documents WHERE documents MATCH ? ORDER BY rank LIMIT {MAX_HITS}"
        ))
        .bind::<Text, _>(expression)
        .load(&mut self.pool.get()?)?;
        Ok(hits)
    }
}

/// `"each" OR "word" OR "quoted"`: no text of a user is a syntax error or an operator. Each word
/// once, for repeating it must not raise the score. Empty if there is no word.
fn fts5_expression(query: &str) -> String {
    let query = query.to_lowercase();
    let words: BTreeSet<&str> = query.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" OR ")
}

#[derive(Deserialize)]
struct Document {
    id: String,
    #[serde(default)]
    title: String,
    text: String,
}

#[derive(Deserialize)]
struct Question {
    query: String,
}

fn documents(corpus: &Path) -> Result<Vec<Document>> {
    let mut documents = vec![];
    if corpus.is_dir() {
        read_folder(corpus, corpus, &mut documents)?;
    } else {
        documents = json_lines(corpus)?;
    }
    if documents.is_empty() {
        return Err(format!("no documents in {}; choose others with --corpus", corpus.display()).into());
    }
    Ok(documents)
}

fn json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let parse = |(nth, line)| {
        serde_json::from_str(line).map_err(|error| format!("{}, line {}: {error}", path.display(), nth + 1).into())
    };
    read(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

fn read_folder(root: &Path, folder: &Path, documents: &mut Vec<Document>) -> Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = path.strip_prefix(root)?.to_string_lossy();
        let extension = path.extension().and_then(|extension| extension.to_str());
        // Hidden folders and Cargo's output hold no documentation of ours.
        if entry.file_type()?.is_dir() && !name.starts_with('.') && name != "target" {
            read_folder(root, &path, documents)?;
        } else if let Some("md" | "txt") = extension {
            documents.extend(sections(&name, &read(&path)?, extension == Some("md")));
        }
    }
    Ok(())
}

/// A document for each section of a Markdown file, because a hit should lead to a passage rather
/// than to a manual; a single one for other text. The first line is the title.
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

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()).into())
}

diesel::table! {
    /// What the summary needs of the logger's table.
    memory_retrieval_failures (id) {
        /// Ascends, and is never used again.
        id -> BigInt,
        /// The name that `RetrievalFailureType::as_str` gives.
        failure_type -> Text,
        /// At most 512 characters of the query.
        query_text -> Text,
        /// NULL if nothing was found.
        top_score -> Nullable<Float>,
    }
}

/// Id of the newest failure that earlier runs left in the database.
fn last_failure(db: &str) -> Result<i64> {
    use self::memory_retrieval_failures::dsl::{id, memory_retrieval_failures};

    let last: Option<i64> = memory_retrieval_failures.select(max(id)).first(&mut SqliteConnection::establish(db)?)?;
    Ok(last.unwrap_or(0))
}

/// Prints what the database holds of this run, and what became of every record.
fn summarize(db: &str, last_run: i64, stats: &Stats) -> Result<()> {
    use self::memory_retrieval_failures::dsl::{failure_type, id, memory_retrieval_failures, query_text, top_score};

    let conn = &mut SqliteConnection::establish(db)?;
    let failures = memory_retrieval_failures.filter(id.gt(last_run));
    let counts: Vec<(String, i64)> =
        failures.group_by(failure_type).select((failure_type, count_star())).order(count_star().desc()).load(conn)?;
    // Those without a hit have no score, and SQLite puts NULL first.
    let worst: Vec<(Option<f32>, String)> = failures
        .filter(failure_type.eq_any([NoHit.as_str(), LowConfidence.as_str()]))
        .select((top_score, query_text))
        .order((top_score.asc(), id.asc()))
        .limit(WORST)
        .load(conn)?;

    println!("\nfailed searches by type, in {db}:");
    if counts.is_empty() {
        println!("    none");
    }
    for (name, count) in counts {
        println!("{count:>8}  {name}");
    }
    if !worst.is_empty() {
        println!("\nworst queries, with their best score:");
    }
    for (score, query) in worst {
        let score = score.map_or_else(|| "no hit".to_owned(), |score| format!("{score:.2}"));
        // Users' text may contain what a terminal takes for commands.
        let query: String = query.chars().take(100).flat_map(char::escape_debug).collect();
        println!("{score:>8}  {query}");
    }
    println!("\n{stats}");
    Ok(())
}
