//! Whether the service lives, and whether it keeps what it is given.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::problem::{Problem, Refused};

/// All is well.
#[derive(Serialize, ToSchema)]
pub(super) struct Healthy {
    /// `ok`.
    status: &'static str,
}

/// The process lives.
#[utoipa::path(get, path = "/healthz", tag = "operations", responses(
    (status = 200, body = Healthy),
    Refused,
))]
pub(super) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(Healthy { status: "ok" })
}

/// Records are kept: the logger runs, and what it accepted ten seconds ago is written.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, body = Healthy),
    Refused,
    (status = 503, body = Problem, content_type = "application/problem+json", description = "the reason is in `detail`"),
))]
pub(super) async fn readyz(api: Data<Api>) -> Result<HttpResponse, Problem> {
    match api.logger.health() {
        Ok(()) => Ok(HttpResponse::Ok().json(Healthy { status: "ok" })),
        Err(unhealthy) => Err(Problem::unavailable(unhealthy.to_string(), None)),
    }
}
