//! The description of the routes, for programs that read such descriptions.

use actix_web::HttpResponse;
use utoipa::OpenApi;

use super::problem::Refused;
use super::{delete, health, ingest, metrics, queries, questions, stats, tail, wire};

#[derive(OpenApi)]
#[openapi(
    info(title = "failure-logger", description = "Records failed retrievals, and answers how often and why they fail."),
    paths(
        ingest::failures,
        ingest::attempts,
        delete::delete,
        questions::failures,
        questions::failure,
        questions::summary,
        questions::timeseries,
        questions::strategies,
        queries::queries,
        queries::mark,
        questions::conversations,
        questions::calibration,
        questions::export,
        tail::tail,
        stats::stats,
        metrics::metrics,
        health::healthz,
        health::readyz,
        openapi
    ),
    components(schemas(crate::report::ExportFormat, wire::schema::FailureOrList, wire::schema::NewFailure, wire::schema::AttemptOrList, wire::schema::NewAttempt)),
    modifiers(&Tokens)
)]
struct Description;

/// Says that routes may ask for a token.
struct Tokens;

impl utoipa::Modify for Tokens {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        description.components.get_or_insert_default().add_security_scheme("token", scheme);
        // Only where the service was given tokens: none is needed by default.
        description.security =
            Some(vec![SecurityRequirement::default(), SecurityRequirement::new("token", Vec::<String>::new())]);
    }
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "operations", responses(
    (status = 200, body = serde_json::Value),
    Refused,
))]
pub(super) async fn openapi() -> HttpResponse {
    HttpResponse::Ok().json(Description::openapi())
}
