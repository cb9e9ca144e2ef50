//! The failures themselves: one by one, and page by page.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Float, Nullable, Text};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::text::Folded;
use super::{FailureReader, TimeRange, moment};
use crate::clock;
use crate::error::ReadError;
use crate::record::RetrievalFailureType;
use crate::store::log as store_log;
use crate::store::reader::Deadline;

/// Failures on one page at most.
const MAX_PER_PAGE: usize = 1000;
/// Rows that one statement looks at: the deadline is looked at between statements.
const FIRST_WINDOW: i64 = 2000;
const LARGEST_WINDOW: i64 = 50_000;

/// A failure as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Failure {
    /// Position in the table: grows with every row, and is never used again.
    #[serde(serialize_with = "as_text")]
    #[cfg_attr(feature = "http", schema(value_type = String))]
    pub id: i64,
    /// Identifies the failure everywhere (UUIDv7).
    pub event_id: Uuid,
    /// The conversation in which retrieval failed.
    pub conversation_id: Option<String>,
    /// Turn within the conversation. `None`: unknown.
    pub turn_index: Option<i64>,
    /// How retrieval failed.
    pub failure_type: RetrievalFailureType,
    /// The strategy that was tried.
    pub retrieval_strategy: String,
    /// The query, cut to 512 characters.
    pub query_text: String,
    /// Length in bytes of the original query.
    pub query_len: i64,
    /// Best score that was found.
    pub top_score: Option<f32>,
    /// The threshold at that time.
    pub confidence_threshold: Option<f32>,
    /// Number of results that were found. `None`: not measured.
    pub result_count: Option<i64>,
    /// How long the retrieval took, in milliseconds. `None`: not measured.
    pub latency_ms: Option<i64>,
    /// JSON list of the graph edge types that were followed.
    pub edge_types: Option<String>,
    /// What the backend said.
    pub error_context: Option<String>,
    /// When retrieval failed.
    #[serde(serialize_with = "super::serialize_moment")]
    #[cfg_attr(feature = "http", schema(value_type = String, format = DateTime))]
    pub created_at: SystemTime,
}

/// Which failures are wanted; default: all.
#[derive(Debug, Clone, Default)]
pub struct FailureFilter {
    /// Only those within this range.
    pub range: Option<TimeRange>,
    /// Only those of this type.
    pub failure_type: Option<RetrievalFailureType>,
    /// Only those of this strategy.
    pub strategy: Option<String>,
    /// Only those of this conversation.
    pub conversation: Option<String>,
    /// Only those whose query or error contains this text: in either case, composed or decomposed, wide or narrow. Accents
    /// count, and no script is written as another.
    pub text: Option<String>,
    /// Only those with exactly this query, as it is stored.
    pub query: Option<String>,
    /// Only those whose query is nearly the same as this one: the failures of a
    /// [group](crate::QueryGroup), by its key.
    pub question: Option<String>,
}

/// Which page of the failures: the newest one, or the one beside a cursor.
#[derive(Debug, Clone, Copy)]
pub struct PageRequest {
    pub(super) limit: usize,
    pub(super) from: From,
    /// `None`: half of the reader's timeout.
    patience: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum From {
    Newest,
    OlderThan(Cursor),
    NewerThan(Cursor),
}

impl PageRequest {
    /// The newest `limit` failures, 1 to 1000.
    pub fn newest(limit: usize) -> Self {
        Self { limit, from: From::Newest, patience: None }
    }

    /// The `limit` failures before the cursor.
    pub fn older_than(cursor: Cursor, limit: usize) -> Self {
        Self { limit, from: From::OlderThan(cursor), patience: None }
    }

    /// The `limit` failures after the cursor.
    pub fn newer_than(cursor: Cursor, limit: usize) -> Self {
        Self { limit, from: From::NewerThan(cursor), patience: None }
    }

    /// How long to look for failures that fit, about; what was found by then is the page. Default,
    /// and at most: half of the reader's timeout.
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }
}

/// A place between failures, in the order of their moments, and the end of the log when it was given: what is stored
/// later belongs to the newer failures, however old its moment is. As text, it can be given away and parsed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    at: Place,
    /// Largest id of the log then. `None`: it was not known.
    seen: Option<i64>,
}

/// A place in the order of moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place {
    created_at: i64,
    id: i64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.at.created_at, self.at.id)?;
        self.seen.map_or(Ok(()), |seen| write!(f, ".{seen}"))
    }
}

impl FromStr for Cursor {
    type Err = ReadError;

    fn from_str(text: &str) -> Result<Self, ReadError> {
        let parse = || {
            let mut parts = text.splitn(3, '.');
            let mut number = || parts.next().map(|part| part.parse().ok());
            let at = Place { created_at: number()??, id: number()?? };
            let seen = match number() {
                None => None,
                Some(seen) => Some(seen?),
            };
            Some(Self { at, seen })
        };
        parse().ok_or_else(|| ReadError::Invalid {
            parameter: "cursor",
            value: text.into(),
            expected: "a cursor that a page gave",
        })
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Some failures, the newest first, and how to go on.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct FailurePage {
    /// The failures, the newest first.
    pub failures: Vec<Failure>,
    /// For the page of older failures. `None`: there are none.
    #[cfg_attr(feature = "http", schema(value_type = Option<String>))]
    pub older: Option<Cursor>,
    /// For the page of newer failures, and of all that are stored from now on, also late with an earlier moment.
    #[cfg_attr(feature = "http", schema(value_type = Option<String>))]
    pub newer: Option<Cursor>,
    /// Whether the page is full or the end was reached. If not, the time was over before enough
    /// failures were found, and the cursor goes on from there.
    pub complete: bool,
}

/// A position in the log: after a failure, in the order in which failures were stored. As text it can be
/// given away and parsed later. It belongs to one log, and is recognised when another has its file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    log_id: Uuid,
    id: i64,
}

impl Position {
    /// The position after `failure`, in the log of this position.
    #[must_use]
    pub fn after(self, failure: &Failure) -> Self {
        Self { id: failure.id, ..self }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.log_id.simple(), self.id)
    }
}

impl FromStr for Position {
    type Err = ReadError;

    fn from_str(text: &str) -> Result<Self, ReadError> {
        let parse = || {
            let (log_id, id) = text.split_once('.')?;
            Some(Self { log_id: Uuid::try_parse(log_id).ok()?, id: id.parse().ok().filter(|id| *id >= 0)? })
        };
        parse().ok_or_else(|| ReadError::Invalid {
            parameter: "position",
            value: text.into(),
            expected: "a position that this log gave",
        })
    }
}

/// Failures that were stored after a [`Position`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Followed {
    /// The failures, in the order in which they were stored.
    pub failures: Vec<Failure>,
    /// The position to resume from.
    pub position: Position,
    /// `true` if the position was one of another log that had this file name before.
    pub replaced: bool,
}

impl FailureReader {
    /// A page of the failures that `filter` lets through, the newest first. A page costs the same
    /// at any depth.
    ///
    /// Failures that fit are looked for in their order until the page is full or half of the
    /// reader's timeout is over; then the page may be short, even empty, and says so.
    ///
    /// # Errors
    ///
    /// [`Invalid`](ReadError::Invalid): a limit that is not 1 to 1000. See [`ReadError`].
    pub async fn list(&self, filter: FailureFilter, page: PageRequest) -> Result<FailurePage, ReadError> {
        if !(1..=MAX_PER_PAGE).contains(&page.limit) {
            return Err(ReadError::Invalid {
                parameter: "limit",
                value: page.limit.to_string(),
                expected: "1 to 1000 failures",
            });
        }
        let patience = page.patience.unwrap_or(Duration::MAX).min(self.timeout / 2);
        self.pool.run(self.timeout, move |conn, _| list(conn, &filter, page, Deadline::after(patience))).await
    }

    /// Returns failures that `filter` lets through and that were stored after `position`, oldest first, 1 to
    /// 1000 of them, with the position to resume from. Without a position it returns no failure and the
    /// present end of the log. None is missed, in whatever order the failures happened.
    ///
    /// If the log was replaced since (its file was deleted, quarantined or restored), reading resumes with
    /// what the new log has to add, and [`replaced`](Followed::replaced) is `true`.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn follow(
        &self,
        filter: FailureFilter,
        position: Option<Position>,
        limit: usize,
    ) -> Result<Followed, ReadError> {
        let limit = i64::try_from(limit.clamp(1, MAX_PER_PAGE)).unwrap_or(1);
        self.pool.run(self.timeout, move |conn, _| follow(conn, &filter, position, limit)).await
    }

    /// The failure with this `event_id`.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn get(&self, event_id: Uuid) -> Result<Option<Failure>, ReadError> {
        self.pool.run(self.timeout, move |conn, _| get(conn, event_id)).await
    }
}

fn get(conn: &mut SqliteConnection, event_id: Uuid) -> Result<Option<Failure>, ReadError> {
    let row: Option<FailureRow> =
        diesel::sql_query(BY_EVENT_ID).bind::<Binary, _>(event_id.as_bytes().as_slice()).get_result(conn).optional()?;
    Ok(row.and_then(FailureRow::read))
}

fn follow(
    conn: &mut SqliteConnection,
    filter: &FailureFilter,
    position: Option<Position>,
    limit: i64,
) -> Result<Followed, ReadError> {
    let edge = store_log::edge(conn)?;
    let (after, replaced) = match position {
        None => (edge.newest_id, false),
        Some(Position { log_id, id }) if log_id == edge.log_id => (id, false),
        Some(_) => (edge.starts_after, true),
    };
    // As many rows as one statement may look at.
    let until = edge.newest_id.min(after.saturating_add(LARGEST_WINDOW));
    let rows: Vec<FailureRow> = diesel::sql_query(FOLLOW)
        .bind::<BigInt, _>(after)
        .bind::<BigInt, _>(until)
        .bind::<BigInt, _>(filter.range.map_or(i64::MIN, |range| range.from))
        .bind::<BigInt, _>(filter.range.map_or(i64::MAX, |range| range.end(clock::now())))
        .bind::<BigInt, _>(limit)
        .bind::<Nullable<Text>, _>(filter.failure_type.map(RetrievalFailureType::as_str))
        .bind::<Nullable<Text>, _>(filter.strategy.as_deref())
        .bind::<Nullable<Text>, _>(filter.conversation.as_deref())
        .bind::<Nullable<Text>, _>(filter.folded_text())
        .bind::<Nullable<Text>, _>(filter.query.as_deref())
        .bind::<Nullable<Text>, _>(filter.question.as_deref())
        .load(conn)?;
    let full = i64::try_from(rows.len()).is_ok_and(|rows| rows == limit);
    // No id is used twice, so that a position beyond the newest row was never given: it falls back to the end.
    let end = if full { rows.last().map_or(until, |row| row.id) } else { until };
    Ok(Followed {
        failures: rows.into_iter().filter_map(FailureRow::read).collect(),
        position: Position { log_id: edge.log_id, id: end },
        replaced,
    })
}

/// Fills a page from one window of rows after the other.
pub(super) fn list(
    conn: &mut SqliteConnection,
    filter: &FailureFilter,
    page: PageRequest,
    deadline: Deadline,
) -> Result<FailurePage, ReadError> {
    let range = filter.range.unwrap_or(TimeRange::all());
    let (start, end) = (Place::at(range.from), Place::at(range.end(clock::now())));
    // First, so that a row that comes meanwhile is a newer one for the next page.
    let log = store_log::edge_of_any(conn)?;
    let seen = match page.from {
        From::Newest => log.newest_id,
        From::OlderThan(cursor) | From::NewerThan(cursor) => cursor.seen.unwrap_or(log.newest_id),
    };
    // The log was replaced by one that is shorter.
    let seen = if seen > log.newest_id { log.starts_after.min(log.newest_id) } else { seen };
    // What is still to be looked at: from `low` up to, and without, `high`.
    let (direction, mut low, mut high) = match page.from {
        From::Newest => (Direction::Backwards, start, end),
        From::OlderThan(cursor) => (Direction::Backwards, start, end.min(cursor.at)),
        From::NewerThan(cursor) => (Direction::Forwards, start.max(cursor.at.next()), end),
    };
    let begin = (low, high);
    let mut late = Late { rows: Vec::new(), seen };
    if direction == Direction::Forwards {
        late = late_rows(conn, filter, (start, begin.0), (seen, log.newest_id), page.limit)?;
        if late.seen < log.newest_id {
            // The page is full, or the next one looks further.
            let newer = Cursor { at: begin.0.previous(), seen: Some(late.seen) };
            late.rows.sort_by_key(|row| std::cmp::Reverse(row.place()));
            let older = Some(Cursor { at: begin.0, seen: Some(late.seen) });
            let complete = late.rows.len() == page.limit;
            let failures = late.rows.into_iter().filter_map(FailureRow::read).collect();
            return Ok(FailurePage { failures, older, newer: Some(newer), complete });
        }
    }
    // One more, to know whether there is another page.
    let wanted = page.limit.saturating_sub(late.rows.len()) + 1;
    let mut window = if filter.is_selective() { FIRST_WINDOW } else { i64::try_from(wanted).unwrap_or(i64::MAX) };
    let mut rows: Vec<FailureRow> = Vec::new();
    let mut complete = true;
    while low < high {
        let began = Instant::now();
        let edge = direction.edge(conn, low, high, window)?;
        let (from, to) = match (direction, edge) {
            (_, None) => (low, high),
            (Direction::Backwards, Some(edge)) => (edge, high),
            (Direction::Forwards, Some(edge)) => (low, edge),
        };
        rows.extend(direction.matches(conn, filter, (from, to), log.newest_id, wanted - rows.len())?);
        match direction {
            Direction::Backwards => high = from,
            Direction::Forwards => low = to,
        }
        if edge.is_none() || rows.len() >= wanted {
            break;
        }
        // Not one more that would take longer than there is time.
        let (took, left) = (began.elapsed(), deadline.left());
        if took > left || left.is_zero() {
            complete = false;
            break;
        }
        if 4 * took < left {
            window = (window * 4).min(LARGEST_WINDOW);
        }
    }
    let more = rows.len() == wanted;
    rows.truncate(wanted - 1);
    let last = rows.last().map(FailureRow::place);
    let first = rows.first().map(FailureRow::place);
    let (older, newer) = match direction {
        Direction::Backwards => {
            let older = if complete { last.filter(|_| more) } else { Some(high) };
            (older, first.or_else(|| (!matches!(page.from, From::Newest)).then(|| begin.1.previous())))
        }
        Direction::Forwards => {
            let newer = if complete { last.unwrap_or_else(|| begin.0.previous()) } else { low.previous() };
            (Some(first.unwrap_or(begin.0)), Some(newer))
        }
    };
    rows.extend(late.rows);
    rows.sort_by_key(|row| std::cmp::Reverse(row.place()));
    let cursor = |at| Cursor { at, seen: Some(late.seen) };
    Ok(FailurePage {
        failures: rows.into_iter().filter_map(FailureRow::read).collect(),
        older: older.map(cursor),
        newer: newer.map(cursor),
        complete,
    })
}

/// Rows that were stored after the end of the log that a cursor knows, and happened before its place.
struct Late {
    rows: Vec<FailureRow>,
    /// The rows up to this id were looked at.
    seen: i64,
}

/// Reads late rows, `limit` of them at most, from one window of ids.
fn late_rows(
    conn: &mut SqliteConnection,
    filter: &FailureFilter,
    (start, end): (Place, Place),
    (seen, newest): (i64, i64),
    limit: usize,
) -> QueryResult<Late> {
    let until = newest.min(seen.saturating_add(LARGEST_WINDOW));
    if until <= seen || start >= end {
        return Ok(Late { rows: Vec::new(), seen: newest });
    }
    let rows: Vec<FailureRow> = diesel::sql_query(LATE)
        .bind::<BigInt, _>(seen)
        .bind::<BigInt, _>(until)
        .bind::<BigInt, _>(start.created_at)
        .bind::<BigInt, _>(end.created_at)
        .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind::<Nullable<Text>, _>(filter.failure_type.map(RetrievalFailureType::as_str))
        .bind::<Nullable<Text>, _>(filter.strategy.as_deref())
        .bind::<Nullable<Text>, _>(filter.conversation.as_deref())
        .bind::<Nullable<Text>, _>(filter.folded_text())
        .bind::<Nullable<Text>, _>(filter.query.as_deref())
        .bind::<Nullable<Text>, _>(filter.question.as_deref())
        .bind::<BigInt, _>(end.id)
        .load(conn)?;
    let full = rows.len() == limit;
    let seen = if full { rows.last().map_or(until, |row| row.id) } else { until };
    Ok(Late { rows, seen })
}

impl FailureFilter {
    /// Whether it may have to look at many rows for one that fits.
    fn is_selective(&self) -> bool {
        let Self { range: _, failure_type, strategy, conversation, text, query, question } = self;
        let texts = [strategy, conversation, text, query, question];
        failure_type.is_some() || texts.iter().any(|text| text.is_some())
    }

    /// The text as SQL compares it.
    fn folded_text(&self) -> Option<String> {
        let text = self.text.as_deref().filter(|text| !text.is_empty())?;
        Some(Folded::new(text).as_str().to_owned())
    }
}

impl Cursor {
    /// Before everything.
    pub(super) const BEGINNING: Self = Self { at: Place { created_at: i64::MIN, id: i64::MIN }, seen: None };
}

impl Place {
    /// Before everything that happened at `moment`, in Unix milliseconds.
    fn at(moment: i64) -> Self {
        Self { created_at: moment, id: i64::MIN }
    }

    fn next(self) -> Self {
        Self { id: self.id.saturating_add(1), ..self }
    }

    fn previous(self) -> Self {
        match self.id {
            i64::MIN => Self { created_at: self.created_at.saturating_sub(1), id: i64::MAX },
            id => Self { id: id - 1, ..self },
        }
    }
}

/// In which order rows are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// From the newest on.
    Backwards,
    /// From the oldest on.
    Forwards,
}

impl Direction {
    /// Where the first `window` rows of those from `low` up to `high` end. `None`: there are not
    /// so many.
    fn edge(self, conn: &mut SqliteConnection, low: Place, high: Place, window: i64) -> QueryResult<Option<Place>> {
        #[derive(QueryableByName)]
        struct Edge {
            #[diesel(sql_type = BigInt)]
            created_at: i64,
            #[diesel(sql_type = BigInt)]
            id: i64,
        }
        let (sql, offset) = match self {
            Self::Backwards => (EDGE_BACKWARDS, window - 1),
            Self::Forwards => (EDGE_FORWARDS, window),
        };
        let edge: Option<Edge> = diesel::sql_query(sql)
            .bind::<BigInt, _>(low.created_at)
            .bind::<BigInt, _>(low.id)
            .bind::<BigInt, _>(high.created_at)
            .bind::<BigInt, _>(high.id)
            .bind::<BigInt, _>(offset)
            .get_result(conn)
            .optional()?;
        Ok(edge.map(|Edge { created_at, id }| Place { created_at, id }))
    }

    /// The first `limit` rows of those from `low` up to `high`, and with an id up to `newest`, that `filter` lets through.
    fn matches(
        self,
        conn: &mut SqliteConnection,
        filter: &FailureFilter,
        (low, high): (Place, Place),
        newest: i64,
        limit: usize,
    ) -> QueryResult<Vec<FailureRow>> {
        let sql = match self {
            Self::Backwards => MATCHES_BACKWARDS,
            Self::Forwards => MATCHES_FORWARDS,
        };
        diesel::sql_query(sql)
            .bind::<BigInt, _>(low.created_at)
            .bind::<BigInt, _>(low.id)
            .bind::<BigInt, _>(high.created_at)
            .bind::<BigInt, _>(high.id)
            .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
            .bind::<Nullable<Text>, _>(filter.failure_type.map(RetrievalFailureType::as_str))
            .bind::<Nullable<Text>, _>(filter.strategy.as_deref())
            .bind::<Nullable<Text>, _>(filter.conversation.as_deref())
            .bind::<Nullable<Text>, _>(filter.folded_text())
            .bind::<Nullable<Text>, _>(filter.query.as_deref())
            .bind::<Nullable<Text>, _>(filter.question.as_deref())
            .bind::<BigInt, _>(newest)
            .load(conn)
    }
}

macro_rules! columns {
    () => {
        "SELECT id, event_id, conversation_id, turn_index, failure_type, retrieval_strategy, query_text, query_len, \
         top_score, confidence_threshold, result_count, latency_ms, edge_types, error_context, created_at \
         FROM memory_retrieval_failures "
    };
}
macro_rules! between {
    () => {
        "WHERE (created_at, id) >= (?1, ?2) AND (created_at, id) < (?3, ?4) "
    };
}
macro_rules! that_match {
    () => {
        "AND (?6 IS NULL OR failure_type = ?6) AND (?7 IS NULL OR retrieval_strategy = ?7) \
         AND (?8 IS NULL OR conversation_id = ?8) \
         AND (?9 IS NULL OR memory_retrieval_contains(query_text, ?9) \
         OR memory_retrieval_contains(coalesce(error_context, ''), ?9)) \
         AND (?10 IS NULL OR query_text = ?10) AND (?11 IS NULL OR memory_retrieval_nearly_the_same(query_text, ?11)) "
    };
}
const BY_EVENT_ID: &str = concat!(columns!(), "WHERE event_id = ?1");
const EDGE_BACKWARDS: &str = concat!(
    "SELECT created_at, id FROM memory_retrieval_failures ",
    between!(),
    "ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET ?5"
);
const EDGE_FORWARDS: &str = concat!(
    "SELECT created_at, id FROM memory_retrieval_failures ",
    between!(),
    "ORDER BY created_at, id LIMIT 1 OFFSET ?5"
);
const MATCHES_BACKWARDS: &str =
    concat!(columns!(), between!(), that_match!(), "AND id <= ?12 ORDER BY created_at DESC, id DESC LIMIT ?5");
const MATCHES_FORWARDS: &str =
    concat!(columns!(), between!(), that_match!(), "AND id <= ?12 ORDER BY created_at, id LIMIT ?5");

/// By id: rows that came late are few among those that came.
const LATE: &str = concat!(
    columns!(),
    "WHERE id > ?1 AND id <= ?2 AND +created_at >= ?3 AND (+created_at, id) < (?4, ?12) ",
    that_match!(),
    "ORDER BY id LIMIT ?5"
);

const FOLLOW: &str = concat!(
    columns!(),
    "WHERE id > ?1 AND id <= ?2 AND created_at >= ?3 AND created_at < ?4 ",
    that_match!(),
    "ORDER BY id LIMIT ?5"
);

#[derive(QueryableByName)]
struct FailureRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Binary)]
    event_id: Vec<u8>,
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
    #[diesel(sql_type = BigInt)]
    query_len: i64,
    #[diesel(sql_type = Nullable<Float>)]
    top_score: Option<f32>,
    #[diesel(sql_type = Nullable<Float>)]
    confidence_threshold: Option<f32>,
    #[diesel(sql_type = Nullable<BigInt>)]
    result_count: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    latency_ms: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    edge_types: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    error_context: Option<String>,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
}

impl FailureRow {
    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: self.id }
    }

    /// `None`: a type of a newer version.
    fn read(self) -> Option<Failure> {
        Some(Failure {
            id: self.id,
            event_id: Uuid::from_slice(&self.event_id).unwrap_or_default(),
            conversation_id: self.conversation_id,
            turn_index: self.turn_index,
            failure_type: RetrievalFailureType::parse(&self.failure_type)?,
            retrieval_strategy: self.retrieval_strategy,
            query_text: self.query_text,
            query_len: self.query_len,
            top_score: self.top_score,
            confidence_threshold: self.confidence_threshold,
            result_count: self.result_count,
            latency_ms: self.latency_ms,
            edge_types: self.edge_types,
            error_context: self.error_context,
            created_at: moment(self.created_at),
        })
    }
}

/// Numbers beyond 2^53 do not survive every JSON reader.
fn as_text<S: Serializer>(id: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::{migrated, plan};

    #[test]
    fn every_statement_uses_the_index_that_was_meant() {
        let mut conn = migrated();
        let by_time = "memory_retrieval_failures USING INDEX memory_retrieval_failures_created_at \
             (created_at>? AND created_at<?)";
        for (sql, meant) in [
            (EDGE_BACKWARDS, by_time.replace("USING INDEX", "USING COVERING INDEX")),
            (EDGE_FORWARDS, by_time.replace("USING INDEX", "USING COVERING INDEX")),
            (MATCHES_BACKWARDS, by_time.to_owned()),
            (MATCHES_FORWARDS, by_time.to_owned()),
            (
                BY_EVENT_ID,
                "memory_retrieval_failures USING INDEX memory_retrieval_failures_event_id (event_id=?)".to_owned(),
            ),
        ] {
            assert_eq!(plan(&mut conn, sql), [format!("SEARCH {meant}")], "{sql}");
        }
        let by_id = "SEARCH memory_retrieval_failures USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)";
        assert_eq!([plan(&mut conn, FOLLOW), plan(&mut conn, LATE)], [[by_id], [by_id]]);
    }

    #[test]
    fn a_search_whose_time_is_over_says_so_and_can_be_continued_in_both_directions() {
        let mut conn = migrated();
        diesel::sql_query(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 9000) \
             INSERT INTO memory_retrieval_failures (event_id, turn_index, failure_type, retrieval_strategy, query_text, \
             query_len, result_count, latency_ms, created_at) \
             SELECT randomblob(16), n, 'no_hit', CASE n WHEN 1 THEN 'first' WHEN 9000 THEN 'last' ELSE 'other' END, \
             'q', 1, 0, 0, n / 3 FROM n",
        )
        .execute(&mut conn)
        .unwrap();
        let in_no_time = Deadline::after(Duration::ZERO);
        let mut look = |strategy: &str, mut page: PageRequest| {
            let filter = FailureFilter { strategy: Some(strategy.into()), ..FailureFilter::default() };
            for rounds in 1.. {
                let found = list(&mut conn, &filter, page, in_no_time).unwrap();
                if found.complete {
                    return (
                        rounds,
                        found.failures.iter().map(|failure| failure.turn_index.unwrap()).collect::<Vec<_>>(),
                    );
                }
                assert!(found.failures.is_empty());
                page = match page.from {
                    From::NewerThan(_) => PageRequest::newer_than(found.newer.unwrap(), 5),
                    _ => PageRequest::older_than(found.older.unwrap(), 5),
                };
            }
            unreachable!()
        };
        assert_eq!(look("first", PageRequest::newest(5)), (5, vec![1]));
        assert_eq!(look("last", PageRequest::newer_than(Cursor::BEGINNING, 5)), (5, vec![9000]));
    }
}
