//! Routes that read the log.

#![expect(unused_qualifications, reason = "in what utoipa generates")]

pub(crate) mod queries;
pub(crate) mod shared;
pub(crate) mod streams;
pub(crate) mod tail;

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use actix_web::web::{Bytes, Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::error::ReadError;
use crate::http::Api;
use crate::http::params::Params;
use crate::http::problem::{Code, Problem, ReadProblems};
use crate::model::failure::{Failure, FailureFilter};
use crate::model::outcome::RetrievalFailureType;
use crate::model::source::{Labels, SourceFilter};
use crate::model::time::TimeRange;
use crate::report::{
    AttemptFilter, Calibration, Conversations, Cursor, ExportFormat, FailurePage, ListCursor,
    ListRequest, MAX_STEPS, PageRequest, StrategySummary, Summary, ThresholdChanges, Timeseries,
    TimeseriesRequest,
};

/// Default time range.
const DEFAULT_SINCE: Duration = Duration::from_secs(24 * 60 * 60);
/// Default number of items on a page.
const DEFAULT_LIMIT: usize = 50;
/// Maximum number of values of one filter. It bounds the size of the SQL.
pub(crate) const MAX_VALUES: usize = 100;
/// Last second of the year 9999 as Unix time. RFC 3339 has no later years.
const MAX_UNIX_SECONDS: i64 = 253_402_300_799;

/// Defines the parameters of a route: a time range, and parameters of its own.
macro_rules! ranged {
    ($(#[$about:meta])* struct $name:ident { $($own:tt)* }) => {
        $(#[$about])*
        #[derive(Debug, Deserialize, IntoParams)]
        #[into_params(parameter_in = Query)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            /// Length of the time range before `to`: a number and `s`, `m`, `h`, `d` or `w`, such
            /// as `24h`. It excludes `from`.
            #[serde(default)]
            #[param(pattern = "^[1-9][0-9]{0,5}[smhdw]$")]
            since: Option<String>,
            /// Beginning of the time range, in RFC 3339.
            #[serde(default)]
            #[param(format = DateTime)]
            from: Option<String>,
            /// End of the time range, in RFC 3339; now by default.
            #[serde(default)]
            #[param(format = DateTime)]
            to: Option<String>,
            $($own)*
        }

        impl $name {
            fn period(&self) -> Result<$crate::http::read::PeriodBounds, Problem> {
                $crate::http::read::period(self.since.as_deref(), self.from.as_deref(), self.to.as_deref())
            }
        }
    };
}
pub(crate) use ranged;

/// Defines the parameters of a route: a time range, a filter of failures, and parameters of its
/// own.
macro_rules! filtered {
    ($(#[$about:meta])* struct $name:ident { $($own:tt)* }) => {
        ranged! {
            $(#[$about])*
            struct $name {
                /// Only failures of this type. May occur several times.
                #[serde(default)]
                failure_type: Vec<RetrievalFailureType>,
                /// Only failures of this strategy. May occur several times.
                #[serde(default)]
                retrieval_strategy: Vec<String>,
                /// Only failures of this conversation. May occur several times.
                #[serde(default)]
                conversation_id: Vec<String>,
                /// Only failures with exactly this query in its stored form. May occur several
                /// times.
                #[serde(default)]
                query_text: Vec<String>,
                /// Only failures whose query or error contains this text.
                #[serde(default)]
                text: Option<String>,
                /// Only failures of the group of queries with this `id`.
                #[serde(default)]
                query_group: Option<String>,
                /// Only failures that this source sent; empty: that have no source. May occur
                /// several times.
                #[serde(default)]
                source: Vec<String>,
                /// Only failures with this label, such as `index:7`. May occur up to four times,
                /// each with another key: failures have all of them.
                #[serde(default)]
                label: Vec<String>,
                $($own)*
            }
        }

        impl $name {
            async fn filter(&self, api: &Api) -> Result<FailureFilter, Problem> {
                let lists = [&self.retrieval_strategy, &self.conversation_id, &self.query_text];
                if self.failure_type.len() > MAX_VALUES || lists.iter().any(|list| list.len() > MAX_VALUES) {
                    return Err(Problem::new(Code::InvalidParameter, format!("expected \
                        {MAX_VALUES} values at most")));
                }
                let similar_to = match &self.query_group {
                    Some(id) => {
                        let unknown = || {
                            let detail = $crate::http::read::queries::NO_GROUP;
                            Problem::parameter(Code::InvalidParameter, "query_group", detail)
                        };
                        api.groups.texts(api, id).await?.ok_or_else(unknown)?
                    }
                    None => Vec::new(),
                };
                Ok(FailureFilter {
                    range: $crate::http::read::or_all_time(self.period()?)?,
                    failure_type: self.failure_type.clone(),
                    retrieval_strategy: self.retrieval_strategy.clone(),
                    conversation_id: self.conversation_id.clone(),
                    text: self.text.clone(),
                    query_text: self.query_text.clone(),
                    similar_to,
                    sources: $crate::http::read::sources(&self.source, &self.label)?,
                })
            }
        }
    };
}

pub(crate) use filtered;

/// Defines the parameters of a route: a time range, the sources of attempts, and parameters of its
/// own.
macro_rules! counted {
    ($(#[$about:meta])* struct $name:ident { $($own:tt)* }) => {
        ranged! {
            $(#[$about])*
            struct $name {
                /// Only attempts that this source reported; empty: that have no source. May occur
                /// several times.
                #[serde(default)]
                source: Vec<String>,
                /// Only attempts with this label, such as `index:7`. May occur up to four times,
                /// each with another key: attempts have all of them.
                #[serde(default)]
                label: Vec<String>,
                $($own)*
            }
        }

        impl $name {
            fn attempts(&self) -> Result<AttemptFilter, Problem> {
                Ok(AttemptFilter {
                    range: or_last_day(self.period()?)?,
                    sources: sources(&self.source, &self.label)?,
                })
            }
        }
    };
}

counted! {
/// Time range and sources of a read.
    struct SummaryQuery {
    }
}

/// Parses the parameters that select sources.
pub(crate) fn sources(source: &[String], label: &[String]) -> Result<SourceFilter, Problem> {
    if source.len() > MAX_VALUES {
        let detail = format!("expected {MAX_VALUES} values at most");
        return Err(Problem::parameter(Code::InvalidParameter, "source", detail));
    }
    let labels = parse_labels(label.iter().map(String::as_str));
    Ok(SourceFilter {
        source: source.to_vec(),
        labels: labels
            .map_err(|detail| Problem::parameter(Code::InvalidParameter, "label", detail))?,
    })
}

/// Parses labels of the form `key:value`.
pub fn parse_labels<'a>(labels: impl Iterator<Item = &'a str>) -> Result<Labels, String> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for label in labels {
        let (key, value) = label
            .split_once(':')
            .ok_or("expected a key and a value, such as index:7")?;
        if pairs.iter().any(|(known, _)| *known == key) {
            return Err(format!("expected one value of the key {key:?}"));
        }
        pairs.push((key, value));
    }
    Labels::new(pairs).map_err(|error| error.to_string())
}

/// Parses the parameters of a time range.
pub(crate) fn period(
    since: Option<&str>,
    from: Option<&str>,
    to: Option<&str>,
) -> Result<PeriodBounds, Problem> {
    let moment = |name: &str, text: Option<&str>| {
        text.map(parse_moment)
            .transpose()
            .map_err(|expected| Problem::invalid(name, expected))
    };
    let (from, to) = (moment("from", from)?, moment("to", to)?);
    if since.is_some() && from.is_some() {
        return Err(Problem::conflict(
            &["since", "from"],
            "expected either `since` or `from`",
        ));
    }
    let since = since
        .map(parse_span)
        .transpose()
        .map_err(|expected| Problem::invalid("since", expected))?;
    Ok(PeriodBounds { since, from, to })
}

fn reversed(error: ReadError) -> Problem {
    Problem::conflict(&["from", "to"], error.to_string())
}

pub(crate) fn or_all_time(period: PeriodBounds) -> Result<Option<TimeRange>, Problem> {
    period.or_all_time().map_err(reversed)
}

pub(crate) fn or_last_day(period: PeriodBounds) -> Result<TimeRange, Problem> {
    period.or_last_day().map_err(reversed)
}

/// A time range as a caller gives it, to the service or to a command.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeriodBounds {
    /// Length of the range before its end. Not with `from`.
    pub since: Option<Duration>,
    /// The beginning.
    pub from: Option<SystemTime>,
    /// The end. Default: now.
    pub to: Option<SystemTime>,
}

impl PeriodBounds {
    /// Returns the range for reads that read the whole log by default: an end alone excludes what
    /// is later. `None`: the period is empty.
    ///
    /// # Errors
    ///
    /// [`ReadError::Invalid`], if the end is not after the beginning.
    pub fn or_all_time(self) -> Result<Option<TimeRange>, ReadError> {
        let Self { since, from, to } = self;
        let end = to.unwrap_or_else(SystemTime::now);
        let from = from.or_else(|| end.checked_sub(since?));
        // From 1970 to now would leave out failures that are dated ahead of the clock.
        if from.is_none() && to.is_none() {
            return Ok(None);
        }
        let from = from.unwrap_or(SystemTime::UNIX_EPOCH);
        to.map_or_else(|| TimeRange::since(from), |to| TimeRange::between(from, to))
            .map(Some)
    }

    /// Returns the range for reads that read a day by default, the one before the end.
    ///
    /// # Errors
    ///
    /// [`ReadError::Invalid`], if the end is not after the beginning.
    pub fn or_last_day(self) -> Result<TimeRange, ReadError> {
        let since = match self.from {
            Some(_) => None,
            None => self.since.or(Some(DEFAULT_SINCE)),
        };
        let range = Self { since, ..self }.or_all_time()?;
        Ok(range.unwrap_or_else(TimeRange::all))
    }
}

/// Parses a moment in RFC 3339. Rejects all other formats, even those that jiff parses.
pub fn parse_moment(text: &str) -> Result<SystemTime, &'static str> {
    let expected = "a moment in RFC 3339, such as 2026-11-24T10:30:36Z";
    // A `+` that was not escaped in a query string arrives as a space.
    let text = text.trim().replace(' ', "+");
    let parse = || {
        let (date, rest) = text.split_at_checked(10)?;
        let time = rest.strip_prefix(['T', 't'])?;
        let (time, offset) = match time.strip_suffix(['Z', 'z']) {
            Some(time) => (time, 0),
            None => {
                let (time, offset) = time.split_at_checked(time.len().checked_sub(6)?)?;
                let sign = if offset.starts_with('+') {
                    1
                } else if offset.starts_with('-') {
                    -1
                } else {
                    return None;
                };
                let (hours, minutes) = offset.get(1..)?.split_once(':')?;
                let number =
                    |text: &str, max: i64| two_digits(text).filter(|number| *number <= max);
                (
                    time,
                    sign * (number(hours, 23)? * 3600 + number(minutes, 59)? * 60),
                )
            }
        };
        let date: jiff::civil::Date = has_form(date, "dddd-dd-dd").then(|| date.parse().ok())??;
        let (whole, fraction) = time
            .split_once('.')
            .map_or((time, None), |(whole, fraction)| (whole, Some(fraction)));
        if !has_form(whole, "dd:dd:dd")
            || fraction.is_some_and(|digits| digits.is_empty() || !is_digits(digits))
        {
            return None;
        }
        // A leap second counts as the second before it.
        let is_leap_second = whole.ends_with(":60");
        let whole: jiff::civil::Time = if is_leap_second {
            whole.replace(":60", ":59")
        } else {
            whole.to_owned()
        }
        .parse()
        .ok()?;
        let milliseconds: i64 = match fraction {
            None => 0,
            Some(digits) => format!("{digits:0<3}").get(..3)?.parse().ok()?,
        };
        let days = i64::from(date.since(jiff::civil::date(1970, 1, 1)).ok()?.get_days());
        let second_of_day = i64::from(whole.hour()) * 3600
            + i64::from(whole.minute()) * 60
            + i64::from(whole.second());
        Some((days * 86_400 + second_of_day - offset, milliseconds))
    };
    let (seconds, milliseconds) = parse().ok_or(expected)?;
    // The log has no failures before 1970 or after the year 9999.
    let milliseconds =
        seconds.clamp(0, MAX_UNIX_SECONDS) * 1000 + if seconds < 0 { 0 } else { milliseconds };
    Ok(SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds.unsigned_abs()))
}

fn two_digits(text: &str) -> Option<i64> {
    if has_form(text, "dd") {
        text.parse().ok()
    } else {
        None
    }
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns `true` if the text has the form. In the form, `d` stands for a digit and every other
/// character for itself.
fn has_form(text: &str, form: &str) -> bool {
    text.len() == form.len()
        && text.bytes().zip(form.bytes()).all(|(byte, expected)| {
            if expected == b'd' {
                byte.is_ascii_digit()
            } else {
                byte == expected
            }
        })
}

/// Parses a length of time such as `90s`, `15m`, `24h`, `7d` or `4w`.
pub fn parse_span(text: &str) -> Result<Duration, &'static str> {
    let expected = "a number and s, m, h, d or w, such as 24h";
    let seconds = |unit| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(60 * 60),
        'd' => Some(24 * 60 * 60),
        'w' => Some(7 * 24 * 60 * 60),
        _ => None,
    };
    let unit = text.chars().next_back().ok_or(expected)?;
    let number = text
        .get(..text.len() - unit.len_utf8())
        .filter(|number| number.len() <= 6)
        .ok_or(expected)?;
    let number = if is_digits(number) {
        number.parse::<u64>().ok()
    } else {
        None
    };
    match (number, seconds(unit)) {
        (Some(number @ 1..), Some(seconds)) => Ok(Duration::from_secs(number * seconds)),
        _ => Err(expected),
    }
}

filtered! {
/// Filter and page of the listed failures.
    struct FailuresQuery {
    /// Approximate time budget of the search, in milliseconds; 2500 by default. The page has the
    /// failures that were found by then. `complete` is `false` if the next page may have more.
    #[serde(default, deserialize_with = "milliseconds")]
    #[param(minimum = 1, maximum = 2500)]
    within_ms: Option<u64>,
    /// Maximum number of failures on the page; 50 by default.
    #[serde(default, deserialize_with = "limit")]
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Cursor of the page: `next`, `older` or `newer` of another page.
    #[serde(default, deserialize_with = "cursor")]
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor>,
    }
}

/// Lists failures in pages, the newest first.
#[utoipa::path(get, path = "/v1/failures", operation_id = "list_failures", tag = "reads", params(FailuresQuery), responses(
    (status = 200, description = "A page of failures.", body = FailurePage),
    ReadProblems,
))]
pub(crate) async fn failures(
    api: Data<Api>,
    request: HttpRequest,
    query: Params<FailuresQuery>,
) -> Result<HttpResponse, Problem> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    let page = query.cursor.map_or_else(
        || PageRequest::newest(limit),
        |cursor| PageRequest::after(cursor, limit),
    );
    let page = query.within_ms.map_or(page, |budget| {
        page.time_budget(Duration::from_millis(budget))
    });
    let filter = query.filter(&api).await?;
    let reader = api.logger.reader();
    api.reads
        .respond(&api, &request, async move {
            json(&reader.list(filter, page).await?)
        })
        .await
}

/// Returns one failure.
#[utoipa::path(get, path = "/v1/failures/{event_id}", operation_id = "get_failure", tag = "reads",
    params(("event_id" = Uuid, Path, description = "Its `event_id`.")),
    responses(
        (status = 200, description = "The failure.", body = Failure),
        (status = 404, description = "No failure has this `event_id`.", body = Problem, content_type = "application/problem+json"),
        ReadProblems,
))]
pub(crate) async fn failure(
    api: Data<Api>,
    request: HttpRequest,
    event_id: Path<String>,
) -> Result<HttpResponse, Problem> {
    let event_id =
        Uuid::try_parse(&event_id).map_err(|_| Problem::invalid("event_id", "a UUID"))?;
    let reader = api.logger.reader();
    let read = async move {
        let failure = reader.get(event_id).await?;
        json(&failure.ok_or_else(|| {
            Problem::not_found("no failure has this event_id; old failures are purged")
        })?)
    };
    api.reads.respond(&api, &request, read).await
}

/// Returns totals of attempts, failures and latencies, overall and by strategy, with those of the
/// preceding time range for comparison.
#[utoipa::path(get, path = "/v1/summary", operation_id = "get_summary", tag = "reads", params(SummaryQuery), responses(
    (status = 200, description = "The totals.", body = Summary),
    ReadProblems,
))]
pub(crate) async fn summary(
    api: Data<Api>,
    request: HttpRequest,
    query: Params<SummaryQuery>,
) -> Result<HttpResponse, Problem> {
    let (attempts, reader) = (query.attempts()?, api.logger.reader());
    api.reads
        .respond(&api, &request, async move {
            json(&reader.summary(attempts).await?)
        })
        .await
}

counted! {
/// Filter of the attempts that are counted over time.
    struct TimeseriesQuery {
    /// Only attempts of this strategy. May occur several times.
    #[serde(default)]
    retrieval_strategy: Vec<String>,
    /// Maximum number of steps; 200 by default. A range that begins or ends within a step has one
    /// more.
    #[serde(default, deserialize_with = "steps")]
    #[param(minimum = 1, maximum = 200)]
    max_steps: Option<usize>,
    /// `true`: also returns the latencies of each strategy.
    #[serde(default, deserialize_with = "crate::http::params::boolean")]
    #[param(value_type = bool)]
    latency: bool,
    }
}

/// Returns counts of attempts and failures over time, in up to 200 steps.
#[utoipa::path(get, path = "/v1/timeseries", operation_id = "get_timeseries", tag = "reads", params(TimeseriesQuery), responses(
    (status = 200, description = "The counts of each step.", body = Timeseries),
    ReadProblems,
))]
pub(crate) async fn timeseries(
    api: Data<Api>,
    request: HttpRequest,
    query: Params<TimeseriesQuery>,
) -> Result<HttpResponse, Problem> {
    let query = query.into_inner();
    let (attempts, reader) = (query.attempts()?, api.logger.reader());
    api.reads
        .respond(&api, &request, async move {
            let request = TimeseriesRequest {
                strategies: query.retrieval_strategy,
                max_steps: query.max_steps.unwrap_or(MAX_STEPS),
                latency: query.latency,
            };
            json(&reader.timeseries(attempts, request).await?)
        })
        .await
}

ranged! {
/// Page of a ranked list.
    struct ListQuery {
    /// Maximum number of items on the page; 50 by default.
    #[serde(default, deserialize_with = "limit")]
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Cursor of the page: `next` of another page.
    #[serde(default, deserialize_with = "cursor")]
    #[param(value_type = Option<String>)]
    cursor: Option<ListCursor>,
    }
}

impl ListQuery {
    fn page(&self) -> ListRequest {
        list_request(self.limit, self.cursor)
    }
}

pub(crate) fn list_request(limit: Option<usize>, cursor: Option<ListCursor>) -> ListRequest {
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    cursor.map_or_else(
        || ListRequest::from(limit),
        |cursor| ListRequest::after(cursor, limit),
    )
}

/// Page of strategies.
#[derive(Serialize, ToSchema)]
pub(crate) struct Strategies {
    /// Strategies, the one with the most failures first.
    data: Vec<StrategySummary>,
    /// Cursor of the next page; null if this is the last page.
    #[schema(value_type = Option<String>)]
    next: Option<ListCursor>,
    /// `true` if there is a next page.
    has_more: bool,
}

/// Lists strategies with their settings, rates and latencies.
#[utoipa::path(get, path = "/v1/strategies", operation_id = "list_strategies", tag = "reads", params(ListQuery), responses(
    (status = 200, description = "A page of strategies.", body = Strategies),
    ReadProblems,
))]
pub(crate) async fn strategies(
    api: Data<Api>,
    request: HttpRequest,
    query: Params<ListQuery>,
) -> Result<HttpResponse, Problem> {
    let (range, page, reader) = (
        or_last_day(query.period()?)?,
        query.page(),
        api.logger.reader(),
    );
    let read = async move {
        let summary = reader.summary(range).await?;
        let (data, next) = page.cut(summary.strategies.into_iter(), summary.log_id)?;
        json(&Strategies {
            data,
            next,
            has_more: next.is_some(),
        })
    };
    api.reads.respond(&api, &request, read).await
}

/// Lists conversations with failures, the one with the most failures first.
#[utoipa::path(get, path = "/v1/conversations", operation_id = "list_conversations", tag = "reads", params(ListQuery), responses(
    (status = 200, description = "A page of conversations.", body = Conversations),
    ReadProblems,
))]
pub(crate) async fn conversations(
    api: Data<Api>,
    request: HttpRequest,
    query: Params<ListQuery>,
) -> Result<HttpResponse, Problem> {
    let (range, page, reader) = (
        or_last_day(query.period()?)?,
        query.page(),
        api.logger.reader(),
    );
    api.reads
        .respond(&api, &request, async move {
            json(&reader.conversations(range, page).await?)
        })
        .await
}

counted! {
/// Strategy and questions of a calibration.
    struct CalibrationQuery {
    /// Strategy whose scores are read.
    retrieval_strategy: String,
    /// Threshold for which `failure_rate_at_threshold` is computed.
    #[serde(default, deserialize_with = "finite")]
    threshold: Option<f64>,
    /// Failure rate, 0 to 1, for which `threshold_for_failure_rate` is computed: the strictest
    /// threshold at which at most this share of the attempts fails.
    #[serde(default, deserialize_with = "share")]
    #[param(minimum = 0.0, maximum = 1.0)]
    failure_rate: Option<f64>,
    }
}

/// Scores of a strategy, and values that were computed from them.
#[derive(Serialize, ToSchema)]
pub(crate) struct CalibrationResult {
    #[serde(flatten)]
    calibration: Calibration,
    /// Failure rate at the requested threshold; null if the strategy has no scores.
    failure_rate_at_threshold: Option<f64>,
    /// Changes at the requested threshold; null if none was requested.
    changes_at_threshold: Option<ThresholdChanges>,
    /// Threshold for the requested failure rate; null if no threshold reaches it.
    threshold_for_failure_rate: Option<f64>,
}

/// Returns the scores of a strategy, from which the failure rate at any threshold follows.
#[utoipa::path(get, path = "/v1/calibration", operation_id = "get_calibration", tag = "reads", params(CalibrationQuery), responses(
    (status = 200, description = "The scores.", body = CalibrationResult),
    ReadProblems,
))]
pub(crate) async fn calibration(
    api: Data<Api>,
    request: HttpRequest,
    query: Params<CalibrationQuery>,
) -> Result<HttpResponse, Problem> {
    let query = query.into_inner();
    let (attempts, reader) = (query.attempts()?, api.logger.reader());
    let read = async move {
        let calibration = reader
            .calibration(query.retrieval_strategy, attempts)
            .await?;
        json(&CalibrationResult {
            failure_rate_at_threshold: query
                .threshold
                .and_then(|threshold| calibration.failure_rate_at(threshold)),
            changes_at_threshold: query
                .threshold
                .map(|threshold| calibration.changes_at(threshold)),
            threshold_for_failure_rate: query
                .failure_rate
                .and_then(|rate| calibration.threshold_for(rate)),
            calibration,
        })
    };
    api.reads.respond(&api, &request, read).await
}

filtered! {
/// Filter and format of an export.
    struct ExportQuery {
    /// `json_lines` (the default) or `csv`.
    #[serde(default)]
    format: ExportFormat,
    /// Begins CSV with a byte order mark, for Excel.
    #[serde(default, deserialize_with = "crate::http::params::boolean")]
    #[param(value_type = bool)]
    bom: bool,
    }
}

/// Exports all matching failures, the oldest first.
#[utoipa::path(get, path = "/v1/export", operation_id = "export_failures", tag = "reads", params(ExportQuery), responses(
    (status = 200, description = "JSON lines or CSV.", content((String = "application/x-ndjson"), (String = "text/csv"))),
    ReadProblems,
))]
pub(crate) async fn export(
    api: Data<Api>,
    request: HttpRequest,
    query: Params<ExportQuery>,
) -> Result<HttpResponse, Problem> {
    let filter = query.filter(&api).await?;
    let (content_type, name) = match query.format {
        ExportFormat::JsonLines => ("application/x-ndjson", "failures.jsonl"),
        ExportFormat::Csv => ("text/csv; charset=utf-8", "failures.csv"),
    };
    if query.bom && query.format != ExportFormat::Csv {
        return Err(Problem::conflict(
            &["bom", "format"],
            "`bom` needs `format=csv`, because JSON lines have no byte order mark",
        ));
    }
    let slot = api.exports.take(&api, &request)?;
    let mut export = api.logger.reader().export(filter, query.format);
    if query.bom {
        export = export.with_byte_order_mark();
    }
    // The first chunk is read before the response begins, because its error still fits a status.
    let first = export.next_chunk().await?;
    let chunks = futures_util::stream::unfold(
        (first, export, slot),
        |(chunk, mut export, slot)| async move {
            let chunk = chunk?;
            if !slot.is_allowed() {
                return Some((Err(Problem::unauthorized()), (None, export, slot)));
            }
            // An error closes the connection, so that the client notices that the export is
            // incomplete.
            match export.next_chunk().await {
                Ok(next) => Some((Ok::<_, Problem>(Bytes::from(chunk)), (next, export, slot))),
                Err(error) => Some((Err(error.into()), (None, export, slot))),
            }
        },
    );
    Ok(HttpResponse::Ok()
        .content_type(content_type)
        .insert_header((
            "content-disposition",
            format!("attachment; filename=\"{name}\""),
        ))
        .streaming(chunks))
}

/// Serializes a result as JSON.
pub(crate) fn json(result: &impl Serialize) -> Result<Bytes, Problem> {
    serde_json::to_vec(result)
        .map(Bytes::from)
        .map_err(|error| {
            tracing::error!(%error, "cannot serialize a response");
            Problem::new(Code::Unreadable, "the result cannot be serialized")
        })
}

/// Deserializes a cursor.
pub(crate) fn cursor<'de, T: FromStr<Err = ReadError>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| {
        text.parse()
            .map_err(|_| serde::de::Error::custom("expected a cursor from a previous page"))
    })
    .transpose()
}

/// Deserializes the maximum number of items on a page.
pub(crate) fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let limit = |text: String| match text.parse::<usize>() {
        Ok(limit @ 1..=1000) if is_digits(&text) => Ok(limit),
        _ => Err(serde::de::Error::custom("expected 1 to 1000")),
    };
    text.map(limit).transpose()
}

/// Deserializes a number of steps.
fn steps<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let steps = |text: String| match text.parse::<usize>() {
        Ok(steps) if (1..=MAX_STEPS).contains(&steps) && is_digits(&text) => Ok(steps),
        _ => Err(serde::de::Error::custom("expected 1 to 200")),
    };
    text.map(steps).transpose()
}

/// Deserializes a time budget. Its maximum is half of the default timeout of a read.
pub(crate) fn milliseconds<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let milliseconds = |text: String| match text.parse() {
        Ok(milliseconds @ 1..=2500) if is_digits(&text) => Ok(milliseconds),
        _ => Err(serde::de::Error::custom("expected 1 to 2500 milliseconds")),
    };
    text.map(milliseconds).transpose()
}

fn finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let finite = |text: String| text.parse::<f64>().ok().filter(|number| number.is_finite());
    text.map(|text| finite(text).ok_or_else(|| serde::de::Error::custom("expected a number")))
        .transpose()
}

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    match finite(deserializer)? {
        Some(share) if !(0.0..=1.0).contains(&share) => {
            Err(serde::de::Error::custom("expected 0 to 1"))
        }
        share => Ok(share),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_alone_keeps_the_default_beginning_of_its_route() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let bounds = PeriodBounds {
            to: Some(at(200_000)),
            ..PeriodBounds::default()
        };
        let all_time = bounds.or_all_time().unwrap().unwrap();
        assert_eq!((all_time.from(), all_time.to()), (at(0), at(200_000)));
        let last_day = bounds.or_last_day().unwrap();
        assert_eq!((last_day.from(), last_day.to()), (at(113_600), at(200_000)));
        assert!(PeriodBounds::default().or_all_time().unwrap().is_none());
    }

    #[test]
    fn moments_are_those_of_rfc_3339_and_nothing_else() {
        let ms = |text| {
            parse_moment(text).map(|at| {
                at.duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap()
                    .as_millis()
            })
        };
        for (text, expected) in [
            ("2026-11-24T10:30:36Z", 1_795_516_236_000),
            ("2026-11-24t10:30:36z", 1_795_516_236_000),
            ("2026-11-24T10:30:36.1239Z", 1_795_516_236_123),
            ("2026-11-24T12:30:36+02:00", 1_795_516_236_000),
            // A `+` that was not escaped.
            ("2026-11-24T12:30:36 02:00", 1_795_516_236_000),
            ("2026-11-24T05:00:36-05:30", 1_795_516_236_000),
            ("2016-12-31T23:59:60Z", 1_483_228_799_000),
            ("1969-12-31T23:59:59.9Z", 0),
            ("0001-01-01T00:00:00Z", 0),
            ("9999-12-31T23:59:59Z", 253_402_300_799_000),
            ("9999-12-31T23:59:59-23:59", 253_402_300_799_000),
        ] {
            assert_eq!(ms(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "2026-11-24",
            "2026-11-24T10:30Z",
            "2026-11-24T10:30:36",
            "20261124T103036Z",
            "2026-11-24T10:30:36+0200",
            "2026-11-24T10:30:36+02",
            "2026-11-24T10:30:36Z[UTC]",
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T10:30:36.Z",
            "2026-11-24T10:30:36,5Z",
            "+002026-11-24T10:30:36Z",
            "now",
            "1732444236",
            "2026-11-24T10:30:36+24:00",
        ] {
            assert!(ms(text).is_err(), "{text}");
        }
    }
}
