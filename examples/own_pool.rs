//! An application with its own table beside the log, in one file, through one pool: `cargo run
//! --example own_pool`. With `-- --try`, it sends itself some requests and ends.
use std::{error::Error, time::Duration};

use actix_web::error::{ErrorInternalServerError, ErrorServiceUnavailable};
use actix_web::web::{Data, Json, Query};
use actix_web::{App, HttpServer, get, rt, web};
use failure_logger::RetrievalFailureType::NoHit;
use failure_logger::report::QueryFilter;
use failure_logger::sqlite::diesel::connection::SimpleConnection as _;
use failure_logger::sqlite::diesel::prelude::*;
use failure_logger::sqlite::r2d2::ConnectionManager;
use failure_logger::sqlite::{CustomizeConnection, Pool, run_migrations};
use failure_logger::{
    FailureLogger, LoggerConfig, LoggerHandle, RetrievalFailureRecord, TimeRange,
};

mod schema {
    failure_logger::sqlite::diesel::table! { documents (id) { id -> Integer, text -> Text, } }
}
use schema::documents;

const DOCUMENTS: &str = "PRAGMA journal_mode = WAL;
    CREATE TABLE IF NOT EXISTS documents (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
    INSERT OR IGNORE INTO documents VALUES (1, 'the disk is full'), (2, 'the key is under the mat')";

type Response = actix_web::Result<Json<Vec<String>>>;

#[derive(serde::Deserialize)]
struct Search {
    text: String,
}

/// Returns the documents that contain a text. Records a search that finds none.
#[get("/search")]
async fn search(query: Query<Search>, pool: Data<Pool>, logger: Data<LoggerHandle>) -> Response {
    let pattern = format!("%{}%", query.text);
    let find = move || -> Result<Vec<String>, Box<dyn Error + Send + Sync>> {
        let found = documents::table
            .filter(documents::text.like(pattern))
            .select(documents::text);
        Ok(found.load(&mut pool.get()?)?)
    };
    let found = web::block(find).await?.map_err(ErrorInternalServerError)?;
    if found.is_empty() {
        logger.log(RetrievalFailureRecord::new(NoHit, "like", &query.text));
    }
    Ok(Json(found))
}

/// Returns the queries that failed most often today.
#[get("/failing")]
async fn failing(logger: Data<LoggerHandle>) -> Response {
    let day = TimeRange::last(Duration::from_secs(24 * 60 * 60));
    let top = logger
        .reader()
        .top_queries(day, QueryFilter::default(), 10)
        .await
        .map_err(ErrorServiceUnavailable)?;
    Ok(Json(
        top.groups
            .into_iter()
            .map(|group| format!("{} x {}", group.count, group.example))
            .collect(),
    ))
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let is_trial = std::env::args().any(|arg| arg == "--try");
    let folder = tempfile::tempdir()?;
    let path = if is_trial {
        folder.path().join("application.db")
    } else {
        "application.db".into()
    };
    let manager = ConnectionManager::new(path.display().to_string());
    let pool = Pool::builder()
        .max_size(4)
        .connection_customizer(Box::new(CustomizeConnection))
        .build(manager)?;
    let mut conn = pool.get()?;
    conn.batch_execute(DOCUMENTS)?;
    run_migrations(&mut conn)?;
    drop(conn);
    let config = LoggerConfig::default().migrate(false);
    let logger = FailureLogger::with_pool(config, pool.clone())?.start_on_thread()?;

    let data = (Data::new(pool), Data::new(logger.clone()));
    let app = move || {
        App::new()
            .app_data(data.0.clone())
            .app_data(data.1.clone())
            .service(search)
            .service(failing)
    };
    let server = HttpServer::new(app)
        .workers(2)
        .bind(("127.0.0.1", if is_trial { 0 } else { 8080 }))?;
    let url = format!("http://{}", server.addrs().first().ok_or("no address")?);
    println!("{url}/search?text=disk and {url}/failing");
    let server = server.run();
    let stop = server.handle();
    let server = rt::spawn(server);
    let outcome = if is_trial {
        send_requests(&url, &logger).await
    } else {
        Ok(())
    };
    if is_trial {
        stop.stop(true).await;
    }
    server.await??;
    println!("{}", logger.shutdown().await?.stats);
    outcome
}

async fn send_requests(url: &str, logger: &LoggerHandle) -> Result<(), Box<dyn Error>> {
    for (path, expected) in [
        ("search?text=disk", "[\"the disk is full\"]"),
        ("search?text=moon", "[]"),
        ("failing", "[\"1 x moon\"]"),
    ] {
        logger.flush().await?;
        let body = awc::Client::new()
            .get(format!("{url}/{path}"))
            .send()
            .await?
            .body()
            .await?;
        println!("{path}: {}", String::from_utf8_lossy(&body));
        if body != expected {
            return Err(format!("expected {expected}").into());
        }
    }
    Ok(())
}
