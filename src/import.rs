//! Takes over what the reference implementation has logged.
//!
//! Rows of the reference have no id that is the same at every import. The import makes one of their
//! place and content, so that a second import stores nothing twice. It reads page by page and waits
//! while the buffer is full, so that a large table takes little memory and drops no record.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{LoggerError, ReadError};
use crate::handle::LoggerHandle;
use crate::model::entry::{Origin, Unmeasured};
use crate::model::outcome::RetrievalFailureType;
use crate::model::record::RetrievalFailureRecord;
use crate::model::stats::{DropReason, LogOutcome};
use crate::store::reference::{Reference, ReferenceRow};

/// Namespace of the ids of imported rows. Must never change: an import with another one would store
/// every row once more.
const NAMESPACE: Uuid = Uuid::from_u128(0x5d4a_4bb1_2f0e_4c57_9c3e_7d2a_61f8_0b93);

/// Result of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImportReport {
    /// Rows that were read.
    pub read: u64,
    /// Rows that are stored now, those included that were stored before.
    pub stored: u64,
    /// Rows that cannot be stored: of an unknown type, without a strategy, or without a moment.
    pub skipped: u64,
    /// Rows that are older than the retention in force, and would be purged at once: dropped, and
    /// counted so.
    pub too_old: u64,
}

/// Reason why an import ended early. The imported rows stay; the next import resumes after them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// Name another file: this one has no such table.
    #[error("{}: has no table of the reference's shape ({cause})", path.display())]
    NotAReference {
        /// The file, or the URL without its password.
        path: PathBuf,
        /// The missing part.
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
    /// ids and no `event_id`. With the feature `postgres`, `path` may also be the `postgres://` URL
    /// of its database, whose table has timestamps with a time zone. May be repeated: a row gets the same `event_id` each time.
    ///
    /// Rows keep their moments. Those older than the retention in force are left where they are.
    ///
    /// ```no_run
    /// # async fn run(logger: failure_logger::LoggerHandle) -> Result<(), failure_logger::import::ImportError> {
    /// let report = logger.import_reference("reference.db").await?;
    /// println!("stored {} of {} rows", report.stored, report.read);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ImportError`].
    pub async fn import_reference(
        &self,
        path: impl AsRef<Path>,
    ) -> Result<ImportReport, ImportError> {
        let reference = Reference::open(path.as_ref())?;
        let mut report = ImportReport::default();
        let mut last = i64::MIN;
        loop {
            let page = reference.page(last).await?;
            let page = page.map_err(|cause| ImportError::NotAReference {
                path: reference.name.clone(),
                cause,
            })?;
            let Some(end) = page.last() else { break };
            last = end.id;
            for row in page {
                report.read += 1;
                match row.record() {
                    Some((origin, at, record)) => {
                        match self.log_with_retry(record, at, origin).await? {
                            LogOutcome::Queued => report.stored += 1,
                            LogOutcome::Dropped(_) => report.too_old += 1,
                        }
                    }
                    None => report.skipped += 1,
                }
            }
        }
        self.flush().await?;
        Ok(report)
    }

    /// Logs a record, unless it is too old. If the buffer is full, it flushes, which waits until
    /// there is room or returns the failure of the store.
    async fn log_with_retry(
        &self,
        record: RetrievalFailureRecord,
        at: SystemTime,
        origin: Origin,
    ) -> Result<LogOutcome, LoggerError> {
        loop {
            match self.offer(record.clone(), Some(at), origin) {
                Ok(()) => return Ok(LogOutcome::Queued),
                Err(reason @ DropReason::TooOld) => return Ok(LogOutcome::Dropped(reason)),
                Err(DropReason::BufferFull | DropReason::Unavailable) => {
                    self.flush().await?;
                }
                Err(_) => return Err(LoggerError::Closed),
            }
        }
    }
}

impl ReferenceRow {
    /// Returns the record of the row, with its origin and moment. `None`: it cannot be stored.
    fn record(self) -> Option<(Origin, SystemTime, RetrievalFailureRecord)> {
        let created_at = self.created_at.and_then(|ms| u64::try_from(ms).ok())?;
        let text = |bytes: &Option<Vec<u8>>| {
            bytes
                .as_ref()
                .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        let conversation = text(&self.conversation_id);
        let (failure_type, strategy) = (text(&self.failure_type)?, text(&self.retrieval_strategy)?);
        let query = text(&self.query_text).unwrap_or_default();
        // The row's place and content: a second row of the same content is another failure.
        let content = format!(
            "{}\0{conversation:?}\0{failure_type}\0{strategy}\0{query}\0{created_at}",
            self.id
        );
        let failure_type = RetrievalFailureType::parse(&failure_type)?;
        let hash = Uuid::new_v5(&NAMESPACE, content.as_bytes()).into_bytes();
        // A UUIDv7, so that the index grows at its edge for old rows too.
        let random = hash.last_chunk::<10>()?;
        // Ten bytes of the hash stand in for the random bits of a UUIDv7, so that the id is the
        // same each time.
        let event_id = uuid::Builder::from_unix_timestamp_millis(created_at, random).into_uuid();
        let unsigned = |number: Option<i64>| {
            number
                .and_then(|number| u64::try_from(number).ok())
                .unwrap_or(0)
        };
        let size = |number: Option<i64>| usize::try_from(unsigned(number)).unwrap_or(usize::MAX);
        #[expect(clippy::cast_possible_truncation, reason = "scores are kept as f32")]
        let score = |score: Option<f64>| score.map(|score| score as f32);
        let record = RetrievalFailureRecord {
            conversation_id: conversation.map(Into::into),
            turn_index: self.turn_index.unwrap_or(0),
            query_len: self
                .query_len
                .map_or(query.len(), |length| size(Some(length))),
            top_score: score(self.top_score),
            confidence_threshold: score(self.confidence_threshold),
            result_count: size(self.result_count),
            latency_ms: unsigned(self.latency_ms),
            edge_types: text(&self.edge_types).map(Into::into),
            error_context: text(&self.error_context).map(Into::into),
            ..RetrievalFailureRecord::new(failure_type, strategy, &query)
        };
        let unmeasured = Unmeasured {
            turn_index: self.turn_index.is_none(),
            result_count: self.result_count.is_none(),
            latency_ms: self.latency_ms.is_none(),
        };
        let origin = Origin {
            event_id: Some(event_id),
            unmeasured,
            ..Origin::LOGGED
        };
        Some((
            origin,
            UNIX_EPOCH + Duration::from_millis(created_at),
            record,
        ))
    }
}
