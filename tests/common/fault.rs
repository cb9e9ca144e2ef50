//! A database for each test that injects faults.

use std::ops::Deref;

use fail::FailScenario;

use super::TestDb;

/// A database, and the right to inject faults.
///
/// Fault points belong to the whole process. Tests with a `FaultDb` run one after the other, and
/// its end removes all faults.
pub struct FaultDb {
    db: TestDb,
    _scenario: FailScenario<'static>,
}

impl FaultDb {
    pub fn new() -> Self {
        let scenario = FailScenario::setup();
        Self {
            db: TestDb::new(),
            _scenario: scenario,
        }
    }
}

impl Deref for FaultDb {
    type Target = TestDb;

    fn deref(&self) -> &TestDb {
        &self.db
    }
}
