//! Limit of file descriptors. Connections must leave enough of them for the database.
//!
//! Each connection takes one descriptor. If they run out, SQLite can no longer open its journal,
//! and the service loses the records that its clients send. It is better to accept fewer clients.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Descriptors reserved for the database, its journals, the log and the event loops. The pool has
/// at most 64 connections to the database, each with two or three files.
const RESERVED: usize = 256;

/// Raises the soft limit of this process to the hard limit. Returns the new limit, or `None` if it
/// is unlimited or unknown. The soft limit is 1024 on most systems, for old programs that use
/// `select`. The hard limit is often half a million, and needs no privilege.
pub(super) fn raise() -> Option<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let mut limit = hard;
    // Some systems reject a soft limit that equals their hard limit.
    if soft != hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, "cannot raise the limit of file descriptors to the hard limit");
        limit = soft;
    }
    (limit != RLIM_INFINITY).then(|| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Returns the maximum number of connections of each worker, at most `wanted`, so that the reserved
/// descriptors stay free. With a low limit, half of the descriptors are reserved at most. Each
/// worker has at least one connection, even if that exceeds the limit: a service that accepts no
/// client cannot report why.
pub(super) fn connections_per_worker(workers: usize, wanted: usize, limit: Option<usize>) -> usize {
    let Some(limit) = limit else { return wanted };
    let for_connections = limit.saturating_sub(RESERVED.min(limit / 2));
    wanted.min(for_connections / workers.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_the_reserved_descriptors() {
        assert_eq!(connections_per_worker(2, 20_000, None), 20_000);
        assert_eq!(connections_per_worker(2, 20_000, Some(1_048_576)), 20_000);
        assert_eq!(connections_per_worker(2, 20_000, Some(1024)), 384);
        assert_eq!(connections_per_worker(4, 10, Some(1024)), 10);
        assert_eq!(connections_per_worker(2, 20_000, Some(100)), 25);
        assert_eq!(connections_per_worker(256, 20_000, Some(100)), 1);
    }
}
