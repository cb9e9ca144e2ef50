//! The connections of readers: one for each thread of the lanes, kept open between reads.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::error::{ReadError, StoreError};
use crate::server::ServerConfig;
use crate::store::postgres::connection::{Connection, KeepsConnection, Purpose};
use crate::store::postgres::errors::is_timeout;
use crate::store::postgres::snapshot::PostgresSnapshot;
use crate::store::reads::{Deadline, Lane, Read, ReadSource};

/// Connections of a pool from which on heavy reads may take two of them.
const ENOUGH_CONNECTIONS: u32 = 6;

/// A database that is read beside its writer.
pub(crate) struct PostgresReads {
    server: ServerConfig,
    pool_size: u32,
    idle: Mutex<Vec<Connection>>,
}

impl PostgresReads {
    /// Returns reads of the database. Nothing connects before the first one.
    pub(crate) fn new(server: ServerConfig, pool_size: u32) -> Self {
        Self {
            server,
            pool_size,
            idle: Mutex::default(),
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadSource for PostgresReads {
    fn snapshot(&self, deadline: Deadline, read: &mut Read<'_>) -> Result<(), ReadError> {
        // A connection that was idle may have ended with its server: then a new one is tried once.
        let mut is_fresh = false;
        loop {
            deadline.check()?;
            let idle = self.idle().pop();
            is_fresh |= idle.is_none();
            let mut connection = idle.unwrap_or_else(|| Connection::new(self.server.clone()));
            // A panic in `read` drops the connection, and the thread of the lane reports it.
            let result: Result<(), ReadError> = connection
                .transact(Purpose::Read(deadline.left()), |conn| {
                    read(&mut PostgresSnapshot(conn), deadline)
                });
            match result {
                Err(ReadError::Store(StoreError::Retry(_))) if !is_fresh => {
                    // The others are of the same age.
                    self.idle().clear();
                    is_fresh = true;
                }
                Err(ReadError::Store(error)) if is_timeout(&error) => {
                    return Err(ReadError::TimedOut);
                }
                Err(ReadError::Store(StoreError::Reopen(cause))) => {
                    return Err(ReadError::Inaccessible {
                        path: self.server.to_string().into(),
                        cause: format!(
                            "{cause}; create the tables by `failure-logger migrate`, or by the \
                             start of a logger"
                        ),
                    });
                }
                result => {
                    self.idle().push(connection);
                    return result;
                }
            }
        }
    }

    fn threads(&self, lane: Lane) -> usize {
        let heavy = if self.pool_size >= ENOUGH_CONNECTIONS {
            2
        } else {
            1
        };
        match lane {
            Lane::Heavy => heavy,
            // One connection is the writer's.
            Lane::Quick => (self.pool_size as usize).saturating_sub(heavy + 1).max(1),
        }
    }

    fn close_idle(&self) {
        self.idle().clear();
    }

    fn path(&self) -> Option<&Path> {
        None
    }
}

impl KeepsConnection for ReadError {
    fn keeps_connection(&self) -> bool {
        match self {
            Self::Store(error) => error.keeps_connection(),
            Self::TimedOut
            | Self::Busy
            | Self::Invalid { .. }
            | Self::Inaccessible { .. }
            | Self::Disabled
            | Self::Export(_) => true,
        }
    }
}
