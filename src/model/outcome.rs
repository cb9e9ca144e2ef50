//! The outcomes of a retrieval, and the types of failure among them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Defines the types of failure once. Every array, field and name that depends on the type comes
/// from here.
macro_rules! failure_types {
    ($($(#[doc = $doc:literal])+ $variant:ident $name:ident;)+) => {
        /// Type of a failed retrieval.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum RetrievalFailureType {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl RetrievalFailureType {
            /// All types, in the order of declaration.
            pub const ALL: [Self; [$(stringify!($name)),+].len()] = [$(Self::$variant),+];

            /// Returns the stored name.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($name),)+
                }
            }
        }

        /// Outcome of a retrieval.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum OutcomeKind {
            /// At least one result was good enough.
            Success,
            $($(#[doc = $doc])+ $variant,)+
            /// The caller stopped waiting. Neither a success nor a failure.
            Cancelled,
            /// Nothing says whether something was found. Neither a success nor a failure.
            Unknown,
        }

        impl OutcomeKind {
            /// All outcomes, in the order of declaration.
            pub const ALL: [Self; RetrievalFailureType::ALL.len() + 3] =
                [Self::Success, $(Self::$variant,)+ Self::Cancelled, Self::Unknown];

            /// Returns the stored name.
            pub const fn as_str(self) -> &'static str {
                match self {
                    Self::Success => "success",
                    $(Self::$variant => stringify!($name),)+
                    Self::Cancelled => "cancelled",
                    Self::Unknown => "unknown",
                }
            }

            /// Returns the type of failure, or `None` for the other outcomes.
            pub const fn failure(self) -> Option<RetrievalFailureType> {
                match self {
                    $(Self::$variant => Some(RetrievalFailureType::$variant),)+
                    Self::Success | Self::Cancelled | Self::Unknown => None,
                }
            }
        }

        impl From<RetrievalFailureType> for OutcomeKind {
            fn from(failure: RetrievalFailureType) -> Self {
                match failure {
                    $(RetrievalFailureType::$variant => Self::$variant,)+
                }
            }
        }

        /// Failures of each type.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        #[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
        #[non_exhaustive]
        pub struct FailuresByType {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl FailuresByType {
            /// Returns the number that `failures` gives for each type.
            pub(crate) fn new(failures: impl Fn(RetrievalFailureType) -> u64) -> Self {
                Self { $($name: failures(RetrievalFailureType::$variant),)+ }
            }
        }
    };
}

failure_types! {
    /// Nothing was found.
    NoHit no_hit;
    /// The best score was on the wrong side of the threshold.
    LowConfidence low_confidence;
    /// The lookup did not finish in time.
    Timeout timeout;
    /// The backend returned an error.
    Error error;
}

impl RetrievalFailureType {
    /// Returns the type with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|failure| failure.as_str() == name)
    }
}

impl fmt::Display for RetrievalFailureType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl OutcomeKind {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for OutcomeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_json_and_lead_back() {
        for kind in OutcomeKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(OutcomeKind::parse(kind.as_str()), Some(kind));
            assert_eq!(OutcomeKind::ALL[kind as usize], kind);
        }
        for failure in RetrievalFailureType::ALL {
            assert_eq!(serde_json::to_value(failure).unwrap(), failure.as_str());
            assert_eq!(RetrievalFailureType::parse(failure.as_str()), Some(failure));
            assert_eq!(OutcomeKind::from(failure).failure(), Some(failure));
        }
        let by_type = FailuresByType::new(|failure| failure as u64);
        let json = serde_json::to_value(by_type).unwrap();
        for failure in RetrievalFailureType::ALL {
            assert_eq!(json[failure.as_str()], failure as u64);
        }
    }
}
