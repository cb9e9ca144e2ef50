//! The OpenAPI description of the routes.

use std::sync::OnceLock;

use actix_web::{HttpRequest, HttpResponse};
use utoipa::OpenApi;

use crate::http::ops::{delete, health, metrics, stats};
use crate::http::problem::OpenProblems;
use crate::http::read::{self, queries, tail};
use crate::http::{cached, ingest, wire};

#[derive(OpenApi)]
#[openapi(
    info(title = "failure-logger", description = "Records failed retrievals and reports how often and why they fail."),
    paths(
        ingest::failures,
        ingest::attempts,
        ingest::traces::traces,
        delete::delete,
        read::failures,
        read::failure,
        read::summary,
        read::timeseries,
        read::strategies,
        queries::queries,
        queries::set_status,
        read::conversations,
        read::calibration,
        read::export,
        tail::tail,
        stats::stats,
        metrics::metrics,
        health::livez,
        health::healthz,
        health::readyz,
        openapi
    ),
    components(schemas(crate::report::ExportFormat, wire::schema::FailureOrList, wire::schema::NewFailure, wire::schema::AttemptOrList, wire::schema::NewAttempt)),
    modifiers(&Tokens)
)]
struct Description;

/// Modifier that adds the optional bearer token to the description.
struct Tokens;

impl utoipa::Modify for Tokens {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{
            HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
        };
        let scheme =
            SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        description
            .components
            .get_or_insert_default()
            .add_security_scheme("token", scheme);
        // The empty requirement makes the token optional, because the default has no tokens.
        description.security = Some(vec![
            SecurityRequirement::default(),
            SecurityRequirement::new("token", Vec::<String>::new()),
        ]);
    }
}

/// Returns the OpenAPI description of this API.
#[utoipa::path(get, path = "/openapi.json", operation_id = "get_description", tag = "operations", responses(
    (status = 200, description = "An OpenAPI 3.1 document.", body = serde_json::Value),
    OpenProblems,
))]
pub(crate) async fn openapi(request: HttpRequest) -> HttpResponse {
    // The description is constant while the process runs.
    static JSON: OnceLock<cached::Content> = OnceLock::new();
    let content = JSON.get_or_init(|| {
        let json = serde_json::to_vec(&Description::openapi()).unwrap_or_default();
        cached::Content::new("application/json", json)
    });
    cached::respond(&request, content)
}
