//! A record as a store takes it.

use uuid::Uuid;

use crate::model::entry::{Entry, Origin};
use crate::model::outcome::RetrievalFailureType;
use crate::model::record::{
    BoundedQuery, BoundedText, ConversationId, RetrievalFailureRecord, StrategyName,
    whole_json_list,
};
use crate::model::time::Timestamp;
use crate::rollup::UncountedFailure;

/// Rows of transactions up to this number are counted from their rows. Readers must look at those
/// until they are rolled up: of more rows, the counts are written beside them.
pub(crate) const FEW_ROWS: usize = 32;

/// A record as it is stored: every value is one that the table accepts.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Its sender's, or one of the batch.
    pub(crate) event_id: Uuid,
    pub(crate) conversation_id: Option<ConversationId>,
    /// `None`: not measured.
    pub(crate) turn_index: Option<i64>,
    pub(crate) failure_type: RetrievalFailureType,
    pub(crate) retrieval_strategy: StrategyName,
    pub(crate) query_text: BoundedQuery,
    /// Bytes of the query before it was cut.
    pub(crate) query_len: i64,
    pub(crate) top_score: Option<f32>,
    pub(crate) confidence_threshold: Option<f32>,
    /// `None`: not measured.
    pub(crate) result_count: Option<i64>,
    /// Whole milliseconds. `None`: not measured.
    pub(crate) latency_ms: Option<i64>,
    /// JSON list, cut between two elements.
    pub(crate) edge_types: Option<BoundedText<1024>>,
    pub(crate) error_context: Option<BoundedText<256>>,
    pub(crate) created_at: Timestamp,
    pub(crate) counting: Counting,
    /// A row of this id may be stored already: then it is not counted once more.
    pub(crate) is_repeatable: bool,
}

/// The way in which the failure counts as an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counting {
    /// A monitor, or a delta that is written beside the rows.
    Elsewhere,
    Undecided,
    /// The roll-up, from the row: under its own strategy, or under the one of all others.
    FromRow {
        as_other: bool,
    },
}

impl Row {
    /// `event_id` is for an entry that has none.
    pub(crate) fn new(
        event_id: Uuid,
        Entry {
            record,
            logged_at,
            origin,
        }: Entry,
    ) -> Self {
        let Origin {
            is_observed,
            event_id: given,
            unmeasured,
        } = origin;
        let finite = |score: Option<f32>| score.filter(|s| s.is_finite());
        let measured = |number: i64, unmeasured: bool| (!unmeasured).then_some(number);
        Self {
            event_id: given.unwrap_or(event_id),
            conversation_id: record.conversation_id,
            turn_index: measured(record.turn_index, unmeasured.turn_index),
            failure_type: record.failure_type,
            retrieval_strategy: record.retrieval_strategy,
            query_text: record.query_text,
            query_len: saturating(record.query_len as u64),
            top_score: finite(record.top_score),
            confidence_threshold: finite(record.confidence_threshold),
            result_count: measured(
                saturating(record.result_count as u64),
                unmeasured.result_count,
            ),
            latency_ms: measured(saturating(record.latency_ms), unmeasured.latency_ms),
            edge_types: record.edge_types.map(whole_json_list),
            error_context: record.error_context,
            created_at: logged_at,
            counting: if is_observed {
                Counting::Elsewhere
            } else {
                Counting::Undecided
            },
            is_repeatable: given.is_some(),
        }
    }

    pub(crate) fn is_repeatable(&self) -> bool {
        self.is_repeatable
    }

    pub(crate) fn strategy(&self) -> &str {
        &self.retrieval_strategy
    }

    /// Returns `true` if nothing counts the failure yet.
    pub(crate) fn is_undecided(&self) -> bool {
        self.counting == Counting::Undecided
    }

    /// Has the failure counted from its row.
    pub(crate) fn count_from_row(&mut self, as_other: bool) {
        self.counting = Counting::FromRow { as_other };
    }

    /// Has the failure counted by the caller.
    pub(crate) fn count_elsewhere(&mut self) -> UncountedFailure<'_> {
        self.counting = Counting::Elsewhere;
        self.uncounted_failure()
    }

    /// The failure under its own strategy, if it is counted from its row. `Attempts` finds by
    /// itself that a strategy is one of too many.
    pub(crate) fn counted_from_row(&self) -> Option<UncountedFailure<'_>> {
        match self.counting {
            Counting::FromRow { as_other: _ } => Some(self.uncounted_failure()),
            Counting::Elsewhere | Counting::Undecided => None,
        }
    }

    fn uncounted_failure(&self) -> UncountedFailure<'_> {
        UncountedFailure {
            strategy: &self.retrieval_strategy,
            failure: self.failure_type,
            at: self.created_at,
            latency_ms: self.latency_ms,
        }
    }

    /// A row of which nothing is known to be wrong.
    pub(crate) fn plain() -> Self {
        let record = RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "probe", "probe");
        Self::new(
            Uuid::now_v7(),
            Entry {
                record,
                logged_at: Timestamp::EPOCH,
                origin: Origin {
                    is_observed: true,
                    ..Origin::LOGGED
                },
            },
        )
    }
}

/// SQLite's integers are signed.
fn saturating(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
