//! Client of a running service: requests, responses and their errors.
//!
//! The client trusts no response before it has seen the header [`VERSION_HEADER`]. Between the
//! client and the service there may be a proxy, a captive portal or the wrong server, and each of
//! them responds 200 to anything. Records that such a server swallowed would be lost, if `ingest`
//! took its 200 for a success.
//!
//! Each error carries its remedy in its variant:
//!
//! - [`CommandError::Usage`]: the command or the token is wrong, and a retry fails in the same way;
//! - [`CommandError::Failed`]: the service understood the request, and has no such object;
//! - [`CommandError::Unreachable`]: the network, the proxy or the service is at fault.
//!
//! Reads are not retried: a person or a script waits, and can repeat the command. `ingest` retries
//! by itself, because its input cannot be read twice. A tail stream is reopened by its caller.

#![expect(
    clippy::indexing_slicing,
    reason = "a JSON value that is not there is null"
)]

use std::time::Duration;

use actix_web::web::Bytes;
use futures_util::Stream;
use serde_json::Value;

use failure_logger::http::Scope;
use failure_logger::program::{NamedToken, VERSION_HEADER, reveal};

use super::settings::tokens;
use super::{CommandError, Target, tls};

/// Timeout of a request, and of a read of the database file. A service ends a read within seconds.
/// The rest is for slow networks, and for a database file on a slow disk.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);
/// Shortest pause before a retry, and the default without a `Retry-After` header. A proxy that
/// sends `Retry-After: 0` must not cause a loop without pauses.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Maximum size of a response body. It bounds the memory that a wrong server can fill. A page of
/// 1000 failures has some megabytes.
const MAX_RESPONSE_BYTES: usize = 256 << 20;

/// Running service that is addressed by `--url`.
pub(super) struct Service {
    /// Address without a slash at its end, so that a path can follow.
    url: String,
    /// Tokens of `--url-token-file`, in the order of the file.
    tokens: Vec<NamedToken>,
    /// HTTP client, which reuses connections.
    client: awc::Client,
}

impl Service {
    /// Checks the address and the tokens. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// An address that is no HTTP URL, or a token that would cross the network unencrypted. The
    /// exception for loopback addresses serves a tunnel or a proxy on this machine.
    pub(super) fn new(url: &str, target: &Target) -> Result<Self, CommandError> {
        let url = url.trim_end_matches('/').to_owned();
        let tls = if url.starts_with("https://") {
            Some(tls::config(target.ca_file.as_deref())?)
        } else if url.starts_with("http://") {
            None
        } else {
            let expected = "an address such as http://127.0.0.1:4318 or https://fl.example";
            return Err(CommandError::Usage(format!(
                "--url {url}: expected {expected}"
            )));
        };
        let tokens = target
            .url_token_file
            .as_deref()
            .map(tokens)
            .transpose()?
            .unwrap_or_default();
        if tls.is_none() && !tokens.is_empty() && !target.insecure && !is_loopback(&url) {
            return Err(CommandError::Usage(format!(
                "--url {url}: cannot send the token over unencrypted HTTP to another host; use \
                 https:// or allow it with --insecure"
            )));
        }
        // Redirects are not followed: another host must not receive the queries or the token.
        let client = awc::Client::builder().timeout(TIMEOUT).disable_redirects();
        let client = match tls {
            Some(config) => client
                .connector(awc::Connector::new().rustls_0_23(config))
                .finish(),
            None => client.finish(),
        };
        Ok(Self {
            url,
            tokens,
            client,
        })
    }

    /// Returns a request with the first token of the file that has the needed scope. The method
    /// decides about the scope, so that one file can serve all commands.
    pub(super) fn request(
        &self,
        method: awc::http::Method,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<awc::ClientRequest, CommandError> {
        let scope = match (&method, path) {
            (&awc::http::Method::POST, _) => Scope::Ingest,
            (&awc::http::Method::DELETE, _) => Scope::Erase,
            (&awc::http::Method::PUT, _) => Scope::Triage,
            _ => Scope::Read,
        };
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.url))
            .query(&query)
            .map_err(|error| CommandError::Usage(format!("--url {}: {error}", self.url)))?;
        // Without a token of that scope, the first token is sent: the service names the scope that
        // is missing.
        let named = self
            .tokens
            .iter()
            .find(|named| named.scopes.contains(&scope))
            .or(self.tokens.first());
        if let Some(named) = named {
            request = request.bearer_auth(reveal(&named.token));
        }
        Ok(request)
    }

    /// Reads a document. Each `query` is a list of parameters, in which a name may occur several
    /// times.
    pub(super) async fn get(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Value, CommandError> {
        let sent = self
            .request(awc::http::Method::GET, path, query)?
            .send()
            .await;
        self.json(sent).await
    }

    /// Posts JSON lines, each with a line feed.
    ///
    /// The outcome is one of four, and says which lines the caller has to send once more:
    ///
    /// | response | outcome |
    /// | --- | --- |
    /// | success or 422, with counts of all lines | [`PostOutcome::Complete`] |
    /// | 408, 413, 429 or 503 with `processed` | [`PostOutcome::Partial`] |
    /// | no response, a response of a proxy, a temporary error | [`PostOutcome::Retry`] |
    /// | any other status | [`PostOutcome::Rejected`] |
    ///
    /// Counts that do not add up to the number of lines are a response of another server, or of a
    /// version that counts otherwise. The lines are sent once more, because their ids make that
    /// harmless.
    pub(super) async fn post(&self, path: &str, lines: Bytes) -> PostOutcome {
        let request = match self.request(awc::http::Method::POST, path, &[]) {
            Ok(request) => request.content_type("application/x-ndjson"),
            Err(error) => {
                return PostOutcome::Rejected {
                    reason: error.text(),
                };
            }
        };
        let sent = lines.iter().filter(|byte| **byte == b'\n').count();
        let response = match self.received(request.send_body(lines).await).await {
            Ok(response) => response,
            // The service may have accepted lines whose response did not arrive. The retry is
            // idempotent, because each line has an `event_id`.
            Err(error) => {
                return PostOutcome::Retry {
                    reason: error.text(),
                    retry_after: Duration::ZERO,
                };
            }
        };
        let retry_after = response.retry_after;
        let processed = Processed::from_json(&response.json);
        if !response.is_ours && (response.status.is_success() || response.status.is_redirection()) {
            return PostOutcome::Retry {
                reason: self.not_our_service(&response).text(),
                retry_after,
            };
        }
        // Status 422 means that every line was rejected.
        if response.status.is_success() || response.status.as_u16() == 422 {
            let has_counts =
                response.json["accepted"].is_u64() && response.json["rejected"].is_u64();
            return if has_counts
                && usize::try_from(processed.accepted.saturating_add(processed.rejected)).ok()
                    == Some(sent)
            {
                PostOutcome::Complete(processed)
            } else {
                PostOutcome::Retry {
                    reason: self.not_our_service(&response).text(),
                    retry_after,
                }
            };
        }
        // A number beyond the lines of this request cannot be right. It counts as absent.
        let lines = response.json["processed"]
            .as_u64()
            .and_then(|line| usize::try_from(line).ok())
            .unwrap_or(0);
        let lines = if lines > sent { 0 } else { lines };
        match response.status.as_u16() {
            // A body that is too large is accepted up to the limit, so that the rest fits into a
            // further request.
            408 | 413 | 429 | 503 if lines > 0 => PostOutcome::Partial {
                lines,
                processed,
                retry_after,
            },
            // Without `processed`, the number of accepted lines is unknown. All lines are retried
            // and none is counted yet.
            408 | 429 | 502 | 503 | 504 => PostOutcome::Retry {
                reason: self.response_error(&response).text(),
                retry_after,
            },
            _ => PostOutcome::Rejected {
                reason: self.response_error(&response).text(),
            },
        }
    }

    /// Deletes on the service. The request has no timeout: the service responds after the erasure,
    /// which may take long in a large log.
    pub(super) async fn delete(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Value, CommandError> {
        let sent = self
            .request(awc::http::Method::DELETE, path, query)?
            .timeout(Duration::MAX)
            .send()
            .await;
        self.json(sent).await
    }

    /// Replaces an object on the service, with a body in JSON.
    pub(super) async fn put(&self, path: &str, body: &Value) -> Result<Value, CommandError> {
        let sent = self
            .request(awc::http::Method::PUT, path, &[])?
            .send_json(body)
            .await;
        self.json(sent).await
    }

    /// Returns `Ok` if `/readyz` reports that the service can persist records.
    ///
    /// A service that responds 503 works, and is not ready: the exit code is 1. No response, or one
    /// of another server, is 3. Monitoring thus distinguishes a stale database from a service that
    /// is down.
    pub(super) async fn ready(&self) -> Result<(), CommandError> {
        let sent = self
            .request(awc::http::Method::GET, "/readyz", &[])?
            .send()
            .await;
        let response = self.received(sent).await?;
        match (response.status.as_u16(), self.response_error(&response)) {
            (200..=299, _) if response.is_ours && response.json["status"].is_string() => Ok(()),
            (200..=299, _) => Err(self.not_our_service(&response)),
            (503, CommandError::Unreachable(text)) => Err(CommandError::Failed(text)),
            (_, error) => Err(error),
        }
    }

    /// Opens a streamed response. A tail stream resumes after the event `last_event_id`.
    ///
    /// The stream has no timeout, because an export may take long and a tail stream has no end. The
    /// size is unlimited, too: the caller handles each piece as it arrives.
    pub(super) async fn open(
        &self,
        path: &str,
        query: &[(&str, String)],
        last_event_id: Option<&str>,
    ) -> Result<
        impl Stream<Item = Result<Bytes, awc::error::PayloadError>> + Unpin + use<>,
        OpenError,
    > {
        let mut request = self
            .request(awc::http::Method::GET, path, query)
            .map_err(OpenError::Permanent)?
            .timeout(Duration::MAX);
        if let Some(id) = last_event_id {
            request = request.insert_header(("last-event-id", id));
        }
        let sent = request.send().await;
        match sent {
            Ok(response) if response.status().is_success() && is_ours(response.headers()) => {
                Ok(response)
            }
            sent => Err(match self.received(sent).await {
                Ok(response) if response.status.is_success() => {
                    OpenError::Permanent(self.not_our_service(&response))
                }
                Ok(response)
                    if response.status.as_u16() == 429 || response.status.is_server_error() =>
                {
                    OpenError::Transient(self.response_error(&response))
                }
                Ok(response) => OpenError::Permanent(self.response_error(&response)),
                Err(error) => OpenError::Transient(error),
            }),
        }
    }

    /// Returns the error for a request without a response.
    pub(super) fn unreachable(&self, error: impl std::fmt::Display) -> CommandError {
        CommandError::Unreachable(format!(
            "cannot reach {}: {error}; is the service running?",
            self.url
        ))
    }

    /// Returns the body of a success. A 204 has no body and returns null. Any other success without
    /// JSON is the response of another server.
    async fn json<S>(
        &self,
        sent: Result<awc::ClientResponse<S>, awc::error::SendRequestError>,
    ) -> Result<Value, CommandError>
    where
        S: Stream<Item = Result<Bytes, awc::error::PayloadError>>,
    {
        let response = self.received(sent).await?;
        match response.status {
            // An error is examined first, because `response_error` recognizes other servers by
            // itself.
            status if !status.is_success() => Err(self.response_error(&response)),
            _ if !response.is_ours => Err(self.not_our_service(&response)),
            awc::http::StatusCode::NO_CONTENT => Ok(response.json),
            _ if response.json.is_null() => Err(self.not_our_service(&response)),
            _ => Ok(response.json),
        }
    }

    /// Reads a response to its end, whatever its status. The body of an error has its `detail`, and
    /// a connection whose response is read can be reused.
    ///
    /// `Retry-After` is in seconds. A date, its other form, counts as absent: no service of this
    /// project sends one.
    async fn received<S>(
        &self,
        sent: Result<awc::ClientResponse<S>, awc::error::SendRequestError>,
    ) -> Result<Received, CommandError>
    where
        S: Stream<Item = Result<Bytes, awc::error::PayloadError>>,
    {
        let mut response = sent.map_err(|error| self.unreachable(error))?;
        let body = response
            .body()
            .limit(MAX_RESPONSE_BYTES)
            .await
            .map_err(|error| self.unreachable(error))?;
        let seconds = response
            .headers()
            .get("retry-after")
            .and_then(|after| after.to_str().ok()?.trim().parse().ok());
        let location = response
            .headers()
            .get("location")
            .and_then(|location| location.to_str().ok());
        Ok(Received {
            status: response.status(),
            is_ours: is_ours(response.headers()),
            location: location.map(str::to_owned),
            json: serde_json::from_slice(&body).unwrap_or(Value::Null),
            retry_after: seconds
                .map_or(MIN_RETRY_AFTER, Duration::from_secs)
                .clamp(MIN_RETRY_AFTER, TIMEOUT),
        })
    }

    /// Returns the error for a response of another server, such as a captive portal's page.
    fn not_our_service(&self, response: &Received) -> CommandError {
        CommandError::Unreachable(format!(
            "{} responded {}, but is not a failure-logger service; check --url",
            self.url, response.status
        ))
    }

    /// Returns the error for a response without success, with the `detail` of the service. The
    /// order of the cases matters: a proxy can send each status by itself, so that most statuses
    /// say something about the log only if the response is ours.
    fn response_error(&self, response: &Received) -> CommandError {
        let detail = response.json["detail"]
            .as_str()
            .unwrap_or("no reason given");
        let text = format!("{} responded {}: {detail}", self.url, response.status);
        match response.status.as_u16() {
            300..=399 => CommandError::Unreachable(format!(
                "{} redirects to {}, which is not followed; set --url to that address",
                self.url,
                response.location.as_deref().unwrap_or("no address")
            )),
            404 if !response.is_ours => self.not_our_service(response),
            _ if !response.is_ours => CommandError::Unreachable(format!(
                "{} responded {}, but the response is not from failure-logger; check the proxy and --url",
                self.url, response.status
            )),
            // The query, the body or the token is wrong: the caller has to change the command.
            400 | 401 | 403 => CommandError::Usage(text),
            // A 404 with a `detail` names an object that the log does not have.
            404 if response.json["detail"].is_string() => CommandError::Failed(text),
            _ => CommandError::Unreachable(text),
        }
    }
}

/// Returns `true` if a response carries the version header of the service. A proxy in front of the
/// service sends its own responses, such as 502, without that header.
fn is_ours(headers: &awc::http::header::HeaderMap) -> bool {
    headers.contains_key(VERSION_HEADER)
}

/// Returns `true` if the host of `url` is a loopback address or `localhost`.
///
/// A name other than `localhost` is not resolved, because the resolution may change until the
/// request is sent. User information before `@` is skipped: `http://localhost@fl.example` leads to
/// `fl.example`.
fn is_loopback(url: &str) -> bool {
    let host = url
        .split_once("://")
        .and_then(|(_, rest)| rest.split(['/', '?']).next())
        .unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let name = match host.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse()
            .is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// Response of a service, read to its end.
struct Received {
    /// Status, of the service or of a proxy.
    status: awc::http::StatusCode,
    /// `true` if failure-logger sent the response, directly or through a proxy.
    is_ours: bool,
    /// Target of a redirect, which an error names.
    location: Option<String>,
    /// Body, or null if it is not JSON.
    json: Value,
    /// Pause before a retry.
    retry_after: Duration,
}

/// Error of [`Service::open`].
pub(super) enum OpenError {
    /// The service or the network is at fault for a while. A retry may succeed.
    Transient(CommandError),
    /// The request is at fault, or the server is not ours. A retry fails as well.
    Permanent(CommandError),
}

impl From<OpenError> for CommandError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Transient(error) | OpenError::Permanent(error) => error,
        }
    }
}

/// Outcome of [`Service::post`].
pub(super) enum PostOutcome {
    /// The service accepted or rejected every line.
    Complete(Processed),
    /// The service accepted or rejected the first `lines` lines only.
    Partial {
        lines: usize,
        processed: Processed,
        retry_after: Duration,
    },
    /// The outcome is unknown or temporary: the same lines have to be processed once more.
    Retry {
        reason: String,
        retry_after: Duration,
    },
    /// The service rejects the request itself; a retry fails as well.
    Rejected { reason: String },
}

/// Counts and errors of the lines that a service processed.
pub(super) struct Processed {
    /// Records that the service has in its buffer or knows already.
    pub(super) accepted: u64,
    /// Lines that the service cannot parse or store. A retry cannot change that.
    pub(super) rejected: u64,
    /// Indexes of rejected lines among the posted ones, from 0, with the reasons. The service
    /// reports only the first few.
    pub(super) errors: Vec<(usize, String)>,
}

impl Processed {
    /// Reads the counts of a success or of an error. Absent counts are zero. The service counts
    /// lines from 1, and the result from 0.
    fn from_json(json: &Value) -> Self {
        let error = |error: &Value| {
            let nth = error["line"]
                .as_u64()
                .and_then(|line| usize::try_from(line.checked_sub(1)?).ok())
                .unwrap_or(0);
            (
                nth,
                error["detail"].as_str().unwrap_or("rejected").to_owned(),
            )
        };
        Self {
            accepted: json["accepted"].as_u64().unwrap_or(0),
            rejected: json["rejected"].as_u64().unwrap_or(0),
            errors: json["errors"]
                .as_array()
                .into_iter()
                .flatten()
                .map(error)
                .collect(),
        }
    }
}
