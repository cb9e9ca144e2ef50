//! A service on a port of its own, on a thread of its own.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "no test uses all of it, and `expect` would fail where one does"
)]

use std::net::SocketAddr;

use actix_web::rt::System;
use actix_web::{App, HttpServer};
use failure_logger::LoggerHandle;
use failure_logger::http::{self, HttpOptions};

use crate::common::{self, TestDb};

pub struct Service {
    pub address: SocketAddr,
    pub logger: LoggerHandle,
    pub db: TestDb,
    server: actix_web::dev::ServerHandle,
}

impl Service {
    pub fn new(options: HttpOptions) -> Self {
        let db = TestDb::new();
        let logger = common::spawn(db.config());
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
                send.send((address, server.handle())).expect("the test waits");
                server.await.expect("a server");
            });
        });
        let (address, server) = started.recv().expect("a server");
        Self { address, logger, db, server }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Ends it, so that nobody answers any more.
    pub async fn stop(&self) {
        self.server.stop(false).await;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.server.stop(false));
    }
}
