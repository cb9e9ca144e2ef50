//! A log in a `Vec`, for tests of reports.

use std::ops::{ControlFlow, Range};

use uuid::Uuid;

use crate::error::ReadError;
use crate::model::failure::{Direction, Failure, FailureFilter, Place};
use crate::model::outcome::{OutcomeKind, RetrievalFailureType};
use crate::model::query_status::StatusChange;
use crate::model::source::{Labels, NO_SENDER, Sender, SenderId};
use crate::model::stats::DropCounts;
use crate::model::time::Timestamp;
#[cfg(feature = "program")]
use crate::retention::StoredRetention;
use crate::rollup::resolution::{Resolution, Span};
use crate::rollup::sums::ReadBucket;
use crate::rollup::{Bucket, StrategySettings};
use crate::store::snapshot::{FailedQuery, LogEdge, Snapshot, StoredFailure};

/// A log whose rows are in memory, in the order of their ids.
#[derive(Default)]
pub(crate) struct MemoryLog {
    pub(crate) failures: Vec<Failure>,
    /// Resolution, start, outcome and number of attempts of the strategy `s`.
    pub(crate) buckets: Vec<(Resolution, Timestamp, OutcomeKind, u64)>,
}

impl MemoryLog {
    /// Adds a failure of the moment `at`. `change` edits it first.
    pub(crate) fn fail(&mut self, at: Timestamp, change: impl FnOnce(&mut Failure)) {
        let mut failure = Failure {
            id: i64::try_from(self.failures.len()).unwrap() + 1,
            event_id: Uuid::from_u128(self.failures.len() as u128),
            conversation_id: None,
            turn_index: None,
            failure_type: RetrievalFailureType::NoHit,
            retrieval_strategy: "s".into(),
            query_text: "q".into(),
            query_len: 1,
            top_score: None,
            confidence_threshold: None,
            result_count: None,
            latency_ms: None,
            edge_types: None,
            error_context: None,
            created_at: at.into(),
            source: None,
            labels: Labels::default(),
        };
        change(&mut failure);
        self.failures.push(failure);
    }

    /// Returns the failures within `places`, in this direction.
    fn within(&self, direction: Direction, places: Range<Place>) -> Vec<&Failure> {
        let mut found: Vec<&Failure> = self
            .failures
            .iter()
            .filter(|row| places.contains(&place(row)))
            .collect();
        found.sort_by_key(|row| place(row));
        if direction == Direction::Backwards {
            found.reverse();
        }
        found
    }
}

fn place(failure: &Failure) -> Place {
    Place {
        created_at: failure.created_at.into(),
        id: failure.id,
    }
}

fn lets_through(filter: &FailureFilter, failure: &Failure) -> bool {
    let FailureFilter {
        range: _,
        failure_type,
        retrieval_strategy,
        conversation_id,
        text,
        query_text,
        similar_to,
        sources,
    } = filter;
    assert!(
        conversation_id.is_empty() && text.is_none() && similar_to.is_empty(),
        "no test needs it"
    );
    (failure_type.is_empty() || failure_type.contains(&failure.failure_type))
        && (retrieval_strategy.is_empty()
            || retrieval_strategy.contains(&failure.retrieval_strategy))
        && (query_text.is_empty() || query_text.contains(&failure.query_text))
        && sources.selects(sender(failure).as_ref())
}

fn sender(failure: &Failure) -> Option<Sender> {
    let source = failure.source.as_deref().map(Into::into);
    Sender::new(source, failure.labels.clone())
}

fn stored(failure: &Failure) -> StoredFailure {
    StoredFailure {
        place: place(failure),
        failure: Some(failure.clone()),
    }
}

impl Snapshot for MemoryLog {
    fn log(&mut self) -> Result<LogEdge, ReadError> {
        let newest_id = self.failures.last().map_or(0, |row| row.id);
        Ok(LogEdge {
            log_id: Uuid::from_u128(1),
            starts_after: 0,
            newest_id,
        })
    }

    fn log_of_any_version(&mut self) -> Result<LogEdge, ReadError> {
        self.log()
    }

    fn oldest_failure(&mut self) -> Result<Option<Timestamp>, ReadError> {
        Ok(self.failures.iter().map(|row| place(row).created_at).min())
    }

    fn failure(&mut self, event_id: Uuid) -> Result<Option<Failure>, ReadError> {
        Ok(self
            .failures
            .iter()
            .find(|row| row.event_id == event_id)
            .cloned())
    }

    fn window_end(
        &mut self,
        direction: Direction,
        places: Range<Place>,
        rows: i64,
    ) -> Result<Option<Place>, ReadError> {
        let nth = if direction == Direction::Backwards {
            rows - 1
        } else {
            rows
        };
        Ok(self
            .within(direction, places)
            .get(usize::try_from(nth).unwrap())
            .map(|row| place(row)))
    }

    fn failures(
        &mut self,
        direction: Direction,
        places: Range<Place>,
        newest_id: i64,
        filter: &FailureFilter,
        limit: usize,
    ) -> Result<Vec<StoredFailure>, ReadError> {
        let found = self.within(direction, places).into_iter();
        let found = found.filter(|row| row.id <= newest_id && lets_through(filter, row));
        Ok(found.take(limit).map(stored).collect())
    }

    fn stored_within(
        &mut self,
        ids: Range<i64>,
        places: Range<Place>,
        filter: &FailureFilter,
        limit: usize,
    ) -> Result<Vec<StoredFailure>, ReadError> {
        let found = self
            .failures
            .iter()
            .filter(|row| ids.start < row.id && row.id <= ids.end);
        let found = found.filter(|row| places.contains(&place(row)) && lets_through(filter, row));
        Ok(found.take(limit).map(stored).collect())
    }

    fn query_text(&mut self, id: i64) -> Result<Option<String>, ReadError> {
        Ok(self
            .failures
            .iter()
            .find(|row| row.id == id)
            .map(|row| row.query_text.clone()))
    }

    fn queries(
        &mut self,
        before: Place,
        limit: u64,
        each: &mut dyn FnMut(FailedQuery) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let found = self
            .within(Direction::Backwards, Place::BEGINNING..before)
            .into_iter();
        let _ = found
            .take(usize::try_from(limit).unwrap())
            .try_for_each(|row| {
                each(FailedQuery {
                    place: place(row),
                    failure_type: row.failure_type.to_string(),
                    retrieval_strategy: row.retrieval_strategy.clone(),
                    query_text: row.query_text.clone(),
                    top_score: row.top_score,
                })
            });
        Ok(())
    }

    fn conversations(
        &mut self,
        range: Range<Timestamp>,
        each: &mut dyn FnMut(Timestamp, Option<String>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let found = self.within(
            Direction::Backwards,
            Place::at(range.start)..Place::at(range.end),
        );
        let _ = found
            .into_iter()
            .try_for_each(|row| each(place(row).created_at, row.conversation_id.clone()));
        Ok(())
    }

    fn buckets(
        &mut self,
        span: Span,
        _: bool,
        each: &mut dyn FnMut(ReadBucket) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let wanted = |(resolution, at, ..): &&(Resolution, Timestamp, OutcomeKind, u64)| {
            *resolution == span.resolution && (span.from..span.to).contains(at)
        };
        let _ = self
            .buckets
            .iter()
            .filter(wanted)
            .try_for_each(|(_, at, kind, attempts)| {
                each(ReadBucket::new(
                    *at,
                    "s".into(),
                    NO_SENDER,
                    *kind,
                    Bucket {
                        attempts: *attempts,
                        ..Bucket::default()
                    },
                ))
            });
        Ok(())
    }

    fn deltas(
        &mut self,
        _: Range<Timestamp>,
        _: &mut dyn FnMut(ReadBucket) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        Ok(())
    }

    fn oldest_attempt(&mut self) -> Result<Option<Timestamp>, ReadError> {
        Ok(self.buckets.iter().map(|(_, at, ..)| *at).min())
    }

    fn senders(&mut self) -> Result<Vec<(SenderId, Sender)>, ReadError> {
        Ok(Vec::new())
    }

    fn strategies(&mut self) -> Result<Vec<StrategySettings>, ReadError> {
        Ok(Vec::new())
    }

    fn statuses(&mut self) -> Result<Vec<(String, StatusChange)>, ReadError> {
        Ok(Vec::new())
    }

    fn drops(&mut self, _: Range<Timestamp>) -> Result<DropCounts, ReadError> {
        Ok(DropCounts::default())
    }

    #[cfg(feature = "program")]
    fn retention(&mut self) -> Result<StoredRetention, ReadError> {
        Ok(StoredRetention::default())
    }
}
