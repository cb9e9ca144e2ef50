//! The tables that count attempts: how they are written, added up, and read.
//!
//! What was counted is appended to a small table, in the transaction of the failures, which costs
//! little. Every few seconds it is added to the minute, the hour and the day that it belongs to.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Float, Integer, Nullable, Text};
use uuid::Uuid;

use super::Row;
use super::schema::{
    memory_retrieval_attempts as attempts, memory_retrieval_attempts_recent as recent,
    memory_retrieval_failures as failures, memory_retrieval_strategies as strategies,
};
use crate::attempts::{
    AttemptBatch, Cell, DAY_MS, Delta, HOUR_MS, MINUTE_MS, OutcomeKind, ScoreDirection, StrategySettings, Tag,
};
use crate::sketch::Sketch;

/// What is added up in one transaction at most.
const DELTAS_PER_COMPACTION: i64 = 2000;
/// Cells that one transaction deletes, about, at each resolution.
const CELLS_PER_EXPIRY: i32 = 2000;
/// What another logger wrote, and is younger, may be written once more, after a fault between commit and
/// acknowledgement; it is not added up yet, so that the repetition is noticed.
const SETTLED_AFTER: Duration = Duration::from_secs(30);

/// Length of the spans in which attempts are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Resolution {
    Minute,
    Hour,
    Day,
}

impl Resolution {
    pub(crate) const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    /// In milliseconds.
    pub(crate) const fn span(self) -> i64 {
        match self {
            Self::Minute => MINUTE_MS,
            Self::Hour => HOUR_MS,
            Self::Day => DAY_MS,
        }
    }

    /// As it is stored.
    fn seconds(self) -> i64 {
        self.span() / 1000
    }

    pub(crate) const fn floor(self, at: i64) -> i64 {
        at.saturating_sub(at.rem_euclid(self.span()))
    }

    pub(crate) const fn ceil(self, at: i64) -> i64 {
        self.floor(at.saturating_add(self.span() - 1))
    }

    pub(crate) const fn finer(self) -> Option<Self> {
        match self {
            Self::Minute => None,
            Self::Hour => Some(Self::Minute),
            Self::Day => Some(Self::Hour),
        }
    }
}

/// Appends what was counted. What is there already stays as it is.
pub(super) fn insert(conn: &mut SqliteConnection, batch: &AttemptBatch, now: i64) -> QueryResult<()> {
    for Delta { id, started_at, strategy, kind, cell } in &batch.deltas {
        diesel::insert_into(recent::table)
            .values((
                recent::delta_id.eq(id.as_bytes().as_slice()),
                recent::started_at.eq(started_at),
                recent::strategy.eq(strategy.as_str()),
                recent::outcome.eq(kind.as_str()),
                recent::attempts.eq(stored(cell.attempts)),
                recent::unobserved.eq(stored(cell.unobserved)),
                recent::latency.eq(encoded(&cell.latency)),
                recent::top_score.eq(encoded(&cell.top_score)),
            ))
            .on_conflict_do_nothing()
            .execute(conn)?;
    }
    for StrategySettings { strategy, threshold, direction, timeout_ms } in &batch.settings {
        // What this process does not know, another may have set.
        diesel::sql_query(
            "INSERT INTO memory_retrieval_strategies VALUES (?, ?, ?, ?, ?) ON CONFLICT (strategy) DO UPDATE SET \
             confidence_threshold = coalesce(excluded.confidence_threshold, confidence_threshold), \
             lower_is_better = excluded.lower_is_better, timeout_ms = coalesce(excluded.timeout_ms, timeout_ms), \
             updated_at = excluded.updated_at",
        )
        .bind::<Text, _>(strategy.as_str())
        .bind::<Nullable<Float>, _>(threshold)
        .bind::<Bool, _>(*direction == ScoreDirection::LowerIsBetter)
        .bind::<Nullable<BigInt>, _>(timeout_ms)
        .bind::<BigInt, _>(now)
        .execute(conn)?;
    }
    Ok(())
}

/// Counts those of `rows` that their sender may repeat, if they are not stored yet: how many are.
pub(super) fn count_new(conn: &mut SqliteConnection, rows: &[Row], batch: &mut AttemptBatch) -> QueryResult<u64> {
    let mut known: HashSet<Uuid> = HashSet::new();
    let mut counts: HashMap<(i64, &str, OutcomeKind), Cell> = HashMap::new();
    let mut duplicates = 0;
    for row in rows {
        let Some((event_id, failure)) = row.repeatable() else { continue };
        // An id becomes known with the first row that has it.
        if !known.insert(event_id) || is_stored(conn, event_id)? {
            duplicates += 1;
            continue;
        }
        let key = (Resolution::Minute.floor(failure.at), failure.strategy, failure.failure.into());
        counts.entry(key).or_default().add_unobserved(failure.latency_ms);
    }
    batch.deltas = counts
        .into_iter()
        .map(|((started_at, strategy, kind), cell)| Delta {
            // If they are not committed, neither are the rows, which are counted anew.
            id: Tag::NEVER_AGAIN.id(),
            started_at,
            strategy: strategy.into(),
            kind,
            cell,
        })
        .collect();
    Ok(duplicates)
}

fn is_stored(conn: &mut SqliteConnection, event_id: Uuid) -> QueryResult<bool> {
    let stored = failures::table.filter(failures::event_id.eq(event_id.as_bytes().as_slice()));
    diesel::select(diesel::dsl::exists(stored.select(failures::id))).get_result(conn)
}

/// Whether anything has been appended that is not added up yet.
pub(super) fn has_deltas(conn: &mut SqliteConnection) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(recent::table.select(recent::delta_id))).get_result(conn)
}

/// Adds what was appended to its minutes, hours and days: whether that was all. `own`: of what is young,
/// what may be added up as well.
pub(super) fn compact(conn: &mut SqliteConnection, now: i64, own: Tag) -> QueryResult<bool> {
    let settled = id_at(now.saturating_sub(i64::try_from(SETTLED_AFTER.as_millis()).unwrap_or(i64::MAX)));
    let own = own.bytes();
    let deltas: Vec<StoredDelta> = diesel::sql_query(SETTLED_DELTAS)
        .bind::<Binary, _>(settled.as_bytes().as_slice())
        .bind::<Binary, _>(own.as_slice())
        .bind::<BigInt, _>(DELTAS_PER_COMPACTION)
        .load(conn)?;
    let Some(StoredDelta { delta_id: last, .. }) = deltas.last() else { return Ok(true) };
    let all = i64::try_from(deltas.len()).is_ok_and(|count| count < DELTAS_PER_COMPACTION);
    diesel::sql_query(DELETE_SETTLED)
        .bind::<Binary, _>(settled.as_bytes().as_slice())
        .bind::<Binary, _>(own.as_slice())
        .bind::<Binary, _>(last)
        .execute(conn)?;

    let mut sums: HashMap<(Resolution, i64, String, String), Cell> = HashMap::new();
    for StoredDelta { cell: delta, .. } in deltas {
        let part = delta.decoded();
        for resolution in Resolution::ALL {
            let key = (resolution, resolution.floor(delta.started_at), delta.strategy.clone(), delta.outcome.clone());
            sums.entry(key).or_default().merge(&part);
        }
    }
    for ((resolution, started_at, strategy, outcome), mut sum) in sums {
        let before: Option<StoredCell> = attempts::table
            .find((resolution.seconds(), started_at, &strategy, &outcome))
            .select((
                attempts::started_at,
                attempts::strategy,
                attempts::outcome,
                attempts::attempts,
                attempts::unobserved,
                attempts::latency,
                attempts::top_score,
            ))
            .first(conn)
            .optional()?;
        if let Some(before) = before {
            sum.merge(&before.decoded());
        }
        diesel::replace_into(attempts::table)
            .values((
                attempts::resolution.eq(resolution.seconds()),
                attempts::started_at.eq(started_at),
                attempts::strategy.eq(strategy),
                attempts::outcome.eq(outcome),
                attempts::attempts.eq(stored(sum.attempts)),
                attempts::unobserved.eq(stored(sum.unobserved)),
                attempts::latency.eq(encoded(&sum.latency)),
                attempts::top_score.eq(encoded(&sum.top_score)),
            ))
            .execute(conn)?;
    }
    Ok(all)
}

/// Deletes some cells of `resolution` that began before `before`: how many, and whether those were
/// all.
pub(super) fn expire(conn: &mut SqliteConnection, resolution: Resolution, before: i64) -> QueryResult<(usize, bool)> {
    let expired = diesel::sql_query(EXPIRE)
        .bind::<BigInt, _>(resolution.seconds())
        .bind::<BigInt, _>(before)
        .bind::<BigInt, _>(resolution.seconds())
        .bind::<Integer, _>(CELLS_PER_EXPIRY)
        .execute(conn)?;
    Ok((expired, i32::try_from(expired).is_ok_and(|expired| expired < CELLS_PER_EXPIRY)))
}

/// Start of the oldest day with attempts, or of the oldest attempts that are not added up yet.
pub(crate) fn oldest(conn: &mut SqliteConnection) -> QueryResult<Option<i64>> {
    let recent: Option<i64> = recent::table.select(diesel::dsl::min(recent::started_at)).first(conn)?;
    Ok(oldest_at(conn, Resolution::Day)?.into_iter().chain(recent).min())
}

/// Start of the oldest span at one resolution.
pub(super) fn oldest_at(conn: &mut SqliteConnection, resolution: Resolution) -> QueryResult<Option<i64>> {
    let oldest = diesel::sql_query(OLDEST).bind::<BigInt, _>(resolution.seconds()).get_result::<Edge>(conn)?;
    Ok(oldest.started_at)
}

#[derive(QueryableByName)]
struct Edge {
    #[diesel(sql_type = Nullable<BigInt>)]
    started_at: Option<i64>,
}

/// Which cells a reader wants.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) resolution: Resolution,
    /// In Unix milliseconds, multiples of the resolution.
    pub(crate) from: i64,
    pub(crate) to: i64,
}

/// A cell as it is read: whose it is, when it began, and what it counts.
pub(crate) struct ReadCell {
    pub(crate) started_at: i64,
    pub(crate) strategy: String,
    pub(crate) kind: OutcomeKind,
    pub(crate) attempts: u64,
    pub(crate) unobserved: u64,
    latency: Option<Vec<u8>>,
    top_score: Option<Vec<u8>>,
}

impl ReadCell {
    pub(crate) fn latency(&self) -> Option<Sketch> {
        Sketch::decode(self.latency.as_deref()?)
    }

    pub(crate) fn top_score(&self) -> Option<Sketch> {
        Sketch::decode(self.top_score.as_deref()?)
    }
}

/// Gives `each` the cells within `span` that are added up, with or without their sketches. It ends
/// the reading by returning `false`.
pub(crate) fn read(
    conn: &mut SqliteConnection,
    span: Span,
    sketches: bool,
    mut each: impl FnMut(ReadCell) -> bool,
) -> QueryResult<()> {
    let cells = diesel::sql_query(if sketches { CELLS } else { COUNTS })
        .bind::<BigInt, _>(span.resolution.seconds())
        .bind::<BigInt, _>(span.from)
        .bind::<BigInt, _>(span.to)
        .load_iter::<StoredCell, diesel::connection::DefaultLoadingMode>(conn)?;
    for cell in cells {
        if cell?.read().is_some_and(|cell| !each(cell)) {
            return Ok(());
        }
    }
    Ok(())
}

/// The same for what is not yet added up, for all of `from..to` whatever the resolution.
pub(crate) fn read_recent(
    conn: &mut SqliteConnection,
    from: i64,
    to: i64,
    mut each: impl FnMut(ReadCell) -> bool,
) -> QueryResult<()> {
    let cells = diesel::sql_query(RECENT_CELLS)
        .bind::<BigInt, _>(from)
        .bind::<BigInt, _>(to)
        .load_iter::<StoredCell, diesel::connection::DefaultLoadingMode>(conn)?;
    for cell in cells {
        if cell?.read().is_some_and(|cell| !each(cell)) {
            return Ok(());
        }
    }
    Ok(())
}

/// How strategies were judged last.
pub(crate) fn settings(conn: &mut SqliteConnection) -> QueryResult<Vec<StrategySettings>> {
    type Stored = (String, Option<f32>, bool, Option<i64>);
    let stored: Vec<Stored> = strategies::table
        .select((
            strategies::strategy,
            strategies::confidence_threshold,
            strategies::lower_is_better,
            strategies::timeout_ms,
        ))
        .load(conn)?;
    let settings = stored.into_iter().map(|(strategy, threshold, lower_is_better, timeout_ms)| StrategySettings {
        strategy: strategy.into(),
        threshold,
        direction: if lower_is_better { ScoreDirection::LowerIsBetter } else { ScoreDirection::HigherIsBetter },
        timeout_ms,
    });
    Ok(settings.collect())
}

const CELLS: &str = "SELECT started_at, strategy, outcome, attempts, unobserved, latency, top_score \
     FROM memory_retrieval_attempts WHERE resolution = ? AND started_at >= ? AND started_at < ?";
const COUNTS: &str = "SELECT started_at, strategy, outcome, attempts, unobserved, NULL AS latency, NULL AS top_score \
     FROM memory_retrieval_attempts WHERE resolution = ? AND started_at >= ? AND started_at < ?";
const RECENT_CELLS: &str = "SELECT started_at, strategy, outcome, attempts, unobserved, latency, top_score \
     FROM memory_retrieval_attempts_recent WHERE started_at >= ? AND started_at < ?";
macro_rules! settled {
    () => {
        "(delta_id < ?1 OR substr(delta_id, 13) = ?2 OR substr(delta_id, 13) = x'00000000')"
    };
}
const SETTLED_DELTAS: &str = concat!(
    "SELECT delta_id, started_at, strategy, outcome, attempts, unobserved, latency, top_score \
     FROM memory_retrieval_attempts_recent WHERE ",
    settled!(),
    " ORDER BY delta_id LIMIT ?3"
);
const DELETE_SETTLED: &str =
    concat!("DELETE FROM memory_retrieval_attempts_recent WHERE delta_id <= ?3 AND ", settled!());
const OLDEST: &str = "SELECT min(started_at) AS started_at FROM memory_retrieval_attempts WHERE resolution = ?";
const EXPIRE: &str = "DELETE FROM memory_retrieval_attempts WHERE resolution = ? AND started_at < ? AND started_at <= ( \
     SELECT max(started_at) FROM (SELECT started_at FROM memory_retrieval_attempts WHERE resolution = ? \
     ORDER BY started_at LIMIT ?))";

#[derive(Queryable, QueryableByName)]
struct StoredCell {
    #[diesel(sql_type = BigInt)]
    started_at: i64,
    #[diesel(sql_type = Text)]
    strategy: String,
    #[diesel(sql_type = Text)]
    outcome: String,
    #[diesel(sql_type = BigInt)]
    attempts: i64,
    #[diesel(sql_type = BigInt)]
    unobserved: i64,
    #[diesel(sql_type = Nullable<Binary>)]
    latency: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    top_score: Option<Vec<u8>>,
}

#[derive(QueryableByName)]
struct StoredDelta {
    #[diesel(sql_type = Binary)]
    delta_id: Vec<u8>,
    #[diesel(embed)]
    cell: StoredCell,
}

impl StoredCell {
    fn decoded(&self) -> Cell {
        let sketch = |bytes: &Option<Vec<u8>>| bytes.as_deref().and_then(Sketch::decode).unwrap_or_default();
        Cell {
            attempts: read_count(self.attempts),
            unobserved: read_count(self.unobserved),
            latency: sketch(&self.latency),
            top_score: sketch(&self.top_score),
        }
    }

    /// `None`: an outcome of a newer version.
    fn read(self) -> Option<ReadCell> {
        Some(ReadCell {
            kind: OutcomeKind::parse(&self.outcome)?,
            started_at: self.started_at,
            strategy: self.strategy,
            attempts: read_count(self.attempts),
            unobserved: read_count(self.unobserved),
            latency: self.latency,
            top_score: self.top_score,
        })
    }
}

fn encoded(sketch: &Sketch) -> Option<Vec<u8>> {
    (sketch.count() > 0).then(|| sketch.encode())
}

/// SQLite's integers are signed.
fn stored(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn read_count(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// The smallest UUIDv7 of a moment, in Unix milliseconds.
fn id_at(moment: i64) -> Uuid {
    Uuid::from_u128(u128::from(moment.max(0).unsigned_abs()) << 80)
}

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection as _;

    use super::*;

    const NOW: i64 = 1_790_000_000_000;

    fn database() -> SqliteConnection {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        conn.batch_execute(include_str!("../../migrations/sqlite/2026-11-24-000001-0000_count_attempts/up.sql"))
            .unwrap();
        conn
    }

    /// Attempts at some moments, each with a latency that tells it from the others.
    fn batch(moments: &[i64]) -> AttemptBatch {
        let deltas = moments.iter().enumerate().map(|(nth, at)| {
            let mut cell = Cell { attempts: 1, ..Cell::default() };
            cell.latency.add(1.0 + nth as f64);
            Delta {
                // Of the past, so that they may be added up.
                id: Uuid::from_u128(id_at(NOW - 60_000).as_u128() | (nth as u128 + 1)),
                started_at: Resolution::Minute.floor(*at),
                strategy: "semantic".into(),
                kind: OutcomeKind::Success,
                cell,
            }
        });
        AttemptBatch { deltas: deltas.collect(), settings: Vec::new() }
    }

    /// Attempts at each resolution, those that are not added up included.
    fn totals(conn: &mut SqliteConnection) -> [(u64, u64); 3] {
        Resolution::ALL.map(|resolution| {
            let (mut attempts, mut latencies) = (0, 0);
            let mut add = |cell: ReadCell| {
                attempts += cell.attempts;
                latencies += cell.latency().map_or(0, |latency| latency.count());
                true
            };
            read(conn, Span { resolution, from: 0, to: i64::MAX }, true, &mut add).unwrap();
            read_recent(conn, 0, i64::MAX, &mut add).unwrap();
            (attempts, latencies)
        })
    }

    #[test]
    fn adding_up_changes_no_count_at_any_resolution() {
        let mut conn = database();
        let moments: Vec<i64> = (0..5000).map(|nth| NOW - nth * 20_000).collect();
        insert(&mut conn, &batch(&moments), NOW).unwrap();
        assert_eq!(totals(&mut conn), [(5000, 5000); 3]);
        let mut rounds = 1;
        while !compact(&mut conn, NOW, Tag::default()).unwrap() {
            assert_eq!(totals(&mut conn), [(5000, 5000); 3], "in between");
            rounds += 1;
        }
        assert_eq!(rounds, 3);
        assert_eq!(totals(&mut conn), [(5000, 5000); 3]);
        assert!(has_deltas(&mut conn).is_ok_and(|any| !any));
        // What comes later for the same minutes is added to them.
        let mut later = batch(&moments[..10]);
        later.deltas.iter_mut().for_each(|delta| delta.id = Uuid::from_u128(delta.id.as_u128() | 1 << 70));
        insert(&mut conn, &later, NOW).unwrap();
        compact(&mut conn, NOW, Tag::default()).unwrap();
        assert_eq!(totals(&mut conn), [(5010, 5010); 3]);
    }

    #[test]
    fn what_is_inserted_again_is_counted_once_and_what_is_young_waits() {
        let mut conn = database();
        let batch = batch(&[NOW, NOW - 1]);
        insert(&mut conn, &batch, NOW).unwrap();
        insert(&mut conn, &batch, NOW).unwrap();
        assert_eq!(totals(&mut conn), [(2, 2); 3]);
        assert!(compact(&mut conn, NOW - 60_000, Tag::default()).unwrap());
        insert(&mut conn, &batch, NOW).unwrap();
        assert_eq!(totals(&mut conn), [(2, 2); 3], "not added up while it may come again");
    }

    #[test]
    fn a_logger_adds_up_its_own_at_once_and_leaves_what_another_wrote_just_now() {
        let mut conn = database();
        let (own, others) = (Tag::default(), Tag::default());
        for (tag, moments) in [(own, 0..3), (others, 3..5), (Tag::NEVER_AGAIN, 5..6)] {
            let mut batch = batch(&moments.map(|nth| NOW - nth).collect::<Vec<_>>());
            batch.deltas.iter_mut().for_each(|delta| delta.id = tag.id());
            insert(&mut conn, &batch, NOW).unwrap();
        }
        let now = crate::clock::now();
        let waiting = |conn: &mut SqliteConnection| recent::table.count().get_result::<i64>(conn).unwrap();
        assert!(compact(&mut conn, now, Tag::default()).unwrap());
        assert_eq!(waiting(&mut conn), 5, "what comes never again");
        assert!(compact(&mut conn, now, own).unwrap());
        assert_eq!(waiting(&mut conn), 2);
        assert!(compact(&mut conn, now + 60_000, Tag::default()).unwrap());
        assert_eq!((waiting(&mut conn), totals(&mut conn)), (0, [(6, 6); 3]));
    }

    #[test]
    fn old_spans_go_at_their_resolution_only() {
        let mut conn = database();
        let days: Vec<i64> = (0..10).map(|day| NOW - day * DAY_MS).collect();
        insert(&mut conn, &batch(&days), NOW).unwrap();
        compact(&mut conn, NOW, Tag::default()).unwrap();
        expire(&mut conn, Resolution::Minute, NOW - 3 * DAY_MS).unwrap();
        assert_eq!(totals(&mut conn).map(|(attempts, _)| attempts), [3, 10, 10]);
        assert_eq!(oldest(&mut conn).unwrap(), Some(Resolution::Day.floor(NOW - 9 * DAY_MS)));
    }

    #[test]
    fn a_sketch_that_cannot_be_read_costs_its_values_and_nothing_else() {
        let mut conn = database();
        insert(&mut conn, &batch(&[NOW, NOW - HOUR_MS]), NOW).unwrap();
        conn.batch_execute("UPDATE memory_retrieval_attempts_recent SET latency = x'0102030405'").unwrap();
        compact(&mut conn, NOW, Tag::default()).unwrap();
        assert_eq!(totals(&mut conn), [(2, 0); 3]);
    }

    fn sql(query: &impl diesel::query_builder::QueryFragment<diesel::sqlite::Sqlite>) -> String {
        let text = diesel::debug_query::<diesel::sqlite::Sqlite, _>(query).to_string();
        text.split(" -- ").next().unwrap().to_owned()
    }

    #[test]
    fn every_statement_uses_the_index_that_was_meant() {
        let mut conn = database();
        let one = sql(&attempts::table.find((60_i64, 0_i64, "s", "o")).select(attempts::attempts));
        let any = sql(&diesel::select(diesel::dsl::exists(recent::table.select(recent::delta_id))));
        for (sql, plan) in [
            (
                CELLS,
                "SEARCH memory_retrieval_attempts USING PRIMARY KEY (resolution=? AND started_at>? AND started_at<?)",
            ),
            (
                COUNTS,
                "SEARCH memory_retrieval_attempts USING COVERING INDEX memory_retrieval_attempts_counts (resolution=? AND started_at>? AND started_at<?)",
            ),
            (
                OLDEST,
                "SEARCH memory_retrieval_attempts USING COVERING INDEX memory_retrieval_attempts_counts (resolution=?)",
            ),
            (EXPIRE, "SEARCH memory_retrieval_attempts USING PRIMARY KEY (resolution=? AND started_at<?)"),
            // In the order of its key, and a few hundred rows.
            (SETTLED_DELTAS, "SCAN memory_retrieval_attempts_recent"),
            (DELETE_SETTLED, "SEARCH memory_retrieval_attempts_recent USING PRIMARY KEY (delta_id<?)"),
            (
                &one,
                "SEARCH memory_retrieval_attempts USING PRIMARY KEY \
                 (resolution=? AND started_at=? AND strategy=? AND outcome=?)",
            ),
            // Ends with the first row.
            (&any, "SCAN memory_retrieval_attempts_recent"),
            // A row for each strategy, always read whole.
            ("SELECT * FROM memory_retrieval_strategies", "SCAN memory_retrieval_strategies"),
            // A few hundred rows, always read whole.
            (RECENT_CELLS, "SCAN memory_retrieval_attempts_recent"),
        ] {
            let plans = crate::store::plan(&mut conn, sql);
            assert!(plans.iter().any(|step| step == plan), "{sql}: {plans:?}");
            assert!(!plans.iter().any(|step| step.contains("TEMP B-TREE")), "{sql}: {plans:?}");
        }
    }
}
