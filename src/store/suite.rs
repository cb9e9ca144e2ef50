//! Tests that every backend must pass. A backend calls `store_suite!` with a function that creates
//! an empty database.

use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};
use std::time::Duration;

use futures_executor::block_on;
use uuid::Uuid;

use crate::error::{ReadError, StoreError};
use crate::model::deletion::{Deleted, Deletion};
use crate::model::entry::{Entry, Origin, Unmeasured};
use crate::model::failure::{Direction, Failure, FailureFilter, Place};
use crate::model::outcome::{OutcomeKind, RetrievalFailureType};
use crate::model::query_status::{QueryStatus, StatusChange};
use crate::model::record::RetrievalFailureRecord;
use crate::model::source::{Labels, Sender, SenderId, SourceFilter};
use crate::model::stats::{DropCounts, DropReason};
use crate::model::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp};
use crate::retention::StoredRetention;
use crate::rollup::resolution::{Resolution, Span};
use crate::rollup::{AttemptBatch, Bucket, Delta, Owner, ScoreDirection, StrategySettings};
use crate::store::backend::Backend;
use crate::store::gate::CommitGate;
use crate::store::reads::{Lane, Reads};
use crate::store::row::{MAX_SOURCES, Row};
use crate::store::snapshot::Snapshot;
use crate::store::write::{Erased, Progress, Store};

/// An empty database, which is deleted with this value.
pub(crate) struct Fixture {
    pub(crate) backend: Box<dyn Backend>,
    /// Makes the database refuse rows with the query `unstorable`, and those rows alone.
    pub(crate) refuse: Box<dyn Fn()>,
    /// The tables of the logger.
    pub(crate) tables: Box<dyn Fn() -> Vec<String>>,
    /// Makes each change of this table fail.
    pub(crate) fail_changes: Box<dyn Fn(&str)>,
    /// Ends the effect of `fail_changes`.
    pub(crate) end_failures: Box<dyn Fn()>,
    /// The rows of all tables, as text.
    pub(crate) dump: Box<dyn Fn() -> Vec<String>>,
    pub(crate) _folder: tempfile::TempDir,
}

/// Defines a test for each function of this file that has the attribute's shape. An attribute
/// before the name is one of each test.
macro_rules! store_suite {
    ($(#[$attribute:meta])* $name:ident, $fixture:expr) => {
        mod $name {
            crate::store::suite::store_suite!(@tests {$(#[$attribute])*} $fixture;
                rows_are_read_as_they_were_inserted
                sources_beyond_the_limit_lose_their_labels
                event_id_that_is_known_is_stored_once
                closed_gate_commits_nothing
                row_that_cannot_be_stored_is_told_from_a_store_that_fails
                purge_deletes_the_oldest_rows_of_its_range
                pages_end_where_the_next_ones_begin
                filter_lets_through_what_each_of_its_fields_names
                rows_are_found_by_the_order_in_which_they_were_stored
                queries_and_conversations_come_newest_first
                attempts_are_counted_once_before_and_after_the_roll_up
                attempts_keep_their_source_through_the_roll_up
                attempts_of_another_owner_wait_to_be_rolled_up
                buckets_expire_once_their_end_is_past
                settings_of_strategies_are_merged
                retention_is_changed_in_one_transaction
                statuses_are_replaced_and_keep_their_order
                drops_add_up_and_expire
                deletion_keeps_the_counts
                log_keeps_its_identity_and_its_newest_id
                reads_see_one_moment
                operation_that_fails_at_any_table_changes_nothing
            );
        }
    };
    (@tests $attributes:tt $fixture:expr; $($test:ident)*) => {
        $(crate::store::suite::store_suite!(@test $attributes $fixture; $test);)*
    };
    (@test {$(#[$attribute:meta])*} $fixture:expr; $test:ident) => {
        #[test]
        $(#[$attribute])*
        fn $test() {
            crate::store::suite::$test(&$fixture());
        }
    };
}
pub(crate) use store_suite;

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

fn record(query: &str) -> RetrievalFailureRecord {
    RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "s", query)
}

fn row_of(record: RetrievalFailureRecord, at: Timestamp, origin: Origin) -> Row {
    Row::new(
        Uuid::now_v7(),
        Entry {
            record,
            logged_at: at,
            origin,
        },
    )
}

/// A row that is counted elsewhere.
fn row(query: &str, at: Timestamp) -> Row {
    row_of(
        record(query),
        at,
        Origin {
            is_observed: true,
            ..Origin::LOGGED
        },
    )
}

fn insert(store: &mut dyn Store, rows: &[Row]) -> Vec<usize> {
    insert_with(store, rows, &AttemptBatch::default())
}

fn insert_with(store: &mut dyn Store, rows: &[Row], attempts: &AttemptBatch) -> Vec<usize> {
    let gate = CommitGate::default();
    store.insert(rows, attempts, &gate).unwrap().duplicates
}

fn read<T: Send + 'static>(
    reads: &Reads,
    read: impl Fn(&mut dyn Snapshot) -> Result<T, ReadError> + Send + 'static,
) -> T {
    block_on(
        reads.run(Lane::Quick, Duration::from_secs(60), move |snapshot, _| {
            read(snapshot)
        }),
    )
    .unwrap()
}

fn everywhere() -> Range<Place> {
    Place::BEGINNING..Place::END
}

/// All failures that `filter` lets through, the oldest first.
fn found(reads: &Reads, filter: FailureFilter) -> Vec<Failure> {
    read(reads, move |snapshot| {
        let newest_id = snapshot.log()?.newest_id;
        let rows =
            snapshot.failures(Direction::Forwards, everywhere(), newest_id, &filter, 1000)?;
        Ok(rows.into_iter().filter_map(|row| row.failure).collect())
    })
}

fn queries(failures: &[Failure]) -> Vec<&str> {
    failures
        .iter()
        .map(|failure| failure.query_text.as_str())
        .collect()
}

pub(crate) fn rows_are_read_as_they_were_inserted(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let event_id = Uuid::now_v7();
    let full = RetrievalFailureRecord {
        conversation_id: Some("c".into()),
        turn_index: -7,
        query_len: 9000,
        top_score: Some(0.25),
        confidence_threshold: Some(-1.5),
        result_count: 3,
        latency_ms: 12,
        edge_types: Some(r#"["a"]"#.into()),
        error_context: Some("it's \"broken\"; 🦀".into()),
        source: Some("shop".into()),
        labels: Labels::new([("version", "1.4 κ"), ("index", "b")]).unwrap(),
        ..RetrievalFailureRecord::new(
            RetrievalFailureType::LowConfidence,
            "semantic",
            "where is the κλειδί?",
        )
    };
    let unmeasured = Unmeasured {
        turn_index: true,
        result_count: true,
        latency_ms: true,
    };
    let rows = [
        row_of(
            full,
            NOW,
            Origin {
                event_id: Some(event_id),
                ..Origin::LOGGED
            },
        ),
        row_of(
            record("q"),
            NOW + 1,
            Origin {
                unmeasured,
                ..Origin::LOGGED
            },
        ),
    ];
    assert!(insert(&mut *store, &rows).is_empty());
    let reads = fixture.backend.reads();
    let found = found(&reads, FailureFilter::default());
    let [first, second] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(
        (first.event_id, first.failure_type),
        (event_id, RetrievalFailureType::LowConfidence)
    );
    assert_eq!(
        (first.retrieval_strategy.as_str(), first.query_text.as_str()),
        ("semantic", "where is the κλειδί?")
    );
    assert_eq!(
        (first.conversation_id.as_deref(), first.turn_index),
        (Some("c"), Some(-7))
    );
    assert_eq!(
        (first.top_score, first.confidence_threshold),
        (Some(0.25), Some(-1.5))
    );
    assert_eq!(
        (first.query_len, first.result_count, first.latency_ms),
        (9000, Some(3), Some(12))
    );
    assert_eq!(first.edge_types.as_deref(), Some(r#"["a"]"#));
    assert_eq!(first.error_context.as_deref(), Some("it's \"broken\"; 🦀"));
    assert_eq!(first.source.as_deref(), Some("shop"));
    assert_eq!(first.labels.to_json(), r#"{"index":"b","version":"1.4 κ"}"#);
    assert_eq!(
        (second.source.as_deref(), &second.labels),
        (None, &Labels::default())
    );
    assert_eq!(
        (second.turn_index, second.result_count, second.latency_ms),
        (None, None, None)
    );
    assert_eq!(
        (second.conversation_id.clone(), second.top_score),
        (None, None)
    );
    let again = read(&reads, move |snapshot| snapshot.failure(event_id)).unwrap();
    assert_eq!(again, *first);
    assert_eq!(read(&reads, |snapshot| snapshot.failure(Uuid::nil())), None);
}

pub(crate) fn sources_beyond_the_limit_lose_their_labels(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let sent = |source: &str, label: &str| {
        let sent = RetrievalFailureRecord {
            source: Some(source.into()),
            labels: Labels::new((!label.is_empty()).then_some(("version", label))).unwrap(),
            ..record(source)
        };
        row_of(sent, NOW, Origin::LOGGED)
    };
    // The source without labels takes one place.
    let mut rows = vec![sent("known", ""), sent("known", "0")];
    rows.extend((2..MAX_SOURCES).map(|nth| sent("many", &nth.to_string())));
    // Beyond the limit.
    rows.extend([sent("known", "new"), sent("new", "new"), sent("new", "")]);
    rows.extend([sent("known", "0"), row("none", NOW)]);
    let gate = CommitGate::default();
    let inserted = store
        .insert(&rows, &AttemptBatch::default(), &gate)
        .unwrap();
    assert_eq!(
        (inserted.duplicates.len(), inserted.sources_left_out),
        (0, 3)
    );
    drop(inserted);
    let filter = FailureFilter {
        query_text: ["known", "new", "none"].map(Into::into).to_vec(),
        ..FailureFilter::default()
    };
    let found = found(&fixture.backend.reads(), filter);
    let senders: Vec<_> = found[2..]
        .iter()
        .map(|row| (row.source.as_deref(), row.labels.get("version")))
        .collect();
    assert_eq!(
        senders,
        [
            (Some("known"), None),
            (None, None),
            (None, None),
            (Some("known"), Some("0")),
            (None, None)
        ]
    );
}

pub(crate) fn event_id_that_is_known_is_stored_once(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let of_sender = |query: &str| {
        let origin = Origin {
            event_id: Some(Uuid::from_u128(7)),
            is_observed: true,
            ..Origin::LOGGED
        };
        row_of(record(query), NOW, origin)
    };
    assert!(insert(&mut *store, &[row("a", NOW), of_sender("b")]).is_empty());
    // Among others, and twice in one transaction.
    assert_eq!(
        insert(
            &mut *store,
            &[row("c", NOW), of_sender("other"), row("d", NOW)]
        ),
        [1]
    );
    let twice = row("e", NOW);
    insert(&mut *store, &[twice.clone(), twice]);
    assert_eq!(
        queries(&found(&fixture.backend.reads(), FailureFilter::default())),
        ["a", "b", "c", "d", "e"]
    );
}

pub(crate) fn closed_gate_commits_nothing(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let gate = CommitGate::default();
    assert_eq!(gate.close(Duration::ZERO), 0);
    let refused = store.insert(&[row("q", NOW)], &AttemptBatch::default(), &gate);
    assert!(matches!(refused, Err(StoreError::GiveUp(_))));
    assert!(found(&fixture.backend.reads(), FailureFilter::default()).is_empty());
}

pub(crate) fn row_that_cannot_be_stored_is_told_from_a_store_that_fails(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    (fixture.refuse)();
    let gate = CommitGate::default();
    let rows = [row("a", NOW), row("unstorable", NOW)];
    let refused = store.insert(&rows, &AttemptBatch::default(), &gate);
    assert!(matches!(refused, Err(StoreError::Split(_))));
    drop(refused);
    assert!(
        found(&fixture.backend.reads(), FailureFilter::default()).is_empty(),
        "all or nothing"
    );
    store.takes_a_plain_row().unwrap();
    assert!(insert(&mut *store, &rows[..1]).is_empty());
    assert_eq!(
        queries(&found(&fixture.backend.reads(), FailureFilter::default())),
        ["a"]
    );
}

pub(crate) fn purge_deletes_the_oldest_rows_of_its_range(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let rows: Vec<Row> = [5, 3, 1, 4, 2]
        .map(|nth| row(&nth.to_string(), NOW + nth))
        .into();
    insert(&mut *store, &rows);
    while store.roll_up(Some(Owner::default())).unwrap() == Progress::More {}
    assert_eq!(store.purge(NOW + 2..NOW + 5, 2).unwrap(), 2);
    let reads = fixture.backend.reads();
    assert_eq!(
        queries(&found(&reads, FailureFilter::default())),
        ["1", "4", "5"]
    );
    assert_eq!(store.purge(NOW + 2..NOW + 5, 2).unwrap(), 1);
    assert_eq!(store.purge(NOW + 2..NOW + 5, 2).unwrap(), 0);
    assert_eq!(
        queries(&found(&reads, FailureFilter::default())),
        ["1", "5"]
    );
    assert_eq!(
        read(&reads, |snapshot| snapshot.oldest_failure()),
        Some(NOW + 1)
    );
}

pub(crate) fn pages_end_where_the_next_ones_begin(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    // Of one moment as well.
    let rows: Vec<Row> = (0..6)
        .map(|nth| row(&nth.to_string(), NOW + nth / 2))
        .collect();
    insert(&mut *store, &rows);
    let reads = fixture.backend.reads();
    for direction in [Direction::Backwards, Direction::Forwards] {
        let pages = read(&reads, move |snapshot| {
            let (mut pages, mut places) = (Vec::new(), everywhere());
            let newest_id = snapshot.log()?.newest_id;
            loop {
                let end = snapshot.window_end(direction, places.clone(), 4)?;
                let window = match (direction, end) {
                    (_, None) => places.clone(),
                    (Direction::Backwards, Some(end)) => end..places.end,
                    (Direction::Forwards, Some(end)) => places.start..end,
                };
                let rows = snapshot.failures(
                    direction,
                    window,
                    newest_id,
                    &FailureFilter::default(),
                    100,
                )?;
                let texts = rows
                    .iter()
                    .filter_map(|row| row.failure.as_ref())
                    .map(|failure| failure.query_text.clone());
                pages.push(texts.collect::<Vec<_>>().join(""));
                match (direction, end) {
                    (_, None) => return Ok(pages),
                    (Direction::Backwards, Some(end)) => places.end = end,
                    (Direction::Forwards, Some(end)) => places.start = end,
                }
            }
        });
        let expected = if direction == Direction::Backwards {
            ["5432", "10"]
        } else {
            ["0123", "45"]
        };
        assert_eq!(pages, expected, "{direction:?}");
    }
}

pub(crate) fn filter_lets_through_what_each_of_its_fields_names(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let mut records = [
        record("Where is the KEY?"),
        record("where is a key"),
        record("100%_\\"),
        record("who?"),
    ];
    records[0].conversation_id = Some("c".into());
    records[1].failure_type = RetrievalFailureType::Timeout;
    records[2].retrieval_strategy = "graph".into();
    records[3].error_context = Some("no key".into());
    records[1].source = Some("api".into());
    records[2].source = Some("api".into());
    records[2].labels = Labels::new([("index", "7"), ("env", "prod")]).unwrap();
    let sources = |source: &[&str], label: Option<(&str, &str)>| SourceFilter {
        source: source.iter().copied().map(Into::into).collect(),
        labels: Labels::new(label).unwrap(),
    };
    let rows: Vec<Row> = records
        .into_iter()
        .zip(0..)
        .map(|(record, nth)| row_of(record, NOW + nth, Origin::LOGGED))
        .collect();
    insert(&mut *store, &rows);
    let reads = fixture.backend.reads();
    let none = FailureFilter::default;
    for (filter, expected) in [
        (none(), &[0, 1, 2, 3][..]),
        (
            FailureFilter {
                failure_type: vec![RetrievalFailureType::Timeout],
                ..none()
            },
            &[1],
        ),
        (
            FailureFilter {
                retrieval_strategy: vec!["graph".into(), "none".into()],
                ..none()
            },
            &[2],
        ),
        (
            FailureFilter {
                conversation_id: vec!["c".into()],
                ..none()
            },
            &[0],
        ),
        (
            FailureFilter {
                text: Some("KeY".into()),
                ..none()
            },
            &[0, 1, 3],
        ),
        (
            FailureFilter {
                text: Some("%_\\".into()),
                ..none()
            },
            &[2],
        ),
        (
            FailureFilter {
                query_text: vec!["who?".into()],
                ..none()
            },
            &[3],
        ),
        (
            FailureFilter {
                similar_to: vec!["where is the key".into()],
                ..none()
            },
            &[0],
        ),
        (
            FailureFilter {
                sources: sources(&["api"], None),
                ..none()
            },
            &[1, 2],
        ),
        (
            FailureFilter {
                sources: sources(&[""], None),
                ..none()
            },
            &[0, 3],
        ),
        (
            FailureFilter {
                sources: sources(&[], Some(("index", "7"))),
                ..none()
            },
            &[2],
        ),
        (
            FailureFilter {
                sources: sources(&["none"], None),
                ..none()
            },
            &[],
        ),
        (
            FailureFilter {
                retrieval_strategy: vec!["s' OR 1=1 --".into()],
                ..none()
            },
            &[],
        ),
    ] {
        let expected: Vec<&str> = expected
            .iter()
            .map(|nth| ["Where is the KEY?", "where is a key", "100%_\\", "who?"][*nth])
            .collect();
        assert_eq!(
            queries(&found(&reads, filter.clone())),
            expected,
            "{filter:?}"
        );
    }
}

pub(crate) fn rows_are_found_by_the_order_in_which_they_were_stored(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    // The moments run against the ids.
    let rows: Vec<Row> = (0..5).map(|nth| row(&nth.to_string(), NOW - nth)).collect();
    insert(&mut *store, &rows);
    let reads = fixture.backend.reads();
    let within = |ids: Range<i64>, places: Range<Place>, limit| {
        read(&reads, move |snapshot| {
            let rows = snapshot.stored_within(
                ids.clone(),
                places.clone(),
                &FailureFilter::default(),
                limit,
            )?;
            Ok(rows
                .into_iter()
                .filter_map(|row| row.failure)
                .map(|failure| failure.query_text)
                .collect::<String>())
        })
    };
    let first = found(
        &reads,
        FailureFilter {
            query_text: vec!["0".into()],
            ..FailureFilter::default()
        },
    )[0]
    .id;
    assert_eq!(within(first - 1..first + 4, everywhere(), 10), "01234");
    assert_eq!(
        within(first..first + 2, everywhere(), 10),
        "12",
        "after the first id, up to the last one"
    );
    assert_eq!(within(first - 1..first + 4, everywhere(), 2), "01");
    assert_eq!(
        within(first - 1..first + 4, Place::at(NOW - 3)..Place::at(NOW), 10),
        "123"
    );
}

pub(crate) fn queries_and_conversations_come_newest_first(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let rows: Vec<Row> = (0..4)
        .map(|nth| {
            let conversation_id = (nth > 0).then(|| nth.to_string().into());
            row_of(
                RetrievalFailureRecord {
                    conversation_id,
                    ..record(&nth.to_string())
                },
                NOW + nth,
                Origin::LOGGED,
            )
        })
        .collect();
    insert(&mut *store, &rows);
    let reads = fixture.backend.reads();
    let (first, rest, stopped) = read(&reads, |snapshot| {
        let mut texts = |before, limit, most| {
            let (mut texts, mut end) = (String::new(), before);
            snapshot.queries(before, limit, &mut |query| {
                texts.push_str(&query.query_text);
                end = query.place;
                if texts.len() == most {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            Ok::<_, ReadError>((texts, end))
        };
        let (first, end) = texts(Place::END, 3, 9)?;
        Ok((first, texts(end, 3, 9)?.0, texts(Place::END, 3, 1)?.0))
    });
    assert_eq!(
        (first.as_str(), rest.as_str(), stopped.as_str()),
        ("321", "0", "3")
    );
    let conversations = read(&reads, |snapshot| {
        let mut found = Vec::new();
        snapshot.conversations(NOW..NOW + 3, &mut |at, conversation| {
            found.push((at - NOW, conversation));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    });
    assert_eq!(
        conversations,
        [(2, Some("2".into())), (1, Some("1".into())), (0, None)]
    );
    let newest = found(&reads, FailureFilter::default())[3].id;
    assert_eq!(
        read(&reads, move |snapshot| snapshot.query_text(newest)),
        Some("3".into())
    );
    assert_eq!(
        read(&reads, move |snapshot| snapshot.query_text(newest + 1)),
        None
    );
}

fn delta(owner: Owner, at: Timestamp, kind: OutcomeKind, attempts: u64) -> Delta {
    let mut bucket = Bucket {
        attempts,
        ..Bucket::default()
    };
    bucket.latency.add(12.0);
    Delta {
        id: Uuid::now_v7(),
        owner,
        started_at: Resolution::Minute.floor(at),
        strategy: "s".into(),
        sender: None,
        kind,
        bucket,
    }
}

fn sender(source: &str, label: Option<(&str, &str)>) -> Option<Sender> {
    let labels = Labels::new(label).unwrap();
    Sender::new(Some(source.into()), labels)
}

/// Attempts at one resolution, and those that are not rolled up.
fn counted(reads: &Reads, resolution: Resolution) -> (u64, u64) {
    read(reads, move |snapshot| {
        let (mut rolled_up, mut rest) = (0, 0);
        snapshot.buckets(
            Span {
                resolution,
                from: Timestamp::EPOCH,
                to: Timestamp::MAX,
            },
            true,
            &mut |bucket| {
                rolled_up += bucket.attempts;
                ControlFlow::Continue(())
            },
        )?;
        snapshot.deltas(Timestamp::EPOCH..Timestamp::MAX, &mut |bucket| {
            rest += bucket.attempts;
            ControlFlow::Continue(())
        })?;
        Ok((rolled_up, rest))
    })
}

pub(crate) fn attempts_are_counted_once_before_and_after_the_roll_up(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let owner = Owner::default();
    let deltas = vec![
        delta(owner, NOW, OutcomeKind::Success, 5),
        delta(owner, NOW + 90 * MINUTE_MS, OutcomeKind::NoHit, 2),
    ];
    let batch = AttemptBatch {
        deltas,
        ..AttemptBatch::default()
    };
    // A failure that is counted from its row.
    let mut uncounted = row_of(record("q"), NOW, Origin::LOGGED);
    uncounted.count_from_row(false);
    insert_with(&mut *store, &[uncounted.clone()], &batch);
    // Once more, after a fault between commit and acknowledgement.
    insert_with(&mut *store, &[uncounted], &batch);
    let reads = fixture.backend.reads();
    assert_eq!(counted(&reads, Resolution::Minute), (0, 8));
    while store.roll_up(Some(owner)).unwrap() == Progress::More {}
    for resolution in Resolution::ALL {
        assert_eq!(counted(&reads, resolution), (8, 0), "{resolution:?}");
    }
    let hours = read(&reads, |snapshot| {
        let mut hours = BTreeMap::new();
        snapshot.buckets(
            Span {
                resolution: Resolution::Hour,
                from: Timestamp::EPOCH,
                to: Timestamp::MAX,
            },
            true,
            &mut |bucket| {
                let latencies = bucket.latency().map_or(0, |latency| latency.count());
                *hours
                    .entry((bucket.started_at, bucket.kind))
                    .or_insert((0, 0, 0)) = (bucket.attempts, bucket.unobserved, latencies);
                ControlFlow::Continue(())
            },
        )?;
        Ok(hours)
    });
    let hour = Resolution::Hour.floor(NOW);
    let later = Resolution::Hour.floor(NOW + 90 * MINUTE_MS);
    assert_eq!(hours[&(hour, OutcomeKind::Success)], (5, 0, 1));
    assert_eq!(
        hours[&(hour, OutcomeKind::NoHit)],
        (1, 1, 0),
        "its latency is not measured"
    );
    assert_eq!(hours[&(later, OutcomeKind::NoHit)], (2, 0, 1));
    assert_eq!(
        read(&reads, |snapshot| snapshot.oldest_attempt()),
        Some(Resolution::Day.floor(NOW))
    );
}

pub(crate) fn attempts_keep_their_source_through_the_roll_up(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let owner = Owner::default();
    let of = |sender, attempts| Delta {
        sender,
        ..delta(owner, NOW, OutcomeKind::NoHit, attempts)
    };
    let senders = [
        None,
        sender("api", None),
        sender("api", Some(("index", "7"))),
        sender("", Some(("index", "7"))),
    ];
    let deltas = senders.iter().cloned().zip([1, 20, 300, 4000]);
    let batch = AttemptBatch {
        deltas: deltas
            .map(|(sender, attempts)| of(sender, attempts))
            .collect(),
        ..AttemptBatch::default()
    };
    // A failure that is counted from its row, of a sender that the deltas have as well.
    let mut uncounted = row_of(
        RetrievalFailureRecord {
            source: Some("api".into()),
            ..record("q")
        },
        NOW,
        Origin::LOGGED,
    );
    uncounted.count_from_row(false);
    insert_with(&mut *store, &[uncounted], &batch);
    let reads = fixture.backend.reads();
    let by_sender = || {
        read(&reads, |snapshot| {
            let senders: HashMap<SenderId, Sender> = snapshot.senders()?.into_iter().collect();
            let mut counts = [(0, 0); 4];
            let position = |id: SenderId| {
                let of = senders.get(&id);
                let labels = of.map_or(0, |of| of.labels.iter().count());
                match of.and_then(|of| of.source.as_deref()) {
                    None => 3 * labels,
                    Some("api") => 1 + labels,
                    Some(other) => panic!("{other}"),
                }
            };
            let span = Span {
                resolution: Resolution::Day,
                from: Timestamp::EPOCH,
                to: Timestamp::MAX,
            };
            for sketches in [false, true] {
                snapshot.buckets(span, sketches, &mut |bucket| {
                    let count = &mut counts[position(bucket.source_id)];
                    *(if sketches { &mut count.1 } else { &mut count.0 }) += bucket.attempts;
                    ControlFlow::Continue(())
                })?;
            }
            snapshot.deltas(Timestamp::EPOCH..Timestamp::MAX, &mut |bucket| {
                let count = &mut counts[position(bucket.source_id)];
                *count = (count.0 + bucket.attempts, count.1 + bucket.attempts);
                ControlFlow::Continue(())
            })?;
            Ok(counts)
        })
    };
    let expected = [1, 21, 300, 4000].map(|attempts| (attempts, attempts));
    assert_eq!(by_sender(), expected);
    while store.roll_up(Some(owner)).unwrap() == Progress::More {}
    assert_eq!(by_sender(), expected);
    // Later attempts of the same minute are added to those of their source.
    let later = AttemptBatch {
        deltas: vec![of(senders[1].clone(), 5)],
        ..AttemptBatch::default()
    };
    insert_with(&mut *store, &[], &later);
    while store.roll_up(Some(owner)).unwrap() == Progress::More {}
    assert_eq!(by_sender()[1], (26, 26));
    assert_eq!(counted(&reads, Resolution::Minute), (4327, 0));
}

pub(crate) fn attempts_of_another_owner_wait_to_be_rolled_up(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let (own, other) = (Owner::default(), Owner::default());
    let deltas = vec![
        delta(own, NOW, OutcomeKind::Success, 1),
        delta(other, NOW, OutcomeKind::Success, 10),
    ];
    insert_with(
        &mut *store,
        &[],
        &AttemptBatch {
            deltas,
            ..AttemptBatch::default()
        },
    );
    let reads = fixture.backend.reads();
    while store.roll_up(Some(own)).unwrap() == Progress::More {}
    assert_eq!(counted(&reads, Resolution::Day), (1, 10));
    store.release(other).unwrap();
    while store.roll_up(Some(own)).unwrap() == Progress::More {}
    assert_eq!(counted(&reads, Resolution::Day), (11, 0));
}

pub(crate) fn buckets_expire_once_their_end_is_past(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let owner = Owner::default();
    let deltas = vec![
        delta(owner, NOW, OutcomeKind::Success, 1),
        delta(owner, NOW + DAY_MS, OutcomeKind::Success, 1),
    ];
    insert_with(
        &mut *store,
        &[],
        &AttemptBatch {
            deltas,
            ..AttemptBatch::default()
        },
    );
    while store.roll_up(Some(owner)).unwrap() == Progress::More {}
    let reads = fixture.backend.reads();
    let end = Resolution::Hour.floor(NOW) + HOUR_MS;
    while store.expire(Resolution::Hour, end - 1).unwrap() == Progress::More {}
    assert_eq!(counted(&reads, Resolution::Hour).0, 2);
    while store.expire(Resolution::Hour, end).unwrap() == Progress::More {}
    assert_eq!(counted(&reads, Resolution::Hour).0, 1);
    assert_eq!(
        [Resolution::Minute, Resolution::Day].map(|of| counted(&reads, of).0),
        [2, 2]
    );
}

pub(crate) fn settings_of_strategies_are_merged(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let set = |threshold, direction, timeout_ms| AttemptBatch {
        settings: vec![StrategySettings {
            strategy: "s".into(),
            threshold,
            direction,
            timeout_ms,
        }],
        ..AttemptBatch::default()
    };
    insert_with(
        &mut *store,
        &[],
        &set(Some(0.5), Some(ScoreDirection::LowerIsBetter), None),
    );
    // Another process has set what this process does not know.
    insert_with(&mut *store, &[], &set(None, None, Some(250)));
    let settings = read(&fixture.backend.reads(), |snapshot| snapshot.strategies());
    let [
        StrategySettings {
            strategy,
            threshold,
            direction,
            timeout_ms,
        },
    ] = &settings[..]
    else {
        panic!("one")
    };
    assert_eq!(
        (&**strategy, *threshold, *timeout_ms),
        ("s", Some(0.5), Some(250))
    );
    assert_eq!(*direction, Some(ScoreDirection::LowerIsBetter));
}

pub(crate) fn retention_is_changed_in_one_transaction(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let before = store.retention().unwrap();
    assert_eq!((before.failures_days, before.attempts_days), (None, None));
    let mut seen = None;
    store
        .change_retention(&mut |stored| {
            seen = Some(stored.failures_days);
            StoredRetention {
                failures_days: Some(0),
                attempts_days: Some(7),
                ..stored
            }
        })
        .unwrap();
    assert_eq!(seen, Some(None), "it begins with what is stored");
    let after = store.retention().unwrap();
    assert_eq!(
        (after.failures_days, after.attempts_days, after.clock),
        (Some(0), Some(7), before.clock)
    );
}

pub(crate) fn statuses_are_replaced_and_keep_their_order(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    for (query, status, set_at) in [
        ("a", QueryStatus::Resolved, NOW + 3),
        ("b", QueryStatus::Ignored, NOW + 2),
        ("a", QueryStatus::Open, NOW + 1),
    ] {
        store
            .set_query_status(query, StatusChange { status, set_at })
            .unwrap();
    }
    let statuses = read(&fixture.backend.reads(), |snapshot| snapshot.statuses());
    assert_eq!(
        statuses,
        [
            (
                "b".to_owned(),
                StatusChange {
                    status: QueryStatus::Ignored,
                    set_at: NOW + 2
                }
            ),
            (
                "a".to_owned(),
                StatusChange {
                    status: QueryStatus::Open,
                    set_at: NOW + 1
                }
            ),
        ]
    );
}

pub(crate) fn drops_add_up_and_expire(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let drops = |reason: DropReason, records| {
        let mut drops = DropCounts::default();
        drops.add(reason.as_str(), records);
        drops
    };
    let minute = Resolution::Minute.floor(NOW);
    store
        .count_drops(&BTreeMap::from([(
            minute,
            drops(DropReason::BufferFull, 3),
        )]))
        .unwrap();
    store
        .count_drops(&BTreeMap::from([
            (minute, drops(DropReason::BufferFull, 4)),
            (minute + DAY_MS, drops(DropReason::Rejected, 1)),
        ]))
        .unwrap();
    let reads = fixture.backend.reads();
    let within =
        |range: Range<Timestamp>| read(&reads, move |snapshot| snapshot.drops(range.clone()));
    let all = within(Timestamp::EPOCH..Timestamp::MAX);
    assert_eq!((all.buffer_full, all.rejected, all.total()), (7, 1, 8));
    assert_eq!(within(minute..minute + MINUTE_MS).total(), 7);
    assert_eq!(within(minute + 1..Timestamp::MAX).total(), 1);
    store.expire_drops(minute + DAY_MS).unwrap();
    assert_eq!(within(Timestamp::EPOCH..Timestamp::MAX).total(), 1);
}

pub(crate) fn deletion_keeps_the_counts(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let of = |query: &str, conversation: &str| {
        let record = RetrievalFailureRecord {
            conversation_id: Some(conversation.into()),
            ..record(query)
        };
        let mut row = row_of(record, NOW, Origin::LOGGED);
        row.count_from_row(false);
        row
    };
    insert(
        &mut *store,
        &[
            of("a", "alice"),
            of("b", "alice"),
            of("b", "bob"),
            of("c", "bob"),
        ],
    );
    store
        .set_query_status(
            "b",
            StatusChange {
                status: QueryStatus::Ignored,
                set_at: NOW,
            },
        )
        .unwrap();
    let mut delete = |deletion: Deletion| {
        let mut so_far = Deleted::default();
        loop {
            let (deleted, erased) = store.delete(&deletion, so_far).unwrap();
            if erased != Erased::NotYet {
                return (deleted.rows, deleted.statuses);
            }
            so_far = deleted;
        }
    };
    let reads = fixture.backend.reads();
    assert_eq!(
        delete(Deletion::Conversation("alice".into())),
        (2, 1),
        "a status tells the query"
    );
    assert_eq!(
        queries(&found(&reads, FailureFilter::default())),
        ["b", "c"]
    );
    assert_eq!(delete(Deletion::Query("b".into())), (1, 0));
    assert_eq!(delete(Deletion::Query("none".into())), (0, 0));
    assert_eq!(queries(&found(&reads, FailureFilter::default())), ["c"]);
    assert!(read(&reads, |snapshot| snapshot.statuses()).is_empty());
    let (rolled_up, rest) = counted(&reads, Resolution::Day);
    assert_eq!(rolled_up + rest, 4);
}

pub(crate) fn log_keeps_its_identity_and_its_newest_id(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let reads = fixture.backend.reads();
    let log = || read(&reads, |snapshot| snapshot.log());
    let empty = log();
    assert!(!empty.log_id.is_nil() && empty.newest_id == 0);
    insert(&mut *store, &[row("a", NOW), row("b", NOW)]);
    while store.roll_up(Some(Owner::default())).unwrap() == Progress::More {}
    let full = log();
    assert_eq!((full.log_id, full.newest_id > 1), (empty.log_id, true));
    assert_eq!(store.purge(Timestamp::MIN..Timestamp::MAX, 10).unwrap(), 2);
    assert_eq!(log().newest_id, full.newest_id, "no id is used twice");
    insert(&mut *store, &[row("c", NOW)]);
    assert!(log().newest_id > full.newest_id);
    drop(store);
    drop(fixture.backend.open().unwrap());
    assert_eq!(log().log_id, empty.log_id);
}

pub(crate) fn reads_see_one_moment(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    insert(&mut *store, &[row("a", NOW)]);
    let (begin, begun) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let reads = fixture.backend.reads();
    let reader = std::thread::spawn(move || {
        let ended = std::sync::Mutex::new(ended);
        read(&reads, move |snapshot| {
            let before = snapshot.log()?.newest_id;
            begin.send(()).unwrap();
            let _ = ended.lock().unwrap().recv();
            Ok(snapshot.log()?.newest_id - before)
        })
    });
    begun.recv().unwrap();
    insert(&mut *store, &[row("b", NOW)]);
    drop(end);
    assert_eq!(reader.join().unwrap(), 0);
}

/// Operation on a store.
type Operation = fn(&mut dyn Store, Call) -> Result<(), StoreError>;

/// Values that an operation uses.
#[derive(Clone, Copy)]
struct Call {
    /// Makes the effects of a call differ from those of others.
    nth: i64,
    owner: Owner,
}

/// All operations that write. Each returns once it has no more to do.
const OPERATIONS: [(&str, Operation); 11] = [
    ("insert", |store, Call { nth, .. }| {
        let batch = AttemptBatch {
            deltas: vec![delta(Owner::default(), NOW, OutcomeKind::Success, 1)],
            settings: vec![StrategySettings {
                strategy: format!("s{nth}").as_str().into(),
                threshold: Some(0.5),
                direction: None,
                timeout_ms: None,
            }],
            ..AttemptBatch::default()
        };
        let gate = CommitGate::default();
        store
            .insert(&[row("a", NOW + nth)], &batch, &gate)
            .map(drop)
    }),
    ("purge", |store, _| {
        store.purge(Timestamp::MIN..Timestamp::MAX, 10).map(drop)
    }),
    ("change_retention", |store, Call { nth, .. }| {
        store.change_retention(&mut |stored| StoredRetention {
            failures_days: u32::try_from(nth).ok(),
            ..stored
        })
    }),
    ("roll_up", |store, Call { owner, .. }| {
        until_done(|| store.roll_up(Some(owner)))
    }),
    ("release", |store, Call { owner, .. }| store.release(owner)),
    ("expire", |store, _| {
        for resolution in Resolution::ALL {
            until_done(|| store.expire(resolution, NOW + 400 * DAY_MS))?;
        }
        Ok(())
    }),
    ("count_drops", |store, _| {
        let mut drops = DropCounts::default();
        drops.add(DropReason::BufferFull.as_str(), 1);
        store.count_drops(&BTreeMap::from([(Resolution::Minute.floor(NOW), drops)]))
    }),
    ("expire_drops", |store, _| {
        store.expire_drops(Timestamp::MAX)
    }),
    ("set_query_status", |store, Call { nth, .. }| {
        let change = StatusChange {
            status: QueryStatus::Resolved,
            set_at: NOW + nth,
        };
        store.set_query_status("a", change)
    }),
    ("delete by conversation", |store, _| {
        delete(store, &Deletion::Conversation("c".into()))
    }),
    ("delete by query", |store, _| {
        delete(store, &Deletion::Query("a".into()))
    }),
];

fn until_done(mut work: impl FnMut() -> Result<Progress, StoreError>) -> Result<(), StoreError> {
    while work()? == Progress::More {}
    Ok(())
}

fn delete(store: &mut dyn Store, deletion: &Deletion) -> Result<(), StoreError> {
    let mut so_far = Deleted::default();
    loop {
        let (deleted, erased) = store.delete(deletion, so_far)?;
        if erased != Erased::NotYet {
            return Ok(());
        }
        so_far = deleted;
    }
}

/// Gives each operation something to do.
fn fill(store: &mut dyn Store, call: Call) {
    let Call { nth, owner } = call;
    // The second half is not rolled up.
    for _ in 0..2 {
        until_done(|| store.roll_up(Some(owner))).unwrap();
        let of_conversation = RetrievalFailureRecord {
            conversation_id: Some("c".into()),
            ..record("b")
        };
        let rows = [
            row("a", NOW + nth),
            row_of(of_conversation, NOW + nth, Origin::LOGGED),
        ];
        let batch = AttemptBatch {
            deltas: vec![
                delta(owner, NOW, OutcomeKind::Success, 1),
                delta(Owner::default(), NOW, OutcomeKind::NoHit, 1),
            ],
            ..AttemptBatch::default()
        };
        insert_with(store, &rows, &batch);
    }
    for name in ["count_drops", "set_query_status"] {
        let (_, operation) = OPERATIONS.iter().find(|(other, _)| *other == name).unwrap();
        operation(store, call).unwrap();
    }
}

/// Fails each operation at each table that it changes. A transaction that failed leaves nothing
/// behind, and the operation succeeds once the fault is gone.
pub(crate) fn operation_that_fails_at_any_table_changes_nothing(fixture: &Fixture) {
    let mut store = fixture.backend.open().unwrap();
    let tables = (fixture.tables)();
    let owner = Owner::default();
    let mut nth = 0;
    for (name, operation) in OPERATIONS {
        let mut failures = 0;
        for table in &tables {
            nth += 1;
            let call = Call { nth, owner };
            fill(&mut *store, call);
            (fixture.fail_changes)(table);
            let mut result = operation(&mut *store, call);
            // The first call may have committed transactions that do not change the table, such as
            // the roll-up before a purge. The second one repeats no more than the failed one.
            let before = (fixture.dump)();
            if result.is_err() {
                result = operation(&mut *store, call);
            }
            let after = (fixture.dump)();
            (fixture.end_failures)();
            if result.is_err() {
                failures += 1;
                assert_eq!(after, before, "{name}, {table}");
                operation(&mut *store, call).unwrap();
                assert_ne!((fixture.dump)(), before, "{name}, {table}");
            }
        }
        assert!(failures > 0, "{name} changes no table");
    }
}
