//! The table of the reference implementation in a server. Columns are cast in SQL, because its
//! versions declare them by different types.

use std::sync::{Arc, Mutex, PoisonError};

use diesel::prelude::*;
use diesel::sql_types::BigInt;

use crate::database_url::DatabaseUrl;
use crate::error::{ReadError, StoreError};
use crate::server::ServerConfig;
use crate::store::postgres::connection::{Connection, Purpose};
use crate::store::postgres::errors::classify;
use crate::store::postgres::reader::PostgresReads;
use crate::store::reads::{Lane, Reads};
use crate::store::reference::{PAGE, PAGE_TIMEOUT, ReferenceRow};

/// A database that the reference implementation wrote.
pub(crate) struct ReferenceServer {
    conn: Arc<Mutex<Connection>>,
    /// Its thread runs the pages.
    reads: Reads,
}

impl ReferenceServer {
    /// Returns the database at `url`. The first page connects.
    pub(crate) fn open(url: DatabaseUrl) -> Self {
        let server = ServerConfig::from(url);
        Self {
            conn: Arc::new(Mutex::new(Connection::new(server.clone()))),
            reads: Reads::new(Some(Arc::new(PostgresReads::new(server, 1)))),
        }
    }

    /// Returns some rows after an id. `Err` within `Ok`: there is no such table, with the reason.
    pub(crate) async fn page(
        &self,
        after: i64,
    ) -> Result<Result<Vec<ReferenceRow>, String>, ReadError> {
        let conn = Arc::clone(&self.conn);
        let read = move |_| {
            let mut conn = conn.lock().unwrap_or_else(PoisonError::into_inner);
            let page = conn.transact(Purpose::Read(PAGE_TIMEOUT), |conn| {
                diesel::sql_query(ROWS)
                    .bind::<BigInt, _>(after)
                    .bind::<BigInt, _>(PAGE)
                    .load(conn)
                    .map_err(|error| classify(&error))
            });
            match page {
                Ok(page) => Ok(Ok(page)),
                // A table, a column or a type is another one.
                Err(StoreError::Reopen(cause) | StoreError::Split(cause)) => Ok(Err(cause)),
                Err(error) => Err(ReadError::Store(error)),
            }
        };
        self.reads.spawn(Lane::Heavy, PAGE_TIMEOUT, read).await
    }
}

const ROWS: &str = "SELECT id::bigint AS id, convert_to(conversation_id::text, 'UTF8') AS conversation_id, \
     turn_index::bigint AS turn_index, convert_to(failure_type::text, 'UTF8') AS failure_type, \
     convert_to(retrieval_strategy::text, 'UTF8') AS retrieval_strategy, \
     convert_to(query_text::text, 'UTF8') AS query_text, query_len::bigint AS query_len, \
     top_score::float8 AS top_score, confidence_threshold::float8 AS confidence_threshold, \
     result_count::bigint AS result_count, latency_ms::bigint AS latency_ms, \
     convert_to(edge_types::text, 'UTF8') AS edge_types, convert_to(error_context::text, 'UTF8') AS error_context, \
     round(extract(epoch FROM created_at) * 1000)::bigint AS created_at \
     FROM memory_retrieval_failures WHERE id > $1 ORDER BY id LIMIT $2";

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use diesel::connection::SimpleConnection as _;
    use futures_executor::block_on;

    use crate::config::LoggerConfig;
    use crate::error::ReadError;
    use crate::import::ImportError;
    use crate::model::failure::FailureFilter;
    use crate::model::time::TimeRange;
    use crate::pipeline::actor::FailureLogger;
    use crate::report::PageRequest;
    use crate::store::postgres::server::TestDatabase;

    const TABLE: &str = "CREATE TABLE memory_retrieval_failures ( \
         id BIGSERIAL PRIMARY KEY, conversation_id BIGINT, turn_index INT NOT NULL, \
         failure_type TEXT NOT NULL, retrieval_strategy TEXT NOT NULL, query_text TEXT NOT NULL, \
         query_len INT NOT NULL, top_score REAL, confidence_threshold DOUBLE PRECISION, \
         result_count INT NOT NULL, latency_ms BIGINT NOT NULL, edge_types TEXT, \
         error_context TEXT, created_at TIMESTAMPTZ NOT NULL DEFAULT now()); \
         INSERT INTO memory_retrieval_failures (conversation_id, turn_index, failure_type, \
         retrieval_strategy, query_text, query_len, top_score, result_count, latency_ms, created_at) \
         SELECT 42, 7, CASE WHEN n = 3 THEN 'unheard_of' ELSE 'no_hit' END, 'semantic', \
         'where is the key?', 17, 0.25, 3, 12, '2024-11-01 13:30:00.25+01' \
         FROM generate_series(1, 2500) AS n";

    #[test]
    #[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
    fn table_of_the_reference_is_imported_once() {
        let (database, ours) = (TestDatabase::new(), TestDatabase::new());
        database.connect().batch_execute(TABLE).unwrap();
        // Into a file and into a server.
        for url in [":memory:", &ours.url] {
            let config = LoggerConfig::new(url)
                .retention_days(0)
                .attempts_retention_days(0);
            let logger = FailureLogger::spawn(config).unwrap();
            for _ in 0..2 {
                let report = block_on(logger.import_reference(&database.url)).unwrap();
                assert_eq!(
                    (report.read, report.stored, report.skipped),
                    (2500, 2499, 1)
                );
            }
            let reader = logger.reader();
            let summary = block_on(reader.summary(TimeRange::all())).unwrap();
            assert_eq!(summary.total.failures, 2499);
            let page = block_on(reader.list(FailureFilter::default(), PageRequest::newest(1)));
            let failure = page.unwrap().failures.remove(0);
            let at = UNIX_EPOCH + Duration::from_millis(1_730_464_200_250);
            assert_eq!(failure.created_at, at);
            assert_eq!(failure.conversation_id.as_deref(), Some("42"));
            assert_eq!(
                (failure.top_score, failure.turn_index),
                (Some(0.25), Some(7))
            );
            let stats = block_on(logger.shutdown()).unwrap().stats;
            assert_eq!((stats.persisted, stats.duplicates), (4998, 2499));
        }
    }

    #[test]
    #[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
    fn server_without_the_table_of_the_reference_is_refused() {
        let logger = FailureLogger::spawn(LoggerConfig::new(":memory:")).unwrap();
        let (empty, ours) = (TestDatabase::new(), TestDatabase::new());
        let other = FailureLogger::spawn(LoggerConfig::new(&ours.url)).unwrap();
        block_on(other.shutdown()).unwrap();
        for url in [&empty.url, &ours.url] {
            let refusal = block_on(logger.import_reference(url)).unwrap_err();
            assert!(
                matches!(refusal, ImportError::NotAReference { .. }),
                "{refusal}"
            );
        }
    }

    #[test]
    fn import_names_a_server_without_its_password() {
        let logger = FailureLogger::spawn(LoggerConfig::new(":memory:")).unwrap();
        let url = "postgres://u:secret@127.0.0.1:1/d";
        let error = block_on(logger.import_reference(url)).unwrap_err();
        assert!(
            matches!(error, ImportError::Read(ReadError::Store(_))),
            "{error}"
        );
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(error.to_string().contains("u:***@127.0.0.1"), "{error}");
    }
}
