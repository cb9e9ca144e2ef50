//! One connection to the server, and its transactions.
//!
//! The limits of a transaction come with its `BEGIN`, by `SET LOCAL`: a pooler in transaction mode
//! gives each transaction another session, and one message carries all of them.

use std::time::Duration;

use diesel::connection::{
    AnsiTransactionManager, CacheSize, Connection as _, TransactionManager as _,
};
use diesel::prelude::*;

use crate::database_url::DatabaseUrl;
use crate::error::StoreError;
use crate::store::postgres::errors::classify;

/// Longest time of one statement of a writer.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a lock: longer than any chunk of work of another node.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause between two statements of a transaction, after which the server ends it. It frees
/// the locks of a node whose machine or network died without closing the connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time of a connect in seconds, unless the URL has another one.
const CONNECT_TIMEOUT: &str = "connect_timeout=10";
/// The name under which the server lists the connections, unless the URL or `PGAPPNAME` has another
/// one.
const APPLICATION_NAME: &str = "fallback_application_name=failure-logger";
/// A parameter of the logger, which libpq does not know. `false` is for a pooler that gives each
/// transaction another session and does not keep track of prepared statements.
const KEEP_STATEMENTS: &str = "prepared_statements=";

/// A connection that opens when it is needed, and opens once more after it was lost.
pub(crate) struct Connection {
    url: DatabaseUrl,
    conn: Option<PgConnection>,
}

/// What a transaction is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Write,
    /// One consistent view. The server ends a statement after this time.
    Read(Duration),
    /// Holds a lock beside the statements of another connection, so that it is idle meanwhile.
    Hold,
}

impl Connection {
    /// Returns a connection that is not open yet.
    pub(crate) fn new(url: DatabaseUrl) -> Self {
        Self { url, conn: None }
    }

    /// Runs `work` in a transaction. Rolls it back after an error, and then closes the connection
    /// unless only rows are at fault: what is left of a failed connection or session is unknown.
    pub(crate) fn transact<T, E>(
        &mut self,
        purpose: Purpose,
        work: impl FnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<StoreError> + KeepsConnection,
    {
        // Out of its place meanwhile, so that a panic in `work` drops it with its transaction.
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => connect(&self.url)?,
        };
        let failed = |error: diesel::result::Error| E::from(classify(&error));
        AnsiTransactionManager::begin_transaction_sql(&mut conn, &begin(purpose))
            .map_err(failed)?;
        let result = match work(&mut conn) {
            Ok(done) => AnsiTransactionManager::commit_transaction(&mut conn)
                .map(|()| done)
                .map_err(failed),
            Err(error) => {
                match AnsiTransactionManager::rollback_transaction(&mut conn) {
                    Ok(()) if error.keeps_connection() => self.conn = Some(conn),
                    Ok(()) | Err(_) => {}
                }
                return Err(error);
            }
        };
        if result.is_ok() {
            self.conn = Some(conn);
        }
        result
    }
}

/// An error after which a connection may be used for the next transaction.
pub(crate) trait KeepsConnection {
    fn keeps_connection(&self) -> bool;
}

impl KeepsConnection for StoreError {
    fn keeps_connection(&self) -> bool {
        match self {
            Self::Split(_) | Self::GiveUp(_) => true,
            Self::Retry(_) | Self::Reopen(_) | Self::Corrupt(_) => false,
        }
    }
}

fn begin(purpose: Purpose) -> String {
    let (mode, statement, lock, idle) = match purpose {
        Purpose::Write => (
            "READ COMMITTED",
            STATEMENT_TIMEOUT,
            LOCK_TIMEOUT,
            IDLE_TIMEOUT,
        ),
        // A report computes between two statements.
        Purpose::Read(timeout) => (
            "REPEATABLE READ READ ONLY",
            timeout,
            LOCK_TIMEOUT,
            timeout.max(IDLE_TIMEOUT),
        ),
        // Waits for the migrations of another node.
        Purpose::Hold => (
            "READ COMMITTED",
            STATEMENT_TIMEOUT,
            STATEMENT_TIMEOUT,
            Duration::ZERO,
        ),
    };
    format!(
        "BEGIN ISOLATION LEVEL {mode}; SET LOCAL statement_timeout = {}; \
         SET LOCAL lock_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}",
        // 0 would be no timeout.
        milliseconds(statement).max(1),
        milliseconds(lock),
        milliseconds(idle),
    )
}

/// Returns whole milliseconds, as the server's settings accept them: up to 2^31.
fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// Connects. The error has no password.
fn connect(url: &DatabaseUrl) -> Result<PgConnection, StoreError> {
    let Parameters {
        url: of_libpq,
        keeps_statements,
    } = Parameters::of(url.reveal());
    let mut conn = PgConnection::establish(&of_libpq).map_err(|error| {
        let cause = url.scrub(error.to_string().trim_end());
        StoreError::Retry(format!("cannot connect to {url}: {cause}"))
    })?;
    if !keeps_statements {
        conn.set_prepared_statement_cache_size(CacheSize::Disabled);
    }
    Ok(conn)
}

/// A URL with the parameter of the logger taken out.
struct Parameters {
    /// As libpq accepts it, with a name and a timeout where it has none.
    url: String,
    /// `false`: no statement stays prepared on the connection.
    keeps_statements: bool,
}

impl Parameters {
    fn of(url: &str) -> Self {
        let (address, parameters) = url.split_once('?').unwrap_or((url, ""));
        let (own, mut parameters): (Vec<&str>, Vec<&str>) = parameters
            .split('&')
            .filter(|parameter| !parameter.is_empty())
            .partition(|parameter| parameter.starts_with(KEEP_STATEMENTS));
        let has = |parameters: &[&str], name| {
            parameters
                .iter()
                .any(|parameter| parameter.starts_with(name))
        };
        for default in [APPLICATION_NAME, CONNECT_TIMEOUT] {
            let (name, _) = default.split_once('=').unwrap_or((default, ""));
            if !has(&parameters, name) {
                parameters.push(default);
            }
        }
        Self {
            url: format!("{address}?{}", parameters.join("&")),
            keeps_statements: !own.iter().any(|parameter| parameter.ends_with("=false")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_gets_a_name_and_a_timeout_where_it_has_none() {
        for (url, expected, keeps_statements) in [
            (
                "postgres://h/d",
                "postgres://h/d?fallback_application_name=failure-logger&connect_timeout=10",
                true,
            ),
            (
                "postgres://h/d?connect_timeout=1&prepared_statements=false&sslmode=require",
                "postgres://h/d?connect_timeout=1&sslmode=require\
                 &fallback_application_name=failure-logger",
                false,
            ),
        ] {
            let parameters = Parameters::of(url);
            assert_eq!(parameters.url, expected);
            assert_eq!(parameters.keeps_statements, keeps_statements);
        }
    }

    #[test]
    fn error_of_a_connect_names_the_server_without_its_password() {
        for url in [
            "postgres://u:secret@127.0.0.1:1/d",
            "postgres://u:secret%zz@127.0.0.1:1/d",
            "postgres://u:secret@127.0.0.1:port/d?password=secret",
        ] {
            let url = DatabaseUrl::from(url.to_owned());
            let StoreError::Retry(error) = connect(&url).err().unwrap() else {
                panic!("not a remedy that retries")
            };
            assert!(error.contains("u:***@127.0.0.1"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
