//! A service on a port of its own, for tests over HTTP.

use std::net::SocketAddr;

use actix_web::rt::System;
use actix_web::{App, HttpServer, web};
use awc::http::{Method, StatusCode};
use awc::{Client, ClientRequest};
use failure_logger::LoggerHandle;
use failure_logger::http::{self, HttpOptions};
use serde_json::{Value, json};

use super::TestDb;

/// A service on a port and a thread of its own.
pub struct Service {
    pub address: SocketAddr,
    pub logger: LoggerHandle,
    server: actix_web::dev::ServerHandle,
    pub db: TestDb,
}

impl Service {
    pub fn new(options: HttpOptions) -> Self {
        let db = TestDb::new();
        let logger = super::spawn(db.config());
        Self::of(db, logger, options)
    }

    pub fn of(db: TestDb, logger: LoggerHandle, options: HttpOptions) -> Self {
        let (send, started) = std::sync::mpsc::channel();
        let api = http::configure(logger.clone(), options);
        std::thread::spawn(move || {
            System::new().block_on(async move {
                let server = HttpServer::new(move || App::new().configure(api.clone()))
                    .workers(1)
                    .bind(("127.0.0.1", 0))
                    .expect("a port");
                let address = server.addrs()[0];
                let server = server.run();
                send.send((address, server.handle()))
                    .expect("the test waits");
                server.await.expect("a server");
            });
        });
        let (address, server) = started.recv().expect("a server");
        Self {
            address,
            logger,
            server,
            db,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Stops the service, so that further requests fail.
    pub async fn stop(&self) {
        self.server.stop(false).await;
    }

    pub fn request(&self, method: Method, path: &str) -> ClientRequest {
        Client::builder()
            .disable_timeout()
            .finish()
            .request(method, self.url(path))
    }

    pub fn get(&self, path: &str) -> ClientRequest {
        self.request(Method::GET, path)
    }

    pub async fn post(
        &self,
        path: &str,
        content_type: &str,
        body: impl Into<String>,
    ) -> (StatusCode, Value) {
        let request = self.request(Method::POST, path).content_type(content_type);
        response(request.send_body(body.into()).await).await
    }

    pub async fn read(&self, path: &str) -> (StatusCode, Value) {
        response(self.get(path).send().await).await
    }

    pub async fn flush(&self) {
        self.logger.flush().await.expect("flush");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.server.stop(false));
    }
}

pub async fn response<S>(
    sent: Result<awc::ClientResponse<S>, awc::error::SendRequestError>,
) -> (StatusCode, Value)
where
    S: futures_util::Stream<Item = Result<web::Bytes, actix_web::error::PayloadError>>,
{
    let mut response = sent.expect("a response");
    let body = response.body().limit(64 << 20).await.expect("a body");
    let value =
        serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into());
    (response.status(), value)
}

pub fn failure(query: &str) -> Value {
    json!({"failure_type": "no_hit", "retrieval_strategy": "semantic", "query_text": query})
}

pub const JSON: &str = "application/json";
pub const LINES: &str = "application/x-ndjson";
