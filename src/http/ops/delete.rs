//! Deletion of failures that must not be kept, such as those with personal data.

#![expect(unused_qualifications, reason = "in what utoipa generates")]

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::error::{ChangeError, StoreError};
use crate::http::Api;
use crate::http::params::Params;
use crate::http::problem::{Code, EraseProblems, Problem};
use crate::model::deletion::Deletion;

/// Selection of the failures that are deleted. Exactly one parameter must be set.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeleteQuery {
    /// Deletes the failures of this conversation.
    #[serde(default)]
    conversation_id: Option<String>,
    /// Deletes the failures with exactly this query.
    #[serde(default)]
    query_text: Option<String>,
}

/// Result of a deletion.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeleteResult {
    /// Number of deleted failures.
    rows: u64,
    /// Number of deleted statuses of their queries.
    statuses: u64,
    /// `true` if the database file and its journal contain no remains of the failures. `false` if
    /// another reader still uses the journal, which then keeps the remains for a while.
    is_erased: bool,
}

/// Deletes failures permanently, with the statuses of their queries. Counts of attempts stay. The
/// request needs a token with the scope `erase`.
#[utoipa::path(delete, path = "/v1/failures", operation_id = "erase_failures", tag = "operations", params(DeleteQuery), responses(
    (status = 200, description = "The failures are deleted.", body = DeleteResult),
    EraseProblems,
))]
pub(crate) async fn delete(
    api: Data<Api>,
    query: Params<DeleteQuery>,
) -> Result<HttpResponse, Problem> {
    let deletion = match query.into_inner() {
        DeleteQuery {
            conversation_id: Some(id),
            query_text: None,
        } => Deletion::Conversation(id),
        DeleteQuery {
            conversation_id: None,
            query_text: Some(query),
        } => Deletion::Query(query),
        DeleteQuery {
            conversation_id: Some(_),
            query_text: Some(_),
        } => {
            return Err(Problem::conflict(
                &["conversation_id", "query_text"],
                "expected either `conversation_id` or `query_text`",
            ));
        }
        DeleteQuery {
            conversation_id: None,
            query_text: None,
        } => {
            return Err(Problem::invalid(
                "conversation_id",
                "`conversation_id` or `query_text`, which selects the failures",
            ));
        }
    };
    let report = api
        .logger
        .delete(deletion)
        .await
        .map_err(|error| match error {
            ChangeError::Closed => Problem::new(Code::ShuttingDown, error.to_string()),
            ChangeError::Store(StoreError::Retry(_)) => {
                tracing::warn!(%error, "cannot delete failures");
                Problem::new(
                    Code::DatabaseUnavailable,
                    "the database cannot be written at present; retry later, or see the service's log",
                )
            }
            error => {
                tracing::error!(%error, "cannot delete failures");
                Problem::new(
                    Code::DatabaseUnavailable,
                    "the database cannot be written; see the service's log",
                )
            }
        })?;
    tracing::info!(
        rows = report.rows,
        statuses = report.statuses,
        is_erased = report.is_erased,
        "failures were deleted"
    );
    // Cached rankings may contain the deleted queries.
    api.rankings.clear();
    let (rows, statuses, is_erased) = (report.rows, report.statuses, report.is_erased);
    Ok(HttpResponse::Ok().json(DeleteResult {
        rows,
        statuses,
        is_erased,
    }))
}
