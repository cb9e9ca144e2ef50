//! The failures themselves: one by one, and page by page.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::error::ReadError;
use crate::model::failure::{Direction, Failure, FailureFilter, Place};
use crate::model::time::{TimeRange, Timestamp};
use crate::report::FailureReader;
use crate::report::list::{read_hex, write_hex};
use crate::store::reads::{Deadline, Lane};
use crate::store::snapshot::{Snapshot, StoredFailure};

/// Failures on one page at most.
const MAX_PER_PAGE: usize = 1000;
/// Rows that one statement looks at: the deadline is looked at between statements.
const FIRST_WINDOW: i64 = 2000;
const LARGEST_WINDOW: i64 = 50_000;

/// Selects a page of failures: the newest one, or the one beside a cursor.
#[derive(Debug, Clone, Copy)]
pub struct PageRequest {
    pub(crate) limit: usize,
    pub(crate) from: From,
    /// `None`: half of the reader's timeout.
    time_budget: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum From {
    Newest,
    OlderThan(Cursor),
    NewerThan(Cursor),
}

impl From {
    fn cursor(self) -> Option<Cursor> {
        match self {
            Self::Newest => None,
            Self::OlderThan(cursor) | Self::NewerThan(cursor) => Some(cursor),
        }
    }
}

impl PageRequest {
    /// The newest `limit` failures, 1 to 1000.
    pub fn newest(limit: usize) -> Self {
        Self {
            limit,
            from: From::Newest,
            time_budget: None,
        }
    }

    /// The `limit` failures before the cursor.
    pub fn older_than(cursor: Cursor, limit: usize) -> Self {
        Self {
            limit,
            from: From::OlderThan(cursor),
            time_budget: None,
        }
    }

    /// The `limit` failures after the cursor.
    pub fn newer_than(cursor: Cursor, limit: usize) -> Self {
        Self {
            limit,
            from: From::NewerThan(cursor),
            time_budget: None,
        }
    }

    /// The `limit` failures with which the listing continues that gave the cursor.
    pub fn after(cursor: Cursor, limit: usize) -> Self {
        match cursor.direction {
            Direction::Backwards => Self::older_than(cursor, limit),
            Direction::Forwards => Self::newer_than(cursor, limit),
        }
    }

    /// Sets the time in which a read looks for failures that fit. The page then has those found by
    /// then. Default and maximum: half of the reader's timeout.
    pub fn time_budget(self, time_budget: Duration) -> Self {
        Self {
            time_budget: Some(time_budget),
            ..self
        }
    }
}

/// A place between failures of one log, in the order of their moments, and the direction in which a
/// page continues from it. It contains the end of the log when it was given: what is stored later
/// belongs to the newer failures, however old its moment is. As text it is opaque, and can be given
/// away and parsed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    at: Place,
    /// Largest id of the log then. `None`: it was not known.
    seen: Option<i64>,
    /// `None`: of any log.
    log_id: Option<Uuid>,
    direction: Direction,
}

/// The first byte of a cursor: its version.
const CURSOR_VERSION: u8 = 1;
/// Bytes of a cursor: version, direction, log, moment, id, end of the log.
const CURSOR_BYTES: usize = 2 + 16 + 3 * 8;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(CURSOR_BYTES);
        bytes.extend([
            CURSOR_VERSION,
            u8::from(self.direction == Direction::Forwards),
        ]);
        bytes.extend(self.log_id.unwrap_or_default().as_bytes());
        for number in [
            self.at.created_at.as_millis(),
            self.at.id,
            self.seen.unwrap_or(-1),
        ] {
            bytes.extend(number.to_be_bytes());
        }
        write_hex(f, &bytes)
    }
}

impl FromStr for Cursor {
    type Err = ReadError;

    fn from_str(text: &str) -> Result<Self, ReadError> {
        let parse = || {
            let bytes: [u8; CURSOR_BYTES] = read_hex(text)?;
            let (head, numbers) = bytes.split_at(18);
            let (CURSOR_VERSION, direction @ 0..=1) = (*head.first()?, *head.get(1)?) else {
                return None;
            };
            let mut numbers = numbers
                .chunks_exact(8)
                .map(|bytes| bytes.try_into().map(i64::from_be_bytes));
            let mut number = || numbers.next()?.ok();
            let at = Place {
                created_at: Timestamp::from_millis(number()?),
                id: number()?,
            };
            Some(Self {
                at,
                seen: Some(number()?).filter(|seen| *seen >= 0),
                log_id: Uuid::from_slice(head.get(2..)?)
                    .ok()
                    .filter(|id| !id.is_nil()),
                direction: if direction == 1 {
                    Direction::Forwards
                } else {
                    Direction::Backwards
                },
            })
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

/// Some failures, the newest first, and the pages beside them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct FailurePage {
    /// The failures, the newest first.
    #[serde(rename = "data")]
    pub failures: Vec<Failure>,
    /// The page that continues this one, in the same direction. `None`: this is the last one.
    #[cfg_attr(feature = "http", schema(value_type = Option<String>))]
    pub next: Option<Cursor>,
    /// `true` if there are further failures in this direction, or the search for them was not
    /// finished.
    pub has_more: bool,
    /// The page of older failures. `None`: there are none.
    #[cfg_attr(feature = "http", schema(value_type = Option<String>))]
    pub older: Option<Cursor>,
    /// The page of newer failures, and of all that are stored from now on, also late with an
    /// earlier moment.
    #[cfg_attr(feature = "http", schema(value_type = Option<String>))]
    pub newer: Option<Cursor>,
    /// `true` if the page is full or the end was reached. If not, the time was over before enough
    /// failures were found, and `next` continues from there.
    pub complete: bool,
    /// The moment up to which was searched. `None`: to the end.
    #[serde(serialize_with = "crate::model::time::serialize_optional_moment")]
    #[cfg_attr(feature = "http", schema(value_type = Option<String>, format = DateTime))]
    pub searched_to: Option<SystemTime>,
}

impl FailurePage {
    fn new(
        rows: Vec<StoredFailure>,
        (older, newer): (Option<Cursor>, Option<Cursor>),
        direction: Direction,
        ends: Ends,
    ) -> Self {
        let cursor = |cursor: Option<Cursor>, direction| {
            cursor.map(|cursor| Cursor {
                direction,
                ..cursor
            })
        };
        let (older, newer) = (
            cursor(older, Direction::Backwards),
            cursor(newer, Direction::Forwards),
        );
        let next = if direction == Direction::Backwards {
            older
        } else {
            newer
        };
        Self {
            failures: rows.into_iter().filter_map(|row| row.failure).collect(),
            next,
            has_more: ends.has_more || !ends.complete,
            older,
            newer,
            complete: ends.complete,
            searched_to: next
                .filter(|_| !ends.complete)
                .map(|next| next.at.created_at.into()),
        }
    }
}

/// The ends of a page.
struct Ends {
    has_more: bool,
    complete: bool,
}

/// A position in the log: after a failure, in the order in which failures were stored. As text it
/// can be given away and parsed later. It belongs to one log, and is recognised when another has
/// its file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    log_id: Uuid,
    id: i64,
}

impl Position {
    /// The position after `failure`, in the log of this position.
    #[must_use]
    pub fn after(self, failure: &Failure) -> Self {
        Self {
            id: failure.id,
            ..self
        }
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
            Some(Self {
                log_id: Uuid::try_parse(log_id).ok()?,
                id: id.parse().ok().filter(|id| *id >= 0)?,
            })
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
pub struct TailPage {
    /// The failures, in the order in which they were stored.
    pub failures: Vec<Failure>,
    /// The position to resume from.
    pub position: Position,
    /// `true` if the position was one of another log that had this file name before.
    pub replaced: bool,
    /// `true` if the end of the log is not reached.
    pub has_more: bool,
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
    pub async fn list(
        &self,
        filter: FailureFilter,
        page: PageRequest,
    ) -> Result<FailurePage, ReadError> {
        if !(1..=MAX_PER_PAGE).contains(&page.limit) {
            return Err(ReadError::Invalid {
                parameter: "limit",
                value: page.limit.to_string(),
                expected: "1 to 1000 failures",
            });
        }
        let time_budget = page
            .time_budget
            .unwrap_or(Duration::MAX)
            .min(self.timeout / 2);
        let lane = lane_of(&filter);
        self.reads
            .run(lane, self.timeout, move |snapshot, _| {
                list(snapshot, &filter, page, Deadline::after(time_budget))
            })
            .await
    }

    /// Returns failures that `filter` lets through and that were stored after `position`, oldest
    /// first, 1 to 1000 of them, with the position to resume from. Without a position it returns no
    /// failure and the present end of the log. None is missed, in whatever order the failures
    /// happened.
    ///
    /// If the log was replaced since (its file was deleted, quarantined or restored), reading
    /// resumes with what the new log has to add, and [`replaced`](TailPage::replaced) is `true`.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn tail(
        &self,
        filter: FailureFilter,
        position: Option<Position>,
        limit: usize,
    ) -> Result<TailPage, ReadError> {
        let limit = limit.clamp(1, MAX_PER_PAGE);
        let lane = lane_of(&filter);
        self.reads
            .run(lane, self.timeout, move |snapshot, _| {
                tail(snapshot, &filter, position, limit)
            })
            .await
    }

    /// The failure with this `event_id`.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn get(&self, event_id: Uuid) -> Result<Option<Failure>, ReadError> {
        self.reads
            .run(Lane::Quick, self.timeout, move |snapshot, _| {
                snapshot.failure(event_id)
            })
            .await
    }
}

/// A filter may have to look at many failures for one that it lets through.
fn lane_of(filter: &FailureFilter) -> Lane {
    if filter.is_selective() {
        Lane::Heavy
    } else {
        Lane::Quick
    }
}

fn tail(
    snapshot: &mut dyn Snapshot,
    filter: &FailureFilter,
    position: Option<Position>,
    limit: usize,
) -> Result<TailPage, ReadError> {
    let edge = snapshot.log()?;
    let (after, replaced) = match position {
        None => (edge.newest_id, false),
        // No id is used twice, so that a position beyond the newest row was never given.
        Some(Position { log_id, id }) if log_id == edge.log_id => (id.min(edge.newest_id), false),
        Some(_) => (edge.starts_after, true),
    };
    // As many rows as one statement may look at.
    let until = edge.newest_id.min(after.saturating_add(LARGEST_WINDOW));
    let within = filter
        .range
        .map_or(Timestamp::MIN..Timestamp::MAX, |range| {
            range.from..range.end(Timestamp::now())
        });
    let places = Place::at(within.start)..Place::at(within.end);
    let rows = snapshot.stored_within(after..until, places, filter, limit)?;
    let end = rows
        .last()
        .filter(|_| rows.len() == limit)
        .map_or(until, |row| row.place.id);
    Ok(TailPage {
        failures: rows.into_iter().filter_map(|row| row.failure).collect(),
        position: Position {
            log_id: edge.log_id,
            id: end,
        },
        replaced,
        has_more: end < edge.newest_id,
    })
}

/// Fills a page from one window of rows after the other.
pub(crate) fn list(
    snapshot: &mut dyn Snapshot,
    filter: &FailureFilter,
    page: PageRequest,
    deadline: Deadline,
) -> Result<FailurePage, ReadError> {
    let range = filter.range.unwrap_or(TimeRange::all());
    let (start, end) = (
        Place::at(range.from),
        Place::at(range.end(Timestamp::now())),
    );
    // First, so that a row that comes meanwhile is a newer one for the next page.
    let log = snapshot.log_of_any_version()?;
    let seen = match page.from {
        From::Newest => log.newest_id,
        From::OlderThan(cursor) | From::NewerThan(cursor) => cursor.seen.unwrap_or(log.newest_id),
    };
    let log_id = Some(log.log_id).filter(|id| !id.is_nil());
    if let Some(cursor) = page.from.cursor()
        && let (Some(of_cursor), Some(now)) = (cursor.log_id, log_id)
        && of_cursor != now
    {
        let expected =
            "a cursor of this log, which has replaced another one: begin without a cursor";
        return Err(ReadError::Invalid {
            parameter: "cursor",
            value: cursor.to_string(),
            expected,
        });
    }
    let seen = seen.min(log.newest_id);
    // The part not visited yet: from `low` up to, and without, `high`.
    let (direction, mut low, mut high) = match page.from {
        From::Newest => (Direction::Backwards, start, end),
        From::OlderThan(cursor) => (Direction::Backwards, start, end.min(cursor.at)),
        From::NewerThan(cursor) => (Direction::Forwards, start.max(cursor.at.next()), end),
    };
    let begin = (low, high);
    let mut late = Late {
        rows: Vec::new(),
        seen,
    };
    if direction == Direction::Forwards {
        late = late_rows(
            snapshot,
            filter,
            (start, begin.0),
            (seen, log.newest_id),
            page.limit,
        )?;
        if late.seen < log.newest_id {
            // The page is full, or the next one looks further.
            late.rows.sort_by_key(|row| std::cmp::Reverse(row.place));
            let cursor = |at| {
                Some(Cursor {
                    at,
                    seen: Some(late.seen),
                    log_id,
                    direction,
                })
            };
            let cursors = (cursor(begin.0), cursor(begin.0.previous()));
            let ends = Ends {
                has_more: true,
                complete: late.rows.len() == page.limit,
            };
            return Ok(FailurePage::new(late.rows, cursors, direction, ends));
        }
    }
    // One more, to know whether there is another page.
    let wanted = page.limit.saturating_sub(late.rows.len()) + 1;
    let mut window = if filter.is_selective() {
        FIRST_WINDOW
    } else {
        i64::try_from(wanted).unwrap_or(i64::MAX)
    };
    let mut rows: Vec<StoredFailure> = Vec::new();
    let mut complete = true;
    while low < high {
        let began = Instant::now();
        let edge = snapshot.window_end(direction, low..high, window)?;
        let (from, to) = match (direction, edge) {
            (_, None) => (low, high),
            (Direction::Backwards, Some(edge)) => (edge, high),
            (Direction::Forwards, Some(edge)) => (low, edge),
        };
        rows.extend(snapshot.failures(
            direction,
            from..to,
            log.newest_id,
            filter,
            wanted - rows.len(),
        )?);
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
    let last = rows.last().map(|row| row.place);
    let first = rows.first().map(|row| row.place);
    let (older, newer) = match direction {
        Direction::Backwards => {
            let older = if complete {
                last.filter(|_| more)
            } else {
                Some(high)
            };
            (
                older,
                first.or_else(|| (!matches!(page.from, From::Newest)).then(|| begin.1.previous())),
            )
        }
        Direction::Forwards => {
            let newer = if complete {
                last.unwrap_or_else(|| begin.0.previous())
            } else {
                low.previous()
            };
            (Some(first.unwrap_or(begin.0)), Some(newer))
        }
    };
    rows.extend(late.rows);
    rows.sort_by_key(|row| std::cmp::Reverse(row.place));
    let cursor = |at: Place| Cursor {
        at,
        seen: Some(late.seen),
        log_id,
        direction,
    };
    let cursors = (older.map(cursor), newer.map(cursor));
    Ok(FailurePage::new(
        rows,
        cursors,
        direction,
        Ends {
            has_more: more,
            complete,
        },
    ))
}

/// Rows that were stored after the end of the log that a cursor knows, and happened before its
/// place.
struct Late {
    rows: Vec<StoredFailure>,
    /// The rows up to this id were looked at.
    seen: i64,
}

/// Reads late rows, `limit` of them at most, from one window of ids.
fn late_rows(
    snapshot: &mut dyn Snapshot,
    filter: &FailureFilter,
    (start, end): (Place, Place),
    (seen, newest): (i64, i64),
    limit: usize,
) -> Result<Late, ReadError> {
    let until = newest.min(seen.saturating_add(LARGEST_WINDOW));
    if until <= seen || start >= end {
        return Ok(Late {
            rows: Vec::new(),
            seen: newest,
        });
    }
    let rows = snapshot.stored_within(seen..until, start..end, filter, limit)?;
    let seen = rows
        .last()
        .filter(|_| rows.len() == limit)
        .map_or(until, |row| row.place.id);
    Ok(Late { rows, seen })
}

impl Cursor {
    /// Before everything, in any log.
    pub(crate) const BEGINNING: Self = Self {
        at: Place::BEGINNING,
        seen: None,
        log_id: None,
        direction: Direction::Forwards,
    };
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::memory::MemoryLog;

    #[test]
    fn search_out_of_time_is_incomplete_and_resumes_either_way() {
        let mut log = MemoryLog::default();
        for nth in 1..=9000 {
            log.fail(Timestamp::from_millis(nth / 3), |failure| {
                failure.turn_index = Some(nth);
                failure.retrieval_strategy = match nth {
                    1 => "first".into(),
                    9000 => "last".into(),
                    _ => "other".into(),
                };
            });
        }
        let in_no_time = Deadline::after(Duration::ZERO);
        let mut look = |strategy: &str, mut page: PageRequest| {
            let filter = FailureFilter {
                retrieval_strategy: vec![strategy.into()],
                ..FailureFilter::default()
            };
            for rounds in 1.. {
                let found = list(&mut log, &filter, page, in_no_time).unwrap();
                if found.complete {
                    return (
                        rounds,
                        found
                            .failures
                            .iter()
                            .map(|failure| failure.turn_index.unwrap())
                            .collect::<Vec<_>>(),
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
        assert_eq!(
            look("last", PageRequest::newer_than(Cursor::BEGINNING, 5)),
            (5, vec![9000])
        );
    }
}
