//! Deletion of failures that must not be kept, with a token of its own.

#![expect(unused_qualifications, reason = "in what utoipa generates")]

use actix_web::HttpResponse;
use actix_web::web::{Data, Query};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::problem::{Contradicted, NotDeleted, Problem};
use crate::error::{MarkError, StoreError};
use crate::store::delete::Deletion;

/// Which failures are deleted: one of both.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteQuery {
    /// The failures of this conversation.
    #[serde(default)]
    conversation: Option<String>,
    /// The failures with exactly this query.
    #[serde(default)]
    query: Option<String>,
}

/// What was deleted.
#[derive(Serialize, ToSchema)]
pub(super) struct DeleteResult {
    /// Failures that were deleted.
    rows: u64,
    /// Statuses of their queries that were deleted.
    statuses: u64,
    /// `true` if nothing of them is left in the file and its journal. `false`: a reader keeps the journal for a while.
    is_erased: bool,
}

/// Deletes failures for good, with the statuses of their queries. Counts stay. Needs the token for `delete`.
#[utoipa::path(delete, path = "/v1/failures", tag = "operations", params(DeleteQuery), responses(
    (status = 200, body = DeleteResult),
    NotDeleted,
    Contradicted,
))]
pub(super) async fn delete(api: Data<Api>, query: Query<DeleteQuery>) -> Result<HttpResponse, Problem> {
    let deletion = match query.into_inner() {
        DeleteQuery { conversation: Some(id), query: None } => Deletion::Conversation(id),
        DeleteQuery { conversation: None, query: Some(query) } => Deletion::Query(query),
        DeleteQuery { conversation: Some(_), query: Some(_) } => {
            return Err(Problem::conflict("expected either `conversation` or `query`"));
        }
        DeleteQuery { conversation: None, query: None } => {
            return Err(Problem::bad_request("expected `conversation` or `query`: what is to be deleted"));
        }
    };
    let report = api.logger.delete(deletion).await.map_err(|error| match error {
        MarkError::Store(StoreError::Retry(_)) | MarkError::Closed => Problem::unavailable(error.to_string()),
        error => {
            tracing::error!(%error, "failures could not be deleted");
            Problem::unavailable("the database cannot be written now; see the service's log")
        }
    })?;
    tracing::info!(
        rows = report.rows,
        statuses = report.statuses,
        is_erased = report.is_erased,
        "failures were deleted"
    );
    api.answers.forget();
    let (rows, statuses, is_erased) = (report.rows, report.statuses, report.is_erased);
    Ok(HttpResponse::Ok().json(DeleteResult { rows, statuses, is_erased }))
}
