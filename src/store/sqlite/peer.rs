//! Another connection to a database file, as another program has one, for tests.

use std::path::Path;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use crate::store::snapshot::Snapshot;

pub(crate) struct Peer(SqliteConnection);

impl Peer {
    pub(crate) fn open(path: &Path) -> Self {
        let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        conn.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
        Self(conn)
    }

    pub(crate) fn execute(&mut self, sql: &str) {
        self.0.batch_execute(sql).expect(sql);
    }

    pub(crate) fn integer(&mut self, sql: &str) -> i64 {
        diesel::select(diesel::dsl::sql::<BigInt>(&format!("({sql})")))
            .get_result(&mut self.0)
            .expect(sql)
    }

    /// Returns the snapshot that a report reads.
    pub(crate) fn snapshot(&mut self) -> &mut dyn Snapshot {
        &mut self.0
    }

    pub(crate) fn text(&mut self, sql: &str) -> String {
        diesel::select(diesel::dsl::sql::<Text>(&format!("({sql})")))
            .get_result(&mut self.0)
            .expect(sql)
    }
}
