//! Mounts the HTTP routes and the dashboard in an actix-web application, by the feature `http`.
//! `cargo run --example routes` serves until Ctrl-C. With `-- --try`, it sends itself a request and
//! ends.
use std::error::Error;

use actix_web::{App, HttpServer, rt, web};
use failure_logger::http::{self, HttpOptions};
use failure_logger::{FailureLogger, LoggerConfig};

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let is_trial = std::env::args().any(|arg| arg == "--try");
    let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;

    // `configure` is called once, because all workers must share its counters and rate limits.
    let routes = http::configure(logger.clone(), HttpOptions::default());
    let server = HttpServer::new(move || {
        // The scope leaves the root path to the application.
        App::new().service(web::scope("/failures").configure(routes.clone()))
    })
    .bind(("127.0.0.1", if is_trial { 0 } else { 8080 }))?;
    let url = format!("http://{}/failures", server.addrs()[0]);
    println!("dashboard: {url}/");

    let server = server.run();
    let stop = server.handle();
    let server = rt::spawn(server);
    if is_trial {
        let request = awc::Client::new().get(format!("{url}/readyz"));
        println!("readyz: {}", request.send().await?.status());
        stop.stop(true).await;
    }
    server.await??;
    // The logger is shut down after the server, so that it commits the records of open requests.
    println!("{}", logger.shutdown().await?.stats);
    Ok(())
}
