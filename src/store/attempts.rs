//! The tables that count attempts: how they are written, added up, and read.
//!
//! What was counted is appended to a small table, in the transaction of the failures, which costs
//! little. Every few seconds it is added to the minute, the hour and the day that it belongs to.

use std::collections::HashMap;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Float, Integer, Nullable, Text};
use uuid::Uuid;

use super::schema::{
    memory_retrieval_attempts as attempts, memory_retrieval_attempts_recent as recent,
    memory_retrieval_strategies as strategies,
};
use super::uncounted;
use crate::attempts::{
    AttemptBatch, Cell, DAY_MS, Delta, HOUR_MS, MINUTE_MS, OutcomeKind, Owner, ScoreDirection, StrategySettings,
};
use crate::sketch::Sketch;

/// What is added up in one transaction at most.
const DELTAS_PER_COMPACTION: i64 = 2000;
/// Cells that one transaction deletes, about, at each resolution.
const CELLS_PER_EXPIRY: i32 = 2000;
/// What another logger wrote, and is younger, may be written once more, after a fault between commit and
/// acknowledgement; it is not added up yet, so that the repetition is noticed. Few deltas wait for so long: a
/// logger adds its own up within a minute, and releases the rest when it is shut down.
const SETTLED_AFTER: Duration = Duration::from_secs(60 * 60);

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

    /// Start of the spans that ended before `before` is earlier than this.
    pub(crate) const fn ended_before(self, before: i64) -> i64 {
        before.saturating_sub(self.span()).saturating_add(1)
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
    for Delta { id, owner, started_at, strategy, kind, cell } in &batch.deltas {
        diesel::insert_into(recent::table)
            .values((
                recent::delta_id.eq(id.as_bytes().as_slice()),
                recent::owner.eq(owner.number()),
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
            "INSERT INTO memory_retrieval_strategies VALUES (?1, ?2, coalesce(?3, 0), ?4, ?5) \
             ON CONFLICT (strategy) DO UPDATE SET \
             confidence_threshold = coalesce(excluded.confidence_threshold, confidence_threshold), \
             lower_is_better = coalesce(?3, lower_is_better), timeout_ms = coalesce(excluded.timeout_ms, timeout_ms), \
             updated_at = excluded.updated_at",
        )
        .bind::<Text, _>(strategy.as_str())
        .bind::<Nullable<Float>, _>(threshold)
        .bind::<Nullable<Bool>, _>(direction.map(|direction| direction == ScoreDirection::LowerIsBetter))
        .bind::<Nullable<BigInt>, _>(timeout_ms)
        .bind::<BigInt, _>(now)
        .execute(conn)?;
    }
    Ok(())
}

/// Returns `true` if anything has been appended that is not added up yet.
pub(super) fn has_deltas(conn: &mut SqliteConnection) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(recent::table.select(recent::delta_id))).get_result(conn)
}

/// Says that nothing of `owner` is written once more, so that others may add it up.
pub(super) fn release(conn: &mut SqliteConnection, owner: Owner) -> QueryResult<()> {
    diesel::update(recent::table.filter(recent::owner.eq(owner.number())))
        .set(recent::owner.eq(0))
        .execute(conn)
        .map(drop)
}

/// Returns `true` if anything of `owner` is not added up yet.
pub(super) fn has_deltas_of(conn: &mut SqliteConnection, owner: Owner) -> QueryResult<bool> {
    let own = recent::table.filter(recent::owner.eq(owner.number()));
    diesel::select(diesel::dsl::exists(own.select(recent::delta_id))).get_result(conn)
}

/// Adds some of what was appended, and some failures that are counted from their rows, to their minutes, hours and
/// days. Returns `true` if that was all. `own`: of what is young, what may be added up as well; `None` leaves all
/// that was appended as it is.
pub(super) fn roll_up(conn: &mut SqliteConnection, now: i64, own: Option<Owner>) -> QueryResult<bool> {
    let mut sums = Sums::default();
    let deltas = own.map_or(Ok(true), |own| roll_up_deltas(conn, now, own, &mut sums))?;
    let rows = uncounted::roll_up(conn, &mut sums)?;
    sums.write(conn)?;
    Ok(deltas && rows)
}

fn roll_up_deltas(conn: &mut SqliteConnection, now: i64, own: Owner, sums: &mut Sums) -> QueryResult<bool> {
    let settled = id_at(now.saturating_sub(i64::try_from(SETTLED_AFTER.as_millis()).unwrap_or(i64::MAX)));
    let deltas: Vec<StoredDelta> = diesel::sql_query(SETTLED_DELTAS)
        .bind::<Binary, _>(settled.as_bytes().as_slice())
        .bind::<BigInt, _>(own.number())
        .bind::<BigInt, _>(DELTAS_PER_COMPACTION)
        .load(conn)?;
    let Some(StoredDelta { delta_id: last, .. }) = deltas.last() else { return Ok(true) };
    let all = i64::try_from(deltas.len()).is_ok_and(|count| count < DELTAS_PER_COMPACTION);
    diesel::sql_query(DELETE_SETTLED)
        .bind::<Binary, _>(settled.as_bytes().as_slice())
        .bind::<BigInt, _>(own.number())
        .bind::<Binary, _>(last)
        .execute(conn)?;
    for StoredDelta { cell: delta, .. } in deltas {
        sums.add(delta.started_at, &delta.strategy, &delta.outcome, &delta.decoded());
    }
    Ok(all)
}

/// Attempts to be added to what the table has, by resolution, start, strategy and outcome.
#[derive(Default)]
pub(super) struct Sums(HashMap<(Resolution, i64, String, String), Cell>);

impl Sums {
    /// Adds `part` to the minute, the hour and the day of `at`.
    pub(super) fn add(&mut self, at: i64, strategy: &str, outcome: &str, part: &Cell) {
        for resolution in Resolution::ALL {
            let key = (resolution, resolution.floor(at), strategy.to_owned(), outcome.to_owned());
            self.0.entry(key).or_default().merge(part);
        }
    }

    #[cfg(test)]
    pub(super) fn attempts(&self, of: Resolution) -> u64 {
        self.0.iter().filter(|((resolution, ..), _)| *resolution == of).map(|(_, cell)| cell.attempts).sum()
    }

    fn write(self, conn: &mut SqliteConnection) -> QueryResult<()> {
        for ((resolution, started_at, strategy, outcome), mut sum) in self.0 {
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
            let counts = (
                attempts::attempts.eq(stored(sum.attempts)),
                attempts::unobserved.eq(stored(sum.unobserved)),
                attempts::latency.eq(encoded(&sum.latency)),
                attempts::top_score.eq(encoded(&sum.top_score)),
            );
            diesel::insert_into(attempts::table)
                .values((
                    attempts::resolution.eq(resolution.seconds()),
                    attempts::started_at.eq(started_at),
                    attempts::strategy.eq(strategy),
                    attempts::outcome.eq(outcome),
                    counts.clone(),
                ))
                .on_conflict((attempts::resolution, attempts::started_at, attempts::strategy, attempts::outcome))
                .do_update()
                .set(counts)
                .execute(conn)?;
        }
        Ok(())
    }
}

/// Deletes some cells of `resolution` that ended before `before`: whether those were all.
pub(super) fn expire(conn: &mut SqliteConnection, resolution: Resolution, before: i64) -> QueryResult<bool> {
    let expired = diesel::sql_query(EXPIRE)
        .bind::<BigInt, _>(resolution.seconds())
        .bind::<BigInt, _>(resolution.ended_before(before))
        .bind::<BigInt, _>(resolution.seconds())
        .bind::<Integer, _>(CELLS_PER_EXPIRY)
        .execute(conn)?;
    Ok(i32::try_from(expired).is_ok_and(|expired| expired < CELLS_PER_EXPIRY))
}

/// Deletes what was counted in spans that begin at `from` or later.
#[cfg(feature = "cli")]
pub(super) fn delete_from(conn: &mut SqliteConnection, from: i64) -> QueryResult<()> {
    diesel::delete(attempts::table.filter(attempts::started_at.ge(from))).execute(conn)?;
    diesel::delete(recent::table.filter(recent::started_at.ge(from))).execute(conn).map(drop)
}

/// Start of the oldest day with attempts, or of the oldest attempts that are not added up yet.
pub(crate) fn oldest(conn: &mut SqliteConnection) -> QueryResult<Option<i64>> {
    let recent: Option<i64> = recent::table.select(diesel::dsl::min(recent::started_at)).first(conn)?;
    let uncounted = uncounted::oldest(conn)?;
    Ok(oldest_at(conn, Resolution::Day)?.into_iter().chain(recent).chain(uncounted).min())
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
    latency: ReadSketch,
    top_score: ReadSketch,
}

/// A sketch as it was read: decoding it takes longer than reading.
enum ReadSketch {
    Encoded(Option<Vec<u8>>),
    Decoded(Sketch),
}

impl ReadSketch {
    fn decoded(&self) -> Option<Sketch> {
        match self {
            Self::Encoded(bytes) => Sketch::decode(bytes.as_deref()?),
            Self::Decoded(sketch) => (sketch.count() > 0).then(|| sketch.clone()),
        }
    }
}

impl ReadCell {
    pub(super) fn new(started_at: i64, strategy: String, kind: OutcomeKind, cell: Cell) -> Self {
        let Cell { attempts, unobserved, latency, top_score } = cell;
        let (latency, top_score) = (ReadSketch::Decoded(latency), ReadSketch::Decoded(top_score));
        Self { started_at, strategy, kind, attempts, unobserved, latency, top_score }
    }

    pub(crate) fn latency(&self) -> Option<Sketch> {
        self.latency.decoded()
    }

    pub(crate) fn top_score(&self) -> Option<Sketch> {
        self.top_score.decoded()
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
    uncounted::read(conn, from, to, &mut each)
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
        direction: Some(if lower_is_better { ScoreDirection::LowerIsBetter } else { ScoreDirection::HigherIsBetter }),
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
        "(delta_id < ?1 OR owner = ?2 OR owner = 0)"
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
            latency: ReadSketch::Encoded(self.latency),
            top_score: ReadSketch::Encoded(self.top_score),
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
        crate::store::migrated()
    }

    /// Attempts at some moments, each with a latency that tells it from the others.
    fn batch(moments: &[i64]) -> AttemptBatch {
        let deltas = moments.iter().enumerate().map(|(nth, at)| {
            let mut cell = Cell { attempts: 1, ..Cell::default() };
            cell.latency.add(1.0 + nth as f64);
            Delta {
                // Of the past, so that they may be added up.
                id: Uuid::from_u128(id_at(NOW - 2 * HOUR_MS).as_u128() | (nth as u128 + 1)),
                owner: Owner::default(),
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
        while !roll_up(&mut conn, NOW, Some(Owner::default())).unwrap() {
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
        roll_up(&mut conn, NOW, Some(Owner::default())).unwrap();
        assert_eq!(totals(&mut conn), [(5010, 5010); 3]);
    }

    #[test]
    fn what_is_inserted_again_is_counted_once_and_what_is_young_waits() {
        let mut conn = database();
        let batch = batch(&[NOW, NOW - 1]);
        insert(&mut conn, &batch, NOW).unwrap();
        insert(&mut conn, &batch, NOW).unwrap();
        assert_eq!(totals(&mut conn), [(2, 2); 3]);
        assert!(roll_up(&mut conn, NOW - 2 * HOUR_MS, Some(Owner::default())).unwrap());
        insert(&mut conn, &batch, NOW).unwrap();
        assert_eq!(totals(&mut conn), [(2, 2); 3], "not added up while it may come again");
    }

    #[test]
    fn a_logger_adds_up_its_own_at_once_and_leaves_what_another_wrote_just_now() {
        let mut conn = database();
        let (own, others) = (Owner::default(), Owner::default());
        let now = crate::clock::now();
        for (owner, moments) in [(own, 0..3), (others, 3..5)] {
            let mut batch = batch(&moments.map(|nth| NOW - nth).collect::<Vec<_>>());
            batch.deltas.iter_mut().for_each(|delta| (delta.id, delta.owner) = (Uuid::now_v7(), owner));
            insert(&mut conn, &batch, NOW).unwrap();
        }
        let waiting = |conn: &mut SqliteConnection| recent::table.count().get_result::<i64>(conn).unwrap();
        assert!(roll_up(&mut conn, now, None).unwrap(), "in doubt");
        assert!(roll_up(&mut conn, now + HOUR_MS / 2, Some(Owner::default())).unwrap());
        assert_eq!(waiting(&mut conn), 5, "a third logger takes neither");
        assert!(roll_up(&mut conn, now, Some(own)).unwrap());
        assert_eq!((waiting(&mut conn), has_deltas_of(&mut conn, own)), (2, Ok(false)));
        assert_eq!(has_deltas_of(&mut conn, others), Ok(true));
        release(&mut conn, others).unwrap();
        assert!(roll_up(&mut conn, now, Some(own)).unwrap());
        assert_eq!((waiting(&mut conn), totals(&mut conn)), (0, [(5, 5); 3]));
    }

    #[test]
    fn what_a_killed_logger_left_is_added_up_after_a_while() {
        let mut conn = database();
        let mut batch = batch(&[NOW]);
        batch.deltas.iter_mut().for_each(|delta| delta.id = Uuid::now_v7());
        insert(&mut conn, &batch, NOW).unwrap();
        let later = crate::clock::now() + 2 * HOUR_MS;
        assert!(roll_up(&mut conn, later, Some(Owner::default())).unwrap());
        assert_eq!((has_deltas(&mut conn), totals(&mut conn)), (Ok(false), [(1, 1); 3]));
    }

    #[test]
    fn delta_of_another_logger_waits_for_an_hour() {
        let mut conn = database();
        let mut batch = batch(&[NOW]);
        batch.deltas[0].id = Uuid::from_u128(id_at(NOW).as_u128() | 1);
        let waiting = |conn: &mut SqliteConnection| recent::table.count().get_result::<i64>(conn).unwrap();
        for (minutes, left) in [(0, 1), (59, 1), (61, 0)] {
            insert(&mut conn, &batch, NOW).unwrap();
            assert!(roll_up(&mut conn, NOW + minutes * MINUTE_MS, Some(Owner::default())).unwrap());
            assert_eq!(waiting(&mut conn), left, "after {minutes} minutes");
            assert_eq!(totals(&mut conn), [(1, 1); 3]);
        }
    }

    #[test]
    fn old_spans_go_at_their_resolution_only() {
        let mut conn = database();
        let days: Vec<i64> = (0..10).map(|day| NOW - day * DAY_MS).collect();
        insert(&mut conn, &batch(&days), NOW).unwrap();
        roll_up(&mut conn, NOW, Some(Owner::default())).unwrap();
        expire(&mut conn, Resolution::Minute, NOW - 3 * DAY_MS).unwrap();
        assert_eq!(totals(&mut conn).map(|(attempts, _)| attempts), [4, 10, 10]);
        assert_eq!(oldest(&mut conn).unwrap(), Some(Resolution::Day.floor(NOW - 9 * DAY_MS)));
    }

    #[test]
    fn span_is_deleted_once_its_end_is_past_and_not_before() {
        for (nth, resolution) in Resolution::ALL.into_iter().enumerate() {
            let mut conn = database();
            let end = resolution.ceil(NOW - 5 * DAY_MS);
            insert(&mut conn, &batch(&[end - 1, end]), NOW).unwrap();
            roll_up(&mut conn, NOW, Some(Owner::default())).unwrap();
            let mut left = |before| {
                expire(&mut conn, resolution, before).unwrap();
                totals(&mut conn)[nth].0
            };
            let next = end + resolution.span();
            assert_eq!([end - 1, end, next - 1, next].map(&mut left), [2, 1, 1, 0], "{resolution:?}");
        }
    }

    #[test]
    fn a_sketch_that_cannot_be_read_costs_its_values_and_nothing_else() {
        let mut conn = database();
        insert(&mut conn, &batch(&[NOW, NOW - HOUR_MS]), NOW).unwrap();
        conn.batch_execute("UPDATE memory_retrieval_attempts_recent SET latency = x'0102030405'").unwrap();
        roll_up(&mut conn, NOW, Some(Owner::default())).unwrap();
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
