//! The table of the reference implementation, in a file or in a PostgreSQL server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Double, Nullable};

use crate::database_url::DatabaseUrl;
use crate::error::ReadError;
#[cfg(feature = "postgres")]
use crate::store::postgres::reference::ReferenceServer;
use crate::store::sqlite::reference::ReferenceFile;

/// Rows that are read at a time.
pub(crate) const PAGE: i64 = 1000;
/// Longest time of one page.
pub(crate) const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// A database that the reference implementation wrote.
pub(crate) struct Reference {
    /// Its path, or its URL without a password.
    pub(crate) name: PathBuf,
    kind: Kind,
}

enum Kind {
    File(ReferenceFile),
    #[cfg(feature = "postgres")]
    Server(ReferenceServer),
}

impl Reference {
    /// Returns the database at `path`, which may be the URL of a server. The first page opens it.
    pub(crate) fn open(path: &Path) -> Result<Self, ReadError> {
        let url = DatabaseUrl::from(path.to_string_lossy().into_owned());
        if !url.is_postgres() {
            return Ok(Self {
                name: path.into(),
                kind: Kind::File(ReferenceFile::open(path)),
            });
        }
        let name = PathBuf::from(url.to_string());
        #[cfg(feature = "postgres")]
        return Ok(Self {
            name,
            kind: Kind::Server(ReferenceServer::open(url)),
        });
        #[cfg(not(feature = "postgres"))]
        return Err(ReadError::Inaccessible {
            path: name,
            cause:
                "this program was built without PostgreSQL; build it with the feature `postgres`"
                    .into(),
        });
    }

    /// Returns some rows after an id. `Err` within `Ok`: there is no such table, with the reason.
    pub(crate) async fn page(
        &self,
        after: i64,
    ) -> Result<Result<Vec<ReferenceRow>, String>, ReadError> {
        match &self.kind {
            Kind::File(file) => file.page(after).await,
            #[cfg(feature = "postgres")]
            Kind::Server(server) => server.page(after).await,
        }
    }
}

#[derive(QueryableByName)]
pub(crate) struct ReferenceRow {
    #[diesel(sql_type = BigInt)]
    pub(crate) id: i64,
    #[diesel(sql_type = Nullable<Binary>)]
    pub(crate) conversation_id: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) turn_index: Option<i64>,
    #[diesel(sql_type = Nullable<Binary>)]
    pub(crate) failure_type: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    pub(crate) retrieval_strategy: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    pub(crate) query_text: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) query_len: Option<i64>,
    #[diesel(sql_type = Nullable<Double>)]
    pub(crate) top_score: Option<f64>,
    #[diesel(sql_type = Nullable<Double>)]
    pub(crate) confidence_threshold: Option<f64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) result_count: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) latency_ms: Option<i64>,
    #[diesel(sql_type = Nullable<Binary>)]
    pub(crate) edge_types: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    pub(crate) error_context: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(crate) created_at: Option<i64>,
}
