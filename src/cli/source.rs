//! Where answers come from: the database file, or a running service.

#![expect(clippy::indexing_slicing, reason = "a JSON value that is not there is null")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_web::web::Bytes;
use clap::Args;
use futures_util::Stream;
use serde::Serialize;
use serde_json::Value;

use super::settings::{Settings, Tokens, tokens};
use super::{Failure, Target, tls};
use crate::config::Location;
use crate::http::{parse_moment, parse_span};
use crate::report::{FailureReader, TimeRange};

/// How long a question may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How soon to come again where it was too soon.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Bytes of an answer at most.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A database file, or a service.
pub(super) enum Source {
    File(FailureReader),
    Service(Service),
}

impl Source {
    pub(super) fn new(settings: &Settings, target: &Target) -> Result<Self, Failure> {
        if let Some(url) = &target.url {
            return Ok(Self::Service(Service::new(url, target)?));
        }
        match settings.logger.validate() {
            Ok(Location::File(path)) if path.exists() => Ok(Self::File(FailureReader::open(path).timeout(TIMEOUT))),
            Ok(Location::File(path)) => Err(Failure::Unreachable(format!(
                "there is no database {}; name it with --db, or a service with --url",
                path.display()
            ))),
            Ok(Location::Memory) => Err(Failure::Usage("database_url: expected a file, or --url".into())),
            Err(error) => Err(Failure::Usage(error.to_string())),
        }
    }
}

/// An answer as JSON, whichever way it came.
pub(super) fn value(answer: &impl Serialize) -> Result<Value, Failure> {
    // By way of text, which is as short for an f32 as over HTTP.
    let json = serde_json::to_string(answer).and_then(|text| serde_json::from_str(&text));
    json.map_err(|error| Failure::Unreachable(error.to_string()))
}

/// A running service.
pub(super) struct Service {
    url: String,
    tokens: Tokens,
    /// `None`: the address is no https:// one.
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Service {
    pub(super) fn new(url: &str, target: &Target) -> Result<Self, Failure> {
        let url = url.trim_end_matches('/').to_owned();
        let tls = if url.starts_with("https://") {
            Some(tls::config(target.ca_file.as_deref())?)
        } else if url.starts_with("http://") {
            None
        } else {
            let expected = "an address such as http://127.0.0.1:4318 or https://fl.example";
            return Err(Failure::Usage(format!("--url {url}: expected {expected}")));
        };
        let tokens = target.url_token_file.as_deref().map(tokens).transpose()?.unwrap_or_default();
        Ok(Self { url, tokens, tls })
    }

    pub(super) fn request(
        &self,
        method: awc::http::Method,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<awc::ClientRequest, Failure> {
        let client = awc::Client::builder().timeout(TIMEOUT);
        let client = match &self.tls {
            Some(config) => client.connector(awc::Connector::new().rustls_0_23(Arc::clone(config))).finish(),
            None => client.finish(),
        };
        let mut request = client
            .request(method, format!("{}{path}", self.url))
            .query(&query)
            .map_err(|error| Failure::Usage(format!("--url {}: {error}", self.url)))?;
        // Whoever reads may mark, too.
        let Tokens { read, ingest, delete } = &self.tokens;
        let token = match *request.get_method() {
            awc::http::Method::POST => ingest.as_ref().or(read.as_ref()),
            awc::http::Method::DELETE => delete.as_ref(),
            _ => read.as_ref().or(ingest.as_ref()),
        };
        if let Some(token) = token {
            request = request.bearer_auth(token.reveal());
        }
        Ok(request)
    }

    pub(super) async fn ask(&self, path: &str, query: &[(&str, String)]) -> Result<Value, Failure> {
        let sent = self.request(awc::http::Method::GET, path, query)?.send().await;
        self.answer(sent).await
    }

    /// Sends lines, each with a line feed.
    pub(super) async fn post(&self, path: &str, lines: Bytes) -> Sent {
        let request = match self.request(awc::http::Method::POST, path, &[]) {
            Ok(request) => request.content_type("application/x-ndjson"),
            Err(failure) => return Sent::Refused { reason: failure.text() },
        };
        let sent = lines.iter().filter(|byte| **byte == b'\n').count();
        let answer = match self.received(request.send_body(lines).await).await {
            Ok(answer) => answer,
            // The service may have taken lines, and its response was lost.
            Err(failure) => return Sent::None { reason: failure.text(), retry_after: Duration::ZERO },
        };
        let retry_after = answer.retry_after;
        let posted = Posted::of(&answer.json);
        // 422: every line was rejected.
        if answer.status.is_success() || answer.status.as_u16() == 422 {
            let told = answer.json["accepted"].is_u64() && answer.json["rejected"].is_u64();
            return if told && usize::try_from(posted.accepted.saturating_add(posted.rejected)).ok() == Some(sent) {
                Sent::All(posted)
            } else {
                Sent::None { reason: self.foreign(&answer).text(), retry_after }
            };
        }
        let lines = answer.json["line"].as_u64().and_then(|line| usize::try_from(line).ok()).unwrap_or(0);
        let lines = if lines > sent { 0 } else { lines };
        match answer.status.as_u16() {
            408 | 413 | 429 | 503 if lines > 0 => Sent::Some { lines, posted, retry_after },
            // Without its line, it is not known what was taken: nothing is counted that is sent again.
            408 | 429 | 502 | 503 | 504 => Sent::None { reason: self.refusal(&answer).text(), retry_after },
            _ => Sent::Refused { reason: self.refusal(&answer).text() },
        }
    }

    pub(super) async fn delete(&self, path: &str, query: &[(&str, String)]) -> Result<Value, Failure> {
        let sent = self.request(awc::http::Method::DELETE, path, query)?.timeout(Duration::MAX).send().await;
        self.answer(sent).await
    }

    pub(super) async fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let sent = self.request(awc::http::Method::PUT, path, &[])?.send_json(body).await;
        self.answer(sent).await
    }

    /// Whether the service keeps what it is given.
    pub(super) async fn ready(&self) -> Result<(), Failure> {
        let sent = self.request(awc::http::Method::GET, "/readyz", &[])?.send().await;
        let answer = self.received(sent).await?;
        match (answer.status.as_u16(), self.refusal(&answer)) {
            (200..=299, _) if answer.json["status"].is_string() => Ok(()),
            (200..=299, _) => Err(self.foreign(&answer)),
            (503, Failure::Unreachable(text)) => Err(Failure::No(text)),
            (_, failure) => Err(failure),
        }
    }

    /// An answer that comes piece by piece; `last`: the event after which it is to begin.
    pub(super) async fn open(
        &self,
        path: &str,
        query: &[(&str, String)],
        last: Option<&str>,
    ) -> Result<impl Stream<Item = Result<Bytes, awc::error::PayloadError>> + Unpin + use<>, NotOpened> {
        let mut request =
            self.request(awc::http::Method::GET, path, query).map_err(NotOpened::ForGood)?.timeout(Duration::MAX);
        if let Some(last) = last {
            request = request.insert_header(("last-event-id", last));
        }
        let sent = request.send().await;
        match sent {
            Ok(response) if response.status().is_success() => Ok(response),
            sent => Err(match self.received(sent).await {
                Ok(answer) if answer.status.as_u16() == 429 || answer.status.is_server_error() => {
                    NotOpened::ForNow(self.refusal(&answer))
                }
                Ok(answer) => NotOpened::ForGood(self.refusal(&answer)),
                Err(failure) => NotOpened::ForNow(failure),
            }),
        }
    }

    pub(super) fn unreachable(&self, error: impl std::fmt::Display) -> Failure {
        Failure::Unreachable(format!("{}: {error}; is the service running?", self.url))
    }

    async fn answer<S>(
        &self,
        sent: Result<awc::ClientResponse<S>, awc::error::SendRequestError>,
    ) -> Result<Value, Failure>
    where
        S: Stream<Item = Result<Bytes, awc::error::PayloadError>>,
    {
        let answer = self.received(sent).await?;
        match answer.status {
            awc::http::StatusCode::NO_CONTENT => Ok(answer.json),
            status if !status.is_success() => Err(self.refusal(&answer)),
            _ if answer.json.is_null() => Err(self.foreign(&answer)),
            _ => Ok(answer.json),
        }
    }

    async fn received<S>(
        &self,
        sent: Result<awc::ClientResponse<S>, awc::error::SendRequestError>,
    ) -> Result<Answer, Failure>
    where
        S: Stream<Item = Result<Bytes, awc::error::PayloadError>>,
    {
        let mut response = sent.map_err(|error| self.unreachable(error))?;
        let body = response.body().limit(MAX_ANSWER_BYTES).await.map_err(|error| self.unreachable(error))?;
        let seconds = response.headers().get("retry-after").and_then(|after| after.to_str().ok()?.trim().parse().ok());
        Ok(Answer {
            status: response.status(),
            json: serde_json::from_slice(&body).unwrap_or(Value::Null),
            retry_after: seconds.map_or(TRY_AGAIN_AFTER, Duration::from_secs).clamp(TRY_AGAIN_AFTER, TIMEOUT),
        })
    }

    /// The error of a success that is no response of this service, such as a page of another server.
    fn foreign(&self, answer: &Answer) -> Failure {
        Failure::Unreachable(format!("{} answered {}, and is not a failure-logger service", self.url, answer.status))
    }

    /// What the service says of a question or a post that it refuses.
    fn refusal(&self, answer: &Answer) -> Failure {
        let said = answer.json["detail"].as_str().unwrap_or("no reason given");
        let text = format!("{} answered {}: {said}", self.url, answer.status);
        match answer.status.as_u16() {
            400 => Failure::Usage(text),
            // Only a service says so by a problem of its own.
            404 if answer.json["detail"].is_string() => Failure::No(text),
            _ => Failure::Unreachable(text),
        }
    }
}

/// What a service answered.
struct Answer {
    status: awc::http::StatusCode,
    /// Null where it is no JSON.
    json: Value,
    /// How soon to come again.
    retry_after: Duration,
}

/// Why an answer does not come piece by piece.
pub(super) enum NotOpened {
    /// It may go better later.
    ForNow(Failure),
    /// It will not.
    ForGood(Failure),
}

impl From<NotOpened> for Failure {
    fn from(not: NotOpened) -> Self {
        match not {
            NotOpened::ForNow(failure) | NotOpened::ForGood(failure) => failure,
        }
    }
}

/// What a service did with lines that were sent.
pub(super) enum Sent {
    All(Posted),
    /// The service took or rejected the first `lines`.
    Some {
        lines: usize,
        posted: Posted,
        retry_after: Duration,
    },
    /// The same may be taken later.
    None {
        reason: String,
        retry_after: Duration,
    },
    /// The same is never taken.
    Refused {
        reason: String,
    },
}

/// What a service says of lines that it looked at.
pub(super) struct Posted {
    pub(super) accepted: u64,
    pub(super) rejected: u64,
    /// What is wrong with some: the place among the lines that were sent, from 0, and why.
    pub(super) errors: Vec<(usize, String)>,
}

impl Posted {
    fn of(json: &Value) -> Self {
        let error = |error: &Value| {
            let nth = error["line"].as_u64().and_then(|line| usize::try_from(line.checked_sub(1)?).ok()).unwrap_or(0);
            (nth, error["reason"].as_str().unwrap_or("refused").to_owned())
        };
        Self {
            accepted: json["accepted"].as_u64().unwrap_or(0),
            rejected: json["rejected"].as_u64().unwrap_or(0),
            errors: json["errors"].as_array().into_iter().flatten().map(error).collect(),
        }
    }
}

/// Which time is asked about.
#[derive(Args)]
pub(super) struct When {
    /// How far back: a number and s, m, h, d or w, as 24h
    #[arg(long, value_name = "SPAN")]
    since: Option<String>,
    /// The beginning, as 2026-11-24T10:30:00Z
    #[arg(long, conflicts_with = "since", value_name = "TIME")]
    from: Option<String>,
    /// The end [default: now]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
}

impl When {
    pub(super) fn range(&self) -> Result<Option<TimeRange>, Failure> {
        let wrong =
            |name: &str, value: &str, expected: &str| Failure::Usage(format!("--{name} {value}: expected {expected}"));
        let moment = |name: &str, text: &Option<String>| {
            text.as_deref().map(|text| parse_moment(text).map_err(|expected| wrong(name, text, expected))).transpose()
        };
        let to = moment("to", &self.to)?;
        let from = match &self.since {
            Some(since) => {
                let span = parse_span(since).map_err(|expected| wrong("since", since, expected))?;
                to.unwrap_or_else(SystemTime::now).checked_sub(span)
            }
            None => moment("from", &self.from)?,
        };
        if from.is_none() && to.is_none() {
            return Ok(None);
        }
        let from = from.unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Some(to.map_or_else(|| TimeRange::since(from), |to| TimeRange::between(from, to))?))
    }

    pub(super) fn range_or_a_day(&self) -> Result<TimeRange, Failure> {
        Ok(self.range()?.unwrap_or_else(|| TimeRange::last(Duration::from_secs(24 * 60 * 60))))
    }

    /// The same for a service; looked at here first, for the better error.
    pub(super) fn query(&self) -> Result<Vec<(&'static str, String)>, Failure> {
        self.range()?;
        let of = [("since", &self.since), ("from", &self.from), ("to", &self.to)];
        Ok(of.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect())
    }
}
