//! The status of a failing query.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::time::Timestamp;

/// The status of a failing query, and of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum QueryStatus {
    /// Needs work.
    #[default]
    Open,
    /// Fixed. The next failure reopens it.
    Resolved,
    /// Needs no work, however often it fails.
    Ignored,
}

impl QueryStatus {
    /// All statuses, in the order of declaration.
    pub const ALL: [Self; 3] = [Self::Open, Self::Resolved, Self::Ignored];

    /// Returns the stored name: `open`, `resolved` or `ignored`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Resolved => "resolved",
            Self::Ignored => "ignored",
        }
    }

    /// Returns the status with this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

impl fmt::Display for QueryStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A status, and the time at which it was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StatusChange {
    pub(crate) status: QueryStatus,
    pub(crate) set_at: Timestamp,
}
