//! One connection to the server, and its transactions.
//!
//! The limits of a transaction come with its `BEGIN`, by `SET LOCAL`: a pooler in transaction mode
//! gives each transaction another session, and one message carries all of them.

use std::time::Duration;

use diesel::connection::{
    AnsiTransactionManager, CacheSize, Connection as _, TransactionManager as _,
};
use diesel::prelude::*;

use crate::error::StoreError;
use crate::server::ServerConfig;
use crate::store::postgres::errors::classify;

/// Longest wait for the migrations of another node.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a lock: longer than any chunk of work of another node.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause between two statements of a transaction, after which the server ends it. It frees
/// the locks of a node whose machine or network died without closing the connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// The name under which the server lists the connections, unless a setting, the URL or `PGAPPNAME`
/// has another one.
const APPLICATION_NAME: &str = "fallback_application_name=failure-logger";
/// A parameter of the logger, which libpq does not know. `false` is for a pooler that gives each
/// transaction another session and does not keep track of prepared statements.
const KEEP_STATEMENTS: &str = "prepared_statements=";

/// A connection that opens when it is needed, and opens once more after it was lost.
pub(crate) struct Connection {
    server: ServerConfig,
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
    pub(crate) fn new(server: ServerConfig) -> Self {
        Self { server, conn: None }
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
            None => connect(&self.server)?,
        };
        let failed = |error: diesel::result::Error| E::from(classify(&error));
        AnsiTransactionManager::begin_transaction_sql(&mut conn, &begin(purpose, &self.server))
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

fn begin(purpose: Purpose, server: &ServerConfig) -> String {
    let (mode, statement, lock, idle) = match purpose {
        Purpose::Write => (
            "READ COMMITTED",
            server.statement_timeout,
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
            MIGRATION_TIMEOUT,
            MIGRATION_TIMEOUT,
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
fn connect(server: &ServerConfig) -> Result<PgConnection, StoreError> {
    let Parameters {
        url: of_libpq,
        keeps_statements,
    } = Parameters::of(server);
    let mut conn = PgConnection::establish(&of_libpq).map_err(|error| {
        let url = &server.url;
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
    /// Returns the URL of a server with its settings. A parameter of the URL takes precedence.
    fn of(server: &ServerConfig) -> Self {
        let url = server.url.reveal();
        let (address, parameters) = url.split_once('?').unwrap_or((url, ""));
        let (own, mut parameters): (Vec<&str>, Vec<&str>) = parameters
            .split('&')
            .filter(|parameter| !parameter.is_empty())
            .partition(|parameter| parameter.starts_with(KEEP_STATEMENTS));
        // Parts of a second count as a whole one.
        let seconds = server.connect_timeout.as_millis().div_ceil(1000);
        let name = match &server.application_name {
            Some(name) => format!("application_name={}", percent_encoded(name)),
            None => APPLICATION_NAME.to_owned(),
        };
        let timeout = format!("connect_timeout={seconds}");
        for setting in [&name, &timeout] {
            let (name, _) = setting.split_once('=').unwrap_or((setting, ""));
            let has_name = |parameter: &&str| {
                parameter
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('='))
            };
            if !parameters.iter().any(has_name) {
                parameters.push(setting);
            }
        }
        Self {
            url: format!("{address}?{}", parameters.join("&")),
            keeps_statements: server.prepared_statements
                && !own.iter().any(|parameter| parameter.ends_with("=false")),
        }
    }
}

/// Returns a text as the value of a parameter.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database_url::DatabaseUrl;

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
            let parameters = Parameters::of(&url.to_owned().into());
            assert_eq!(parameters.url, expected);
            assert_eq!(parameters.keeps_statements, keeps_statements);
        }
    }

    #[test]
    fn settings_hold_unless_the_url_has_a_parameter() {
        let settings = |url: &str| ServerConfig {
            connect_timeout: Duration::from_millis(2001),
            application_name: Some("search & more".into()),
            prepared_statements: false,
            ..url.to_owned().into()
        };
        for (url, expected) in [
            (
                "postgres://h/d",
                "postgres://h/d?application_name=search%20%26%20more&connect_timeout=3",
            ),
            (
                "postgres://h/d?connect_timeout=1&application_name=a",
                "postgres://h/d?connect_timeout=1&application_name=a",
            ),
        ] {
            let parameters = Parameters::of(&settings(url));
            assert_eq!(parameters.url, expected);
            assert!(!parameters.keeps_statements);
        }
        let begin = begin(
            Purpose::Write,
            &ServerConfig {
                statement_timeout: Duration::from_millis(7),
                ..settings("postgres://h")
            },
        );
        assert!(
            begin.contains("SET LOCAL statement_timeout = 7;"),
            "{begin}"
        );
    }

    #[test]
    #[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
    fn server_lists_the_name_and_ends_statements_at_their_timeout() {
        let database = crate::store::postgres::server::TestDatabase::new();
        let mut conn = Connection::new(ServerConfig {
            application_name: Some("search & more".into()),
            statement_timeout: Duration::from_millis(50),
            ..database.url.clone().into()
        });
        #[derive(QueryableByName)]
        struct Name {
            #[diesel(sql_type = diesel::sql_types::Text)]
            name: String,
        }
        let mut run = |sql: &str| {
            conn.transact(Purpose::Write, |conn| {
                diesel::sql_query(sql)
                    .get_result::<Name>(conn)
                    .map_err(|error| classify(&error))
            })
        };
        let name = run("SELECT current_setting('application_name') AS name").unwrap();
        assert_eq!(name.name, "search & more");
        let error = run("SELECT pg_sleep(60)::text AS name").err().unwrap();
        assert!(
            crate::store::postgres::errors::is_timeout(&error),
            "{error}"
        );
    }

    #[test]
    fn error_of_a_connect_names_the_server_without_its_password() {
        for url in [
            "postgres://u:secret@127.0.0.1:1/d",
            "postgres://u:secret%zz@127.0.0.1:1/d",
            "postgres://u:secret@127.0.0.1:port/d?password=secret",
        ] {
            let url = DatabaseUrl::from(url.to_owned());
            let StoreError::Retry(error) = connect(&url.into()).err().unwrap() else {
                panic!("not a remedy that retries")
            };
            assert!(error.contains("u:***@127.0.0.1"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
