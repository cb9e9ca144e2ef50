//! Takes over what the reference implementation has logged.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable, Text};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{LoggerError, ReadError, StoreError};
use crate::handle::LoggerHandle;
use crate::record::{RetrievalFailureRecord, RetrievalFailureType};
use crate::stats::{DropReason, LogOutcome};
use crate::store::reader::{ReadPool, Source};

/// Rows that are read at a time.
const PAGE: i64 = 1000;
/// How long reading them may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Makes ids of rows that have none, the same at every import. A random number, once chosen.
const NAMESPACE: Uuid = Uuid::from_u128(0x5d4a_4bb1_2f0e_4c57_9c3e_7d2a_61f8_0b93);

/// What an import did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImportReport {
    /// Rows that were read.
    pub read: u64,
    /// Rows that are stored now, those included that were stored before.
    pub stored: u64,
    /// Rows that cannot be stored: of an unknown type, or without a moment.
    pub skipped: u64,
}

/// Why an import ended early. What was imported until then stays; a second import goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// Name another file: this one has no such table.
    #[error("{}: has no table of the reference's shape ({cause})", path.display())]
    NotAReference {
        /// The file.
        path: PathBuf,
        /// What is missing.
        cause: String,
    },
    /// Do what the [`ReadError`] says.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Do what the [`LoggerError`] says.
    #[error(transparent)]
    Logger(#[from] LoggerError),
}

impl LoggerHandle {
    /// Stores what the reference implementation has logged in the SQLite file at `path`, which is
    /// only read: a table `memory_retrieval_failures` with text timestamps, integer conversation
    /// ids and no `event_id`. May be repeated: a row gets the same `event_id` each time.
    ///
    /// Rows keep their moments, so that those older than `retention_days` are purged soon.
    ///
    /// # Errors
    ///
    /// See [`ImportError`].
    pub async fn import_reference(&self, path: impl AsRef<Path>) -> Result<ImportReport, ImportError> {
        let path = path.as_ref();
        let source = ReadPool::new(Some(Source::file(path)));
        let mut report = ImportReport::default();
        let mut last = i64::MIN;
        loop {
            let page = source.run(PAGE_TIMEOUT, move |conn, _| Ok(read(conn, last)?)).await;
            let page = page.map_err(|error| match error {
                ReadError::Store(StoreError::Reopen(cause)) => ImportError::NotAReference { path: path.into(), cause },
                error => error.into(),
            })?;
            let Some(end) = page.last() else { break };
            last = end.id;
            for row in page {
                report.read += 1;
                match row.record() {
                    Some((event_id, at, record)) => {
                        self.log_patiently(record, at, event_id).await?;
                        report.stored += 1;
                    }
                    None => report.skipped += 1,
                }
            }
        }
        self.flush().await?;
        Ok(report)
    }

    /// Logs a record; waits where the buffer is full.
    async fn log_patiently(
        &self,
        record: RetrievalFailureRecord,
        at: SystemTime,
        event_id: Uuid,
    ) -> Result<(), LoggerError> {
        loop {
            match self.log_once(record.clone(), at, event_id) {
                LogOutcome::Queued => return Ok(()),
                LogOutcome::Dropped(DropReason::BufferFull | DropReason::Unavailable) => {
                    self.flush().await?;
                }
                LogOutcome::Dropped(_) => return Err(LoggerError::Closed),
            }
        }
    }
}

const ROWS: &str = "SELECT id, CAST(conversation_id AS TEXT) AS conversation_id, turn_index, failure_type, \
     retrieval_strategy, query_text, query_len, top_score, confidence_threshold, result_count, latency_ms, \
     edge_types, error_context, CAST(round(unixepoch(created_at, 'subsec') * 1000) AS INTEGER) AS created_at \
     FROM memory_retrieval_failures WHERE id > ?1 ORDER BY id LIMIT ?2";

fn read(conn: &mut SqliteConnection, after: i64) -> QueryResult<Vec<ReferenceRow>> {
    diesel::sql_query(ROWS).bind::<BigInt, _>(after).bind::<BigInt, _>(PAGE).load(conn)
}

#[derive(QueryableByName)]
struct ReferenceRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Nullable<Text>)]
    conversation_id: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    turn_index: Option<i64>,
    #[diesel(sql_type = Text)]
    failure_type: String,
    #[diesel(sql_type = Text)]
    retrieval_strategy: String,
    #[diesel(sql_type = Text)]
    query_text: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    query_len: Option<i64>,
    #[diesel(sql_type = Nullable<Double>)]
    top_score: Option<f64>,
    #[diesel(sql_type = Nullable<Double>)]
    confidence_threshold: Option<f64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    result_count: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    latency_ms: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    edge_types: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    error_context: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    created_at: Option<i64>,
}

impl ReferenceRow {
    /// `None`: it cannot be stored.
    fn record(self) -> Option<(Uuid, SystemTime, RetrievalFailureRecord)> {
        let created_at = self.created_at.and_then(|ms| u64::try_from(ms).ok())?;
        let failure_type = RetrievalFailureType::parse(&self.failure_type)?;
        // The row's place and content: a second row of the same content is another failure.
        let content = format!(
            "{}\0{:?}\0{}\0{}\0{}\0{created_at}",
            self.id, self.conversation_id, self.failure_type, self.retrieval_strategy, self.query_text
        );
        let hash = Uuid::new_v5(&NAMESPACE, content.as_bytes()).into_bytes();
        // A UUIDv7, so that the index grows at its edge for old rows too.
        let random = hash.last_chunk::<10>()?;
        let event_id = uuid::Builder::from_unix_timestamp_millis(created_at, random).into_uuid();
        let unsigned = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
        let size = |number: Option<i64>| usize::try_from(unsigned(number)).unwrap_or(usize::MAX);
        #[expect(clippy::cast_possible_truncation, reason = "scores are kept as f32")]
        let score = |score: Option<f64>| score.map(|score| score as f32);
        let record = RetrievalFailureRecord {
            conversation_id: self.conversation_id.map(Into::into),
            turn_index: self.turn_index.unwrap_or(0),
            query_len: self.query_len.map_or(self.query_text.len(), |length| size(Some(length))),
            top_score: score(self.top_score),
            confidence_threshold: score(self.confidence_threshold),
            result_count: size(self.result_count),
            latency_ms: unsigned(self.latency_ms),
            edge_types: self.edge_types.map(Into::into),
            error_context: self.error_context.map(Into::into),
            ..RetrievalFailureRecord::new(failure_type, self.retrieval_strategy, &self.query_text)
        };
        Some((event_id, UNIX_EPOCH + Duration::from_millis(created_at), record))
    }
}
