//! A record in the form in which a store inserts it.

use std::collections::HashMap;

use uuid::Uuid;

use crate::model::entry::{Entry, Origin};
use crate::model::outcome::RetrievalFailureType;
use crate::model::record::{
    BoundedQuery, BoundedText, ConversationId, RetrievalFailureRecord, StrategyName,
    whole_json_list,
};
use crate::model::source::{NO_SENDER, Sender, SenderId};
use crate::model::time::Timestamp;
use crate::rollup::{Delta, UncountedFailure};

/// Maximum number of rows of a transaction that are counted from the rows themselves. A read visits
/// such rows until they are rolled up. A larger transaction has deltas beside its rows instead, so
/// that a read visits few of them.
pub(crate) const FEW_ROWS: usize = 32;

/// Maximum number of sources with their labels. It bounds a table whose rows no purge deletes.
/// Beyond it a failure has its source without labels, and no source if that is new as well.
pub(crate) const MAX_SOURCES: i64 = 1000;

/// Place of a sender in the table of sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SenderPlace {
    /// It has an id, or none because there is no sender.
    Found(SenderId),
    /// The labels found no place; the source neither, if this is [`NO_SENDER`].
    LeftOut(SenderId),
}

impl SenderPlace {
    pub(crate) fn id(self) -> SenderId {
        match self {
            Self::Found(id) | Self::LeftOut(id) => id,
        }
    }

    /// Returns the id as rows of failures have it: NULL for no sender.
    pub(crate) fn stored(self) -> Option<SenderId> {
        Some(self.id()).filter(|id| *id != NO_SENDER)
    }

    pub(crate) fn is_left_out(self) -> bool {
        matches!(self, Self::LeftOut(_))
    }
}

/// Returns the place of each sender, by one call of `find` for each that differs.
pub(crate) fn sender_places<'s, E>(
    senders: impl Iterator<Item = Option<&'s Sender>>,
    mut find: impl FnMut(&Sender) -> Result<SenderPlace, E>,
) -> Result<Vec<SenderPlace>, E> {
    let mut known: HashMap<&Sender, SenderPlace> = HashMap::new();
    senders
        .map(|sender| {
            let Some(sender) = sender else {
                return Ok(SenderPlace::Found(NO_SENDER));
            };
            if let Some(place) = known.get(sender) {
                return Ok(*place);
            }
            let place = find(sender)?;
            known.insert(sender, place);
            Ok(place)
        })
        .collect()
}

/// Returns the number of attempts that monitors counted and whose sender was left out.
pub(crate) fn attempts_left_out(deltas: &[Delta], places: &[SenderPlace]) -> u64 {
    let left_out = deltas
        .iter()
        .zip(places)
        .filter(|(_, place)| place.is_left_out());
    // The records of the others are counted by themselves.
    let observed = |(delta, _): (&Delta, _)| delta.bucket.attempts - delta.bucket.unobserved;
    left_out.map(observed).sum()
}

/// A record whose values the table accepts: finite scores, signed integers, whole JSON.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Id from the sender, or one that the writer made for the batch.
    pub(crate) event_id: Uuid,
    pub(crate) conversation_id: Option<ConversationId>,
    /// `None`: not measured.
    pub(crate) turn_index: Option<i64>,
    pub(crate) failure_type: RetrievalFailureType,
    pub(crate) retrieval_strategy: StrategyName,
    pub(crate) query_text: BoundedQuery,
    /// Length of the query in bytes before it was cut.
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
    /// `None`: neither a source nor labels.
    pub(crate) sender: Option<Sender>,
    pub(crate) created_at: Timestamp,
    pub(crate) counting: Counting,
    /// `true` if a row with this id may be stored already. It is then counted only if it is not.
    pub(crate) is_repeatable: bool,
}

/// Place in which the failure is counted as an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counting {
    /// A delta: a monitor counted it, or the transaction has a delta for it.
    Elsewhere,
    Undecided,
    /// The row, which a roll-up counts: under its own strategy, or as one of the other strategies.
    FromRow {
        as_other: bool,
    },
}

impl Row {
    /// Returns the row of an entry. `event_id` is the id if the entry has none.
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
            sender: Sender::new(record.source, record.labels),
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

    /// Makes the roll-up count the failure from its row.
    pub(crate) fn count_from_row(&mut self, as_other: bool) {
        self.counting = Counting::FromRow { as_other };
    }

    /// Leaves the count of the failure to the caller.
    pub(crate) fn count_elsewhere(&mut self) -> UncountedFailure<'_> {
        self.counting = Counting::Elsewhere;
        self.uncounted_failure()
    }

    /// Returns the strategy and the failure, if the failure is counted from its row. `Attempts`
    /// decides itself whether the strategy is beyond the maximum.
    pub(crate) fn counted_from_row(&self) -> Option<UncountedFailure<'_>> {
        match self.counting {
            Counting::FromRow { as_other: _ } => Some(self.uncounted_failure()),
            Counting::Elsewhere | Counting::Undecided => None,
        }
    }

    fn uncounted_failure(&self) -> UncountedFailure<'_> {
        UncountedFailure {
            strategy: &self.retrieval_strategy,
            sender: self.sender.as_ref(),
            failure: self.failure_type,
            at: self.created_at,
            latency_ms: self.latency_ms,
        }
    }

    /// Returns a row that every working store accepts.
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
