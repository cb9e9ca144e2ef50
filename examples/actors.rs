//! Five actors: a retriever, a reranker, a watcher, an overseer that fails on purpose, and the
//! logger. Meanwhile the database is deleted, then locked. Each record is stored, or given up by
//! its sender: `cargo run --example actors`
use std::{cell::Cell, error::Error, fs, rc::Rc, time::Duration};

use actix::{WeakAddr, clock::sleep, prelude::*};
use failure_logger::sqlite::diesel::connection::SimpleConnection as _;
use failure_logger::sqlite::diesel::{Connection as _, SqliteConnection};
use failure_logger::{
    FailureLogger, LoggerConfig, PageRequest, RetrievalFailureRecord, RetrievalFailureType,
};

fn failure(strategy: &str) -> RetrievalFailureRecord {
    RetrievalFailureRecord::new(RetrievalFailureType::Error, strategy, "who knows whom?")
}

/// Keeps a record that is handed back, and sends it later, until it has none.
struct Retriever(Addr<FailureLogger>, Vec<RetrievalFailureRecord>);
impl Actor for Retriever {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Context<Self>) {
        while let Some(record) = self.1.pop() {
            let Err(SendError::Full(record)) = self.0.try_send(record) else {
                continue;
            };
            self.1.push(record);
            ctx.run_later(Duration::from_millis(10), Self::started);
            return;
        }
        ctx.stop();
    }
}

/// Counts a record that is handed back, and goes on. Knows of the logger only that it takes
/// records.
struct Reranker(Recipient<RetrievalFailureRecord>, Rc<Cell<usize>>);
impl Actor for Reranker {
    type Context = Context<Self>;
    fn started(&mut self, _: &mut Context<Self>) {
        self.1.set(
            (0..60)
                .filter(|_| self.0.try_send(failure("reranker")).is_err())
                .count(),
        );
    }
}

/// Fails after each of its records. actix restarts it with its fields and mailbox, for as long as
/// it has an address.
struct Overseer(Recipient<RetrievalFailureRecord>, usize);
impl Supervised for Overseer {}
impl Actor for Overseer {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Context<Self>) {
        if self.1 < 4 && self.0.try_send(failure("overseer")).is_ok() {
            self.1 += 1;
            ctx.stop();
        }
    }
}

/// Sees the end of the logger. Its weak address does not keep the logger running.
struct Watcher(WeakAddr<FailureLogger>);
impl Actor for Watcher {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Context<Self>) {
        if self.0.upgrade().is_none() {
            return ctx.stop();
        }
        ctx.run_later(Duration::from_millis(10), Self::started);
    }
}

async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        sleep(Duration::from_millis(10)).await;
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("failures.db").display().to_string();
    let mut actor = FailureLogger::new(
        LoggerConfig::new(&path)
            .buffer_capacity(32)
            .mailbox_capacity(8)
            .batch_size(8),
    )?;
    let (logger, addr, given_up) = (actor.handle(), actor.start(), Rc::<Cell<usize>>::default());
    // Each sender has one clone of the address, because each clone has a place in the mailbox.
    let (reports, reports_too, watched) = (
        addr.clone().recipient(),
        addr.clone().recipient(),
        addr.downgrade(),
    );
    let watcher = Watcher(watched).start();

    for suffix in ["", "-wal", "-shm"] {
        fs::remove_file(format!("{path}{suffix}"))?;
    }
    let _overseer = Supervisor::start(|_| Overseer(reports, 0));
    until(|| logger.stats().persisted == 4).await;
    println!(
        "database deleted, overseer failed 4 times: {}",
        logger.stats()
    );

    let mut lock = SqliteConnection::establish(&path)?;
    lock.batch_execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE")?;
    Reranker(reports_too, given_up.clone()).start();
    let retriever = Retriever(addr, vec![failure("retriever"); 60]).start();
    until(|| logger.stats().mailbox_full).await;
    println!(
        "database locked, reranker gave up {}, retriever keeps the rest: {}",
        given_up.get(),
        logger.stats()
    );
    lock.batch_execute("ROLLBACK")?;
    until(|| !retriever.connected()).await;
    let stats = logger.shutdown().await?.stats;
    until(|| !watcher.connected()).await;
    let stored = logger
        .reader()
        .list(Default::default(), PageRequest::newest(1000))
        .await?
        .failures
        .len();
    println!(
        "logger restarts {}: {stats}\n124 = {stored} stored + {} given up",
        stats.restarts,
        given_up.get()
    );
    let is_exact = stored as u64 == stats.persisted
        && stored + given_up.get() == 124
        && stats.dropped.total() == 0;
    (is_exact && given_up.get() > 0 && stats.restarts > 0)
        .then_some(())
        .ok_or("a record is not accounted for".into())
}
