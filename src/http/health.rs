//! Whether the service lives, and whether it keeps what it is given.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::problem::{Problem, WrongMethod};
use crate::error::Unhealthy;

/// All is well.
#[derive(Serialize, ToSchema)]
pub(super) struct Healthy {
    /// `ok`; of `/readyz` also `attempts_refused`, if records are stored and attempts cannot be counted.
    status: &'static str,
}

/// The process lives.
#[utoipa::path(get, path = "/healthz", tag = "operations", responses(
    (status = 200, body = Healthy),
    WrongMethod,
))]
pub(super) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(Healthy { status: "ok" })
}

/// Records are kept: the logger runs, and what it accepted ten seconds ago is written.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, body = Healthy),
    WrongMethod,
    (status = 503, body = Problem, content_type = "application/problem+json", description = "the reason is in `detail`"),
))]
pub(super) async fn readyz(api: Data<Api>) -> Result<HttpResponse, Problem> {
    match api.logger.health() {
        Ok(()) => Ok(HttpResponse::Ok().json(Healthy { status: "ok" })),
        // Without requests, records would be lost that it can store.
        Err(Unhealthy::AttemptsRefused { .. }) => Ok(HttpResponse::Ok().json(Healthy { status: "attempts_refused" })),
        Err(unhealthy) => Err(Problem::unavailable(told(&unhealthy))),
    }
}

/// What is wrong, without what the system said, for that has paths in it.
pub(super) fn told(unhealthy: &Unhealthy) -> String {
    match unhealthy {
        Unhealthy::Unavailable { .. } => {
            "the logger cannot be restarted and goes on trying; see the service's log".to_owned()
        }
        Unhealthy::Stale { seconds, .. } => format!("nothing could be written for {seconds} s; see the service's log"),
        Unhealthy::AttemptsRefused { .. } => "attempts cannot be counted; see the service's log".to_owned(),
        plain => plain.to_string(),
    }
}
