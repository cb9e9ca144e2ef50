//! Everything that the reader answers, over HTTP.

#![expect(unused_qualifications, reason = "in what utoipa generates")]

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use actix_web::HttpResponse;
use actix_web::web::{Bytes, Data, Path, Query, QueryConfig};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Api;
use super::problem::{Contradicted, NotAnswered, Problem};
use crate::error::ReadError;
use crate::record::RetrievalFailureType;
use crate::report::{
    Calibration, Conversations, Cursor, ExportFormat, Failure, FailureFilter, FailurePage, PageRequest,
    StrategySummary, Summary, TimeRange, Timeseries,
};

const DEFAULT_SINCE: Duration = Duration::from_secs(24 * 60 * 60);

/// What is wrong with a question's parameters is said in the same form as every error.
pub(super) fn query_config() -> QueryConfig {
    QueryConfig::default().error_handler(|error, _| Problem::bad_request(error.to_string()).into())
}

/// The parameters of a question: those of the time that is asked about, and some of its own.
macro_rules! question {
    ($(#[$of:meta])* struct $name:ident { $($own:tt)* }) => {
        $(#[$of])*
        #[derive(Debug, Deserialize, IntoParams)]
        #[into_params(parameter_in = Query)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            /// How far back from now, or from `to`: a number and `s`, `m`, `h`, `d` or `w`, as `24h`. Not with
            /// `from`.
            #[serde(default)]
            #[param(pattern = "^[1-9][0-9]{0,5}[smhdw]$")]
            since: Option<String>,
            /// The beginning, in RFC 3339.
            #[serde(default)]
            #[param(format = DateTime)]
            from: Option<String>,
            /// The end, in RFC 3339; now by default.
            #[serde(default)]
            #[param(format = DateTime)]
            to: Option<String>,
            $($own)*
        }

        impl $name {
            fn range(&self) -> Result<Option<TimeRange>, Problem> {
                $crate::http::questions::range(self.since.as_deref(), self.from.as_deref(), self.to.as_deref())
            }
        }
    };
}
pub(super) use question;

question! {
/// Which time is asked about.
    struct Span {
    }
}

pub(super) fn range(since: Option<&str>, from: Option<&str>, to: Option<&str>) -> Result<Option<TimeRange>, Problem> {
    let moment = |name: &str, text: Option<&str>| {
        text.map(parse_moment).transpose().map_err(|expected| Problem::invalid(name, expected))
    };
    let (from, to) = (moment("from", from)?, moment("to", to)?);
    match (since, from, to) {
        (None, None, None) => Ok(None),
        (Some(_), Some(_), _) => Err(Problem::conflict("expected either `since` or `from`")),
        (since, from, to) => {
            let since = since.map(parse_span).transpose().map_err(|expected| Problem::invalid("since", expected))?;
            let end = to.unwrap_or_else(SystemTime::now);
            let from = from.or_else(|| end.checked_sub(since.unwrap_or(DEFAULT_SINCE)));
            let from = from.unwrap_or(SystemTime::UNIX_EPOCH);
            let range = to.map_or_else(|| TimeRange::since(from), |to| TimeRange::between(from, to));
            range.map(Some).map_err(|error| Problem::conflict(error.to_string()))
        }
    }
}

pub(super) fn or_a_day(range: Option<TimeRange>) -> TimeRange {
    range.unwrap_or_else(|| TimeRange::last(DEFAULT_SINCE))
}

pub(crate) fn parse_moment(text: &str) -> Result<SystemTime, &'static str> {
    let expected = "a moment in RFC 3339, as 2026-11-24T10:30:36Z";
    // Spaces come from a `+` that was not escaped.
    let moment: jiff::Timestamp = text.trim().replace(' ', "+").parse().map_err(|_| expected)?;
    // What was before 1970 was then.
    Ok(moment.max(jiff::Timestamp::UNIX_EPOCH).into())
}

/// `90s`, `15m`, `24h`, `7d`, `4w`.
pub(crate) fn parse_span(text: &str) -> Result<Duration, &'static str> {
    let expected = "a number and s, m, h, d or w, as 24h";
    let seconds = |unit| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(60 * 60),
        'd' => Some(24 * 60 * 60),
        'w' => Some(7 * 24 * 60 * 60),
        _ => None,
    };
    let unit = text.chars().next_back().ok_or(expected)?;
    let number = text.get(..text.len() - unit.len_utf8()).filter(|number| number.len() <= 6).ok_or(expected)?;
    let number = if number.bytes().all(|byte| byte.is_ascii_digit()) { number.parse::<u64>().ok() } else { None };
    match (number, seconds(unit)) {
        (Some(number @ 1..), Some(seconds)) => Ok(Duration::from_secs(number * seconds)),
        _ => Err(expected),
    }
}

question! {
/// Which failures are asked for.
    struct FailuresQuery {
    /// Only failures of this type.
    #[serde(default)]
    failure_type: Option<RetrievalFailureType>,
    /// Only failures of this strategy.
    #[serde(default)]
    strategy: Option<String>,
    /// Only failures of this conversation.
    #[serde(default)]
    conversation: Option<String>,
    /// Only failures whose query or error contains this.
    #[serde(default)]
    text: Option<String>,
    /// Only failures with exactly this query, as it is stored.
    #[serde(default)]
    query: Option<String>,
    /// Only failures whose query is nearly the same: those of a group, by its `key`.
    #[serde(default)]
    question: Option<String>,
    /// How long to look for failures that fit, in milliseconds, about; what was found by then is the
    /// page, and `complete` says whether there may be more. 2500 by default.
    #[serde(default, deserialize_with = "milliseconds")]
    #[param(minimum = 1, maximum = 2500)]
    within_ms: Option<u64>,
    /// Failures on the page; 50 by default.
    #[serde(default, deserialize_with = "limit")]
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The page before this cursor, from `older`.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = Option<String>, pattern = "^[0-9]{1,15}[.][0-9]{1,15}([.][0-9]{1,15})?$")]
    older_than: Option<Cursor>,
    /// The page after this cursor, from `newer`. Not with `older_than`.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = Option<String>, pattern = "^[0-9]{1,15}[.][0-9]{1,15}([.][0-9]{1,15})?$")]
    newer_than: Option<Cursor>,
    }
}

/// Failures, the newest first, page by page.
#[utoipa::path(get, path = "/v1/failures", tag = "questions", params(FailuresQuery), responses(
    (status = 200, body = FailurePage),
    NotAnswered,
    Contradicted,
))]
pub(super) async fn failures(api: Data<Api>, query: Query<FailuresQuery>) -> Result<HttpResponse, Problem> {
    let query = query.into_inner();
    let limit = query.limit.unwrap_or(50);
    let page = match (query.older_than, query.newer_than) {
        (None, None) => PageRequest::newest(limit),
        (Some(cursor), None) => PageRequest::older_than(cursor, limit),
        (None, Some(cursor)) => PageRequest::newer_than(cursor, limit),
        (Some(_), Some(_)) => return Err(Problem::conflict("expected either `older_than` or `newer_than`")),
    };
    let page = query.within_ms.map_or(page, |patience| page.patience(Duration::from_millis(patience)));
    let range = query.range()?;
    let filter = FailureFilter {
        range,
        failure_type: query.failure_type,
        strategy: query.strategy,
        conversation: query.conversation,
        text: query.text,
        query: query.query,
        question: query.question,
    };
    json(&api.logger.reader().list(filter, page).await?)
}

/// One failure.
#[utoipa::path(get, path = "/v1/failures/{event_id}", tag = "questions",
    params(("event_id" = Uuid, Path, description = "Its `event_id`.")),
    responses(
        (status = 200, body = Failure),
        (status = 404, body = Problem, content_type = "application/problem+json"),
    NotAnswered,
))]
pub(super) async fn failure(api: Data<Api>, event_id: Path<Uuid>) -> Result<HttpResponse, Problem> {
    let failure = api.logger.reader().get(*event_id).await?;
    json(&failure.ok_or_else(|| Problem::not_found("there is no failure with this event_id; old ones are purged"))?)
}

/// Attempts, failures and latencies, in all and by strategy, against the time before.
#[utoipa::path(get, path = "/v1/summary", tag = "questions", params(Span), responses(
    (status = 200, body = Summary),
    NotAnswered,
    Contradicted,
))]
pub(super) async fn summary(api: Data<Api>, span: Query<Span>) -> Result<HttpResponse, Problem> {
    json(&api.logger.reader().summary(or_a_day(span.range()?)).await?)
}

question! {
/// A strategy's part of the time.
    struct TimeseriesQuery {
    /// Only attempts of this strategy.
    #[serde(default)]
    strategy: Option<String>,
    }
}

/// Attempts and failures over time, in up to 200 steps.
#[utoipa::path(get, path = "/v1/timeseries", tag = "questions", params(TimeseriesQuery), responses(
    (status = 200, body = Timeseries),
    NotAnswered,
    Contradicted,
))]
pub(super) async fn timeseries(api: Data<Api>, query: Query<TimeseriesQuery>) -> Result<HttpResponse, Problem> {
    let query = query.into_inner();
    let range = or_a_day(query.range()?);
    json(&api.logger.reader().timeseries(range, query.strategy).await?)
}

/// The strategies that were attempted.
#[derive(Serialize, ToSchema)]
pub(super) struct Strategies {
    /// Each of them, the one with the most failures first.
    strategies: Vec<StrategySummary>,
}

/// The strategies, with their settings, rates and latencies.
#[utoipa::path(get, path = "/v1/strategies", tag = "questions", params(Span), responses(
    (status = 200, body = Strategies),
    NotAnswered,
    Contradicted,
))]
pub(super) async fn strategies(api: Data<Api>, span: Query<Span>) -> Result<HttpResponse, Problem> {
    let strategies = api.logger.reader().summary(or_a_day(span.range()?)).await?.strategies;
    json(&Strategies { strategies })
}

question! {
/// Which conversations are listed.
    struct ConversationsQuery {
    /// Conversations; 50 by default.
    #[serde(default, deserialize_with = "limit")]
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    }
}

/// The conversations with the most failures.
#[utoipa::path(get, path = "/v1/conversations", tag = "questions", params(ConversationsQuery), responses(
    (status = 200, body = Conversations),
    NotAnswered,
    Contradicted,
))]
pub(super) async fn conversations(api: Data<Api>, query: Query<ConversationsQuery>) -> Result<HttpResponse, Problem> {
    let query = query.into_inner();
    let range = or_a_day(query.range()?);
    json(&api.logger.reader().conversations(range, query.limit.unwrap_or(50)).await?)
}

question! {
/// Which strategy is calibrated.
    struct CalibrationQuery {
    /// The strategy.
    strategy: String,
    /// Foretell the failure rate at this threshold.
    #[serde(default, deserialize_with = "finite")]
    threshold: Option<f64>,
    /// Find the strictest threshold at which no more than this share fails, 0 to 1.
    #[serde(default, deserialize_with = "share")]
    #[param(minimum = 0.0, maximum = 1.0)]
    failure_rate: Option<f64>,
    }
}

/// A strategy's scores, and what was asked about them.
#[derive(Serialize, ToSchema)]
pub(super) struct CalibrationAnswer {
    #[serde(flatten)]
    calibration: Calibration,
    /// The failure rate at the threshold that was asked for; null if nothing is known.
    failure_rate_at_threshold: Option<f64>,
    /// The threshold for the failure rate that was asked for; null if there is none.
    threshold_for_failure_rate: Option<f64>,
}

/// A strategy's scores, and the failure rate that any threshold would give.
#[utoipa::path(get, path = "/v1/calibration", tag = "questions", params(CalibrationQuery), responses(
    (status = 200, body = CalibrationAnswer),
    NotAnswered,
    Contradicted,
))]
pub(super) async fn calibration(api: Data<Api>, query: Query<CalibrationQuery>) -> Result<HttpResponse, Problem> {
    let query = query.into_inner();
    let range = or_a_day(query.range()?);
    let calibration = api.logger.reader().calibration(query.strategy, range).await?;
    json(&CalibrationAnswer {
        failure_rate_at_threshold: query.threshold.and_then(|threshold| calibration.failure_rate_at(threshold)),
        threshold_for_failure_rate: query.failure_rate.and_then(|rate| calibration.threshold_for(rate)),
        calibration,
    })
}

question! {
/// What is exported, and how.
    struct ExportQuery {
    /// Only failures of this type.
    #[serde(default)]
    failure_type: Option<RetrievalFailureType>,
    /// Only failures of this strategy.
    #[serde(default)]
    strategy: Option<String>,
    /// Only failures of this conversation.
    #[serde(default)]
    conversation: Option<String>,
    /// Only failures whose query or error contains this.
    #[serde(default)]
    text: Option<String>,
    /// Only failures with exactly this query, as it is stored.
    #[serde(default)]
    query: Option<String>,
    /// Only failures whose query is nearly the same: those of a group, by its `key`.
    #[serde(default)]
    question: Option<String>,
    /// `json_lines` (the default) or `csv`.
    #[serde(default)]
    format: ExportFormat,
    /// Begins CSV with a byte order mark, for Excel.
    #[serde(default)]
    bom: bool,
    }
}

/// All failures that fit, oldest first, as JSON lines or CSV.
#[utoipa::path(get, path = "/v1/export", tag = "questions", params(ExportQuery), responses(
    (status = 200, content((String = "application/x-ndjson"), (String = "text/csv"))),
    NotAnswered,
    Contradicted,
))]
pub(super) async fn export(api: Data<Api>, query: Query<ExportQuery>) -> Result<HttpResponse, Problem> {
    let query = query.into_inner();
    let filter = FailureFilter {
        range: query.range()?,
        failure_type: query.failure_type,
        strategy: query.strategy,
        conversation: query.conversation,
        text: query.text,
        query: query.query,
        question: query.question,
    };
    let (content_type, name) = match query.format {
        ExportFormat::JsonLines => ("application/x-ndjson", "failures.jsonl"),
        ExportFormat::Csv => ("text/csv; charset=utf-8", "failures.csv"),
    };
    let mut export = api.logger.reader().export(filter, query.format);
    if query.bom {
        export = export.with_byte_order_mark();
    }
    // What fails at once is an error that can still be told.
    let first = export.next_chunk().await?;
    let chunks = futures_util::stream::unfold((first, export), |(chunk, mut export)| async move {
        let chunk = chunk?;
        // An export that breaks off must not look like one that is complete.
        match export.next_chunk().await {
            Ok(next) => Some((Ok::<_, Problem>(Bytes::from(chunk)), (next, export))),
            Err(error) => Some((Err(error.into()), (None, export))),
        }
    });
    Ok(HttpResponse::Ok()
        .content_type(content_type)
        .insert_header(("content-disposition", format!("attachment; filename=\"{name}\"")))
        .streaming(chunks))
}

pub(super) fn json(answer: &impl Serialize) -> Result<HttpResponse, Problem> {
    let body = serde_json::to_vec(answer).map_err(|error| {
        tracing::error!(%error, "an answer could not be written down");
        Problem::new(actix_web::http::StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written down")
    })?;
    Ok(HttpResponse::Ok().content_type("application/json").body(body))
}

fn parsed<'de, T: FromStr<Err = ReadError>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

pub(super) fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let limit = |text: String| match text.parse::<usize>() {
        Ok(limit @ 1..=1000) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(limit),
        _ => Err(serde::de::Error::custom("limit: expected 1 to 1000")),
    };
    text.map(limit).transpose()
}

pub(super) fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let milliseconds = |text: String| match text.parse() {
        Ok(milliseconds @ 1..=2500) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(milliseconds),
        _ => Err(serde::de::Error::custom("expected 1 to 2500 milliseconds")),
    };
    text.map(milliseconds).transpose()
}

fn finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let finite = |text: String| text.parse::<f64>().ok().filter(|number| number.is_finite());
    text.map(|text| finite(text).ok_or_else(|| serde::de::Error::custom("expected a number"))).transpose()
}

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    match finite(deserializer)? {
        Some(share) if !(0.0..=1.0).contains(&share) => Err(serde::de::Error::custom("expected 0 to 1")),
        share => Ok(share),
    }
}
