//! The retention clock: the time by which retention measures the age of rows.
//!
//! A wall clock may be wrong: by years after a battery died, by hours after a virtual machine was
//! paused, by seconds until a time server corrected it. A purge cannot be undone, so retention
//! follows the wall clock only as far as something else explains it. The state of its clock is one
//! row of the database, which every process that deletes rows reads and updates.
//!
//! # Advances that are trusted
//!
//! - **Time since boot**, sleep included, together with the boot's id. A wall clock that agrees
//!   with it since the last trusted reading is trusted at once, however long ago that was: machines
//!   that sleep at night, and programs that run for a minute a week on a machine that stays on.
//! - **A short absence.** An advance that nothing explains is trusted at once if it is at most the
//!   allowance: a tenth of the retention, one hour to ten days. The machine was off, or a virtual
//!   machine was paused. A clock that is wrong by less than that deletes rows that much too early.
//!   Within one boot the allowance holds for all such advances of a day of the boot together: the
//!   time since boot contradicts more.
//! - **A day of use.** A longer advance is doubted, and no row is deleted by it. It is trusted as
//!   soon as a reading is a day later than the first doubted one and no reading in between was
//!   earlier than that. If both are of the same boot, the time since boot must prove the day, up to
//!   an hour; if it contradicts the clock, the doubt begins with the later reading. A process that
//!   runs on takes a day. A program that runs for a minute a week, a month or a year, on a machine
//!   that is off in between, is one run behind. A program that crashes and starts each minute gains
//!   nothing, because its readings are not a day apart.
//! - **The earlier of two clocks.** Rows are as old as the earlier one of wall clock and retention
//!   clock says, so that a clock that was set back deletes nothing at all. A clock that stays
//!   behind for a day of use is trusted as well: a database that was created under a clock of the
//!   future is protected from then on.
//!
//! # Advances that are not trusted
//!
//! - **The dates of rows.** Clients choose them.
//! - **A second jump in the life of one process.** It begins the day of use from its own reading.
//!
//! # Limits
//!
//! A clock that is wrong by years and runs evenly for a day is trusted, and deletes rows, because
//! nothing on the machine contradicts it. So is one that is ahead after one boot and further ahead
//! after the next, because a machine that is off for years looks the same. A machine with a dead
//! battery that boots in the past deletes nothing until its clock is corrected; rows that it logs
//! before the correction carry the wrong date, and are deleted once the clock is right if that date
//! is older than the retention. Containers whose time since boot is shifted (time namespaces) count
//! as machines that boot whenever it goes back.

use uuid::Uuid;

use crate::model::time::{DAY_MS, HOUR_MS, Timestamp};

/// Difference up to which two readings agree, in milliseconds: an hour. A time server corrects a
/// clock by less.
pub(crate) const SLACK_MS: i64 = HOUR_MS;
/// Time that a clock must run in contradiction to the trusted one before it is trusted.
const TRUSTED_AFTER_MS: i64 = DAY_MS;
/// The largest advance that is trusted without an explanation.
pub(crate) const MAX_ALLOWANCE_MS: i64 = 10 * DAY_MS;

/// Time since a boot of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Boot {
    /// Differs for each boot, so that times since two boots are never compared.
    pub(crate) id: Uuid,
    /// Milliseconds, sleep included.
    pub(crate) since: i64,
}

impl Boot {
    /// Reads the time since boot and the id of the boot. `None`: the system has none. The id is
    /// read once a process, because it cannot change while the process lives.
    #[cfg(target_os = "linux")]
    fn now() -> Option<Self> {
        use std::sync::OnceLock;

        use nix::sys::time::TimeValLike as _;
        use nix::time::ClockId;

        static ID: OnceLock<Option<Uuid>> = OnceLock::new();
        let id = *ID.get_or_init(|| {
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .ok()?
                .trim()
                .parse()
                .ok()
        });
        failpoint!("clock-boot", |boot| {
            Some(Self {
                id: Uuid::from_u128(boot.and_then(|id| id.parse().ok()).unwrap_or(0)),
                since: 20_000,
            })
        });
        // `CLOCK_BOOTTIME` counts while the machine sleeps. The monotonic clock of `Instant` stops,
        // and a laptop that wakes would look like a clock that jumped.
        let since = ClockId::CLOCK_BOOTTIME.now().ok()?.num_milliseconds();
        Some(Self { id: id?, since })
    }

    /// Returns the time since the first call in this process, which stands for a boot: it explains
    /// what a process sees while it runs.
    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
    fn now() -> Option<Self> {
        use std::sync::LazyLock;
        use std::time::Instant;

        static PROCESS: LazyLock<(Uuid, Instant)> =
            LazyLock::new(|| (Uuid::new_v4(), Instant::now()));
        Some(Self {
            id: PROCESS.0,
            since: crate::model::time::milliseconds(PROCESS.1.elapsed()),
        })
    }
}

/// Both clocks, read at about the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The wall clock.
    pub(crate) wall: Timestamp,
    /// `None`: the system does not tell. Only the allowance and a day of use then count.
    pub(crate) boot: Option<Boot>,
}

impl Reading {
    pub(crate) fn now() -> Self {
        Self {
            wall: Timestamp::now(),
            boot: Boot::now(),
        }
    }

    /// Returns the time until `later` that the time since boot proves, in milliseconds; `None`
    /// across a boot.
    fn proven_until(&self, later: &Self) -> Option<i64> {
        match (self.boot, later.boot) {
            (Some(one), Some(other)) if one.id == other.id => {
                // A negative time within one boot comes from a container whose time is shifted. It
                // proves nothing.
                Some(other.since.saturating_sub(one.since)).filter(|proven| *proven >= 0)
            }
            _ => None,
        }
    }

    /// Returns the advance of the wall clock until `later`, in milliseconds.
    fn advance_until(&self, later: &Self) -> i64 {
        later.wall - self.wall
    }

    /// Returns `true` if this reading explains the wall clock of `later`.
    fn explains(&self, later: &Self, allowance: i64) -> bool {
        let proven = self.proven_until(later).unwrap_or(0);
        // A clock that went back by more than the slack is explained by nothing.
        (-SLACK_MS..=proven.saturating_add(allowance)).contains(&self.advance_until(later))
    }
}

/// The part of the retention clock that the database keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClockState {
    /// The last reading that is trusted.
    pub(crate) trusted: Reading,
    /// Milliseconds of its wall clock that are trusted although the time since the same boot does
    /// not explain them.
    pub(crate) unexplained: i64,
    /// The first reading too far ahead of it.
    pub(crate) ahead: Option<Reading>,
    /// The first reading too far behind it, of those in a row.
    pub(crate) behind: Option<Reading>,
}

impl ClockState {
    /// Returns the state that trusts a reading without a doubt.
    pub(crate) fn trusting(trusted: Reading) -> Self {
        Self {
            trusted,
            unexplained: 0,
            ahead: None,
            behind: None,
        }
    }

    /// Returns the state that trusts `reading` at once; `None` if it is doubted.
    fn trust(&self, reading: Reading, allowance: i64) -> Option<Self> {
        let advance = self.trusted.advance_until(&reading);
        if advance < -SLACK_MS {
            return None;
        }
        let Some(proven) = self.trusted.proven_until(&reading) else {
            return (advance <= allowance).then(|| Self::trusting(reading));
        };
        // The allowance holds for a day of the boot, however many advances use it up.
        // Without this account, a clock that runs ahead by a little less than the allowance at each
        // reading would be trusted without end.
        let regained = proven.saturating_mul(allowance) / DAY_MS;
        let before = self.unexplained.saturating_sub(regained).max(0);
        let unexplained = before.saturating_add(advance).saturating_sub(proven).max(0);
        (unexplained <= allowance).then(|| Self {
            unexplained,
            ..Self::trusting(reading)
        })
    }

    /// Returns the time that decides how old rows are, at a reading that this state includes.
    pub(crate) fn time_at(&self, reading: &Reading) -> Timestamp {
        let proven = self.trusted.wall + self.trusted.proven_until(reading).unwrap_or(0);
        // The earlier of the two clocks: a clock that was set back makes rows younger, never older.
        proven.min(reading.wall)
    }

    /// Returns `true` if `newer` differs enough to be written. The trusted reading may grow as old
    /// as a tenth of the allowance, so that a quiet logger writes hardly ever.
    pub(crate) fn must_follow(&self, newer: &Self, allowance: i64) -> bool {
        let boot = |state: &Self| state.trusted.boot.map(|boot| boot.id);
        let age = (newer.trusted.wall - self.trusted.wall).unsigned_abs();
        (self.ahead, self.behind, boot(self)) != (newer.ahead, newer.behind, boot(newer))
            || age >= (allowance / 10).clamp(HOUR_MS, DAY_MS).unsigned_abs()
    }
}

/// The part of the retention clock that a process remembers: its own last reading.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RetentionClock {
    last: Option<Reading>,
}

impl RetentionClock {
    /// Returns the state after `reading`. `stored`: the state before it; `None`: the log is new, so
    /// that no clock can do harm.
    pub(crate) fn advance(
        &mut self,
        stored: Option<ClockState>,
        reading: Reading,
        allowance: i64,
    ) -> ClockState {
        // Remembered in any case, so that the next call can tell a jump of this process from one
        // before it.
        let last = self.last.replace(reading);
        let Some(stored) = stored else {
            return ClockState::trusting(reading);
        };
        // The usual case: the reading is explained, and all doubts end.
        if let Some(trusting) = stored.trust(reading, allowance) {
            return trusting;
        }
        let ClockState {
            trusted,
            ahead,
            behind,
            ..
        } = stored;
        let is_ahead = reading.wall > trusted.wall;
        // A jump from one wrong time to another. A clock that was behind, and is set right, does
        // not count.
        let jumped = last.is_some_and(|last| {
            (last.wall > trusted.wall) == is_ahead && !last.explains(&reading, allowance)
        });
        // The doubts about a clock that is ahead and about one that is behind are kept apart: a
        // reading on one side says nothing about the other.
        let first = if is_ahead { ahead } else { behind };
        let first = first
            // A reading earlier than the first doubted one ends its day of use: an even clock never
            // goes back.
            .filter(|first| !jumped && reading.wall >= first.wall)
            .unwrap_or(reading);
        // The doubted clock is measured against itself: it has to run evenly from its first doubted
        // reading on, as a right clock would.
        let is_explained = first.explains(&reading, allowance);
        let (first, is_day_of_use) = match first.proven_until(&reading) {
            // The time since boot contradicts the clock: the doubt begins with this reading.
            Some(_) if !is_explained => (reading, false),
            Some(proven) => (first, proven >= TRUSTED_AFTER_MS - SLACK_MS),
            // Across a boot nothing proves the day, and nothing contradicts it: the difference of
            // the readings decides.
            None => (first, true),
        };
        if is_day_of_use && first.advance_until(&reading) >= TRUSTED_AFTER_MS {
            // A day has passed. If the advance since the first doubted reading is not explained,
            // that reading is trusted, and the present one begins a doubt of its own.
            return if is_explained {
                ClockState::trusting(reading)
            } else {
                ClockState {
                    ahead: Some(reading),
                    ..ClockState::trusting(first)
                }
            };
        }
        if is_ahead {
            ClockState {
                ahead: Some(first),
                behind: None,
                ..stored
            }
        } else {
            // Keeps `ahead`: a machine with a dead battery is behind for some seconds after each
            // boot.
            ClockState {
                behind: Some(first),
                ..stored
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::MINUTE_MS;
    use crate::retention::RetentionDays;

    /// A simulated machine with its clocks and one process.
    struct Machine {
        /// The true time.
        now: Timestamp,
        /// Error of the wall clock.
        wrong: i64,
        boot: Boot,
        allowance: i64,
        process: RetentionClock,
        stored: Option<ClockState>,
        /// The latest time by which rows were deleted, after the true time: 0 is right.
        early: i64,
        writes: u32,
    }

    const MINUTE: i64 = MINUTE_MS;
    const HOUR: i64 = HOUR_MS;
    const DAY: i64 = DAY_MS;
    const YEAR: i64 = 365 * DAY_MS;
    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
    const DEAD_BATTERY: Timestamp = Timestamp::from_millis(1_577_836_800_000);

    impl Machine {
        /// With a database that was in use until now.
        fn with_retention(days: u32) -> Self {
            let boot = Boot {
                id: Uuid::from_u128(1),
                since: 1000,
            };
            let allowance = RetentionDays {
                failures: days,
                attempts: 400,
            }
            .allowance();
            let reading = Reading {
                wall: NOW,
                boot: Some(boot),
            };
            Self {
                now: NOW,
                wrong: 0,
                boot,
                allowance,
                process: RetentionClock::default(),
                stored: Some(ClockState::trusting(reading)),
                early: i64::MIN,
                writes: 0,
            }
        }

        /// Time passes while the machine runs or sleeps.
        fn pass(&mut self, span: i64) -> &mut Self {
            self.now = self.now + span;
            self.boot.since += span;
            self
        }

        /// Time passes while the machine is off. It boots with another id, and the process starts.
        fn off(&mut self, span: i64) -> &mut Self {
            self.now = self.now + span;
            self.boot = Boot {
                id: Uuid::from_u128(self.boot.id.as_u128() + 1),
                since: 20_000,
            };
            self.start()
        }

        /// Time passes while a host pauses the virtual machine: the boot stays, and its time stands
        /// still.
        fn pause(&mut self, span: i64) -> &mut Self {
            self.now = self.now + span;
            self
        }

        /// The process starts.
        fn start(&mut self) -> &mut Self {
            self.process = RetentionClock::default();
            self
        }

        fn reading(&self) -> Reading {
            Reading {
                wall: self.now + self.wrong,
                boot: Some(self.boot),
            }
        }

        /// Reads the clock as a process with the memory `process` does. Returns the milliseconds by
        /// which retention is behind the true time.
        fn read_clock_with(&mut self, mut process: RetentionClock) -> (i64, RetentionClock) {
            let reading = self.reading();
            let state = process.advance(self.stored, reading, self.allowance);
            let time = state.time_at(&reading);
            assert!(time <= reading.wall);
            if self
                .stored
                .is_none_or(|stored| stored.must_follow(&state, self.allowance))
            {
                self.stored = Some(state);
                self.writes += 1;
            }
            self.early = self.early.max(time - self.now);
            (self.now - time, process)
        }

        fn read_clock(&mut self) -> i64 {
            let (behind, process) = self.read_clock_with(self.process);
            self.process = process;
            behind
        }

        /// Runs for `span`, with a reading each hour and at the end. Returns the milliseconds by which
        /// retention is behind at the end.
        fn run(&mut self, span: i64) -> i64 {
            self.read_clock();
            for _ in 0..span / HOUR {
                self.pass(HOUR).read_clock();
            }
            self.pass(span % HOUR).read_clock()
        }

        /// The same for a clock that is wrong by `wrong` as long.
        fn run_wrong(&mut self, wrong: i64, span: i64) -> i64 {
            self.wrong = wrong;
            let behind = self.run(span);
            self.wrong = 0;
            behind
        }
    }

    /// Repeats `round`: the largest lag at its ends.
    fn largest(rounds: u32, mut round: impl FnMut(u32) -> i64) -> i64 {
        (0..rounds).map(&mut round).max().unwrap()
    }

    /// Each row: what happens, and how far retention is behind the true time then, and was ahead of
    /// it, at most.
    #[test]
    fn scenarios_purge_late_or_early_by_what_is_documented() {
        type Scenario = fn(&mut Machine) -> i64;
        let scenarios: &[(&str, u32, Scenario, i64, i64)] = &[
            ("even run", 30, |m| largest(400, |_| m.run(DAY)), 0, 0),
            (
                "laptop that sleeps at night, a year of it",
                30,
                |m| {
                    largest(365, |_| {
                        m.run(8 * HOUR);
                        m.pass(16 * HOUR).read_clock()
                    })
                },
                0,
                0,
            ),
            (
                "laptop that sleeps for half a year",
                30,
                |m| {
                    m.run(HOUR);
                    m.pass(YEAR / 2).read_clock()
                },
                0,
                0,
            ),
            (
                "office machine, off at night and on weekends",
                30,
                |m| {
                    largest(52, |_| {
                        largest(5, |_| {
                            m.off(16 * HOUR).read_clock();
                            m.run(8 * HOUR)
                        })
                        .max(m.off(48 * HOUR).read_clock())
                    })
                },
                0,
                0,
            ),
            (
                "one minute a week on a machine that stays on",
                7,
                |m| {
                    largest(52, |_| {
                        m.start()
                            .run(MINUTE)
                            .max(m.pass(7 * DAY).start().read_clock())
                    })
                },
                0,
                0,
            ),
            (
                "one minute a week on a machine that is off in between",
                90,
                |m| largest(52, |_| m.off(7 * DAY).run(MINUTE)),
                0,
                0,
            ),
            (
                "the same with a retention of 30 days: one run behind",
                30,
                |m| largest(52, |_| m.off(7 * DAY).run(MINUTE)),
                7 * DAY + 2 * MINUTE,
                0,
            ),
            (
                "one minute a month: one run behind",
                30,
                |m| largest(24, |_| m.off(30 * DAY).run(MINUTE)),
                30 * DAY + 2 * MINUTE,
                0,
            ),
            (
                "one minute a year: one run behind",
                90,
                |m| largest(9, |_| m.off(YEAR).run(MINUTE)),
                YEAR + 2 * MINUTE,
                0,
            ),
            (
                "one look a year, of a program that ends at once: one run behind",
                90,
                |m| largest(9, |_| m.off(YEAR).read_clock()),
                YEAR,
                0,
            ),
            (
                "off for a year, then on: a day of use",
                30,
                |m| {
                    m.off(YEAR);
                    assert!(m.run(DAY - HOUR) >= YEAR);
                    m.run(HOUR)
                },
                0,
                0,
            ),
            (
                "off for a year, then on, retention of a day",
                1,
                |m| {
                    m.off(YEAR);
                    m.run(DAY)
                },
                0,
                0,
            ),
            (
                "a year ahead for an hour, and back",
                30,
                |m| {
                    m.run_wrong(YEAR, HOUR);
                    m.run(HOUR)
                },
                0,
                0,
            ),
            (
                "a year ahead for 23 hours, each day",
                30,
                |m| {
                    largest(50, |_| {
                        m.run_wrong(YEAR, 23 * HOUR);
                        m.run(HOUR)
                    })
                },
                0,
                0,
            ),
            (
                "a jump ahead each minute, ever further",
                30,
                |m| {
                    m.read_clock();
                    for jumps in 1..100 {
                        m.wrong = jumps * YEAR;
                        m.pass(MINUTE).read_clock();
                    }
                    m.wrong = 0;
                    m.pass(MINUTE).read_clock()
                },
                0,
                0,
            ),
            (
                "a year ahead from the start, a crash loop of a day less a minute",
                30,
                |m| {
                    m.wrong = YEAR;
                    largest(24 * 60 - 1, |_| {
                        m.read_clock();
                        m.pass(MINUTE).start().read_clock()
                    });
                    m.wrong = 0;
                    m.start().run(HOUR)
                },
                0,
                0,
            ),
            (
                "three days ahead, within the allowance: that much too early",
                30,
                |m| {
                    m.run_wrong(3 * DAY, HOUR);
                    m.run(HOUR)
                },
                0,
                3 * DAY,
            ),
            (
                "dead battery: 2020 for half a minute after each boot, weekly, then right",
                30,
                |m| {
                    largest(52, |_| {
                        m.off(7 * DAY);
                        m.wrong = DEAD_BATTERY - m.now;
                        m.read_clock();
                        m.pass(MINUTE / 2).wrong = 0;
                        m.run(MINUTE)
                    })
                },
                7 * DAY + 2 * MINUTE + MINUTE / 2,
                0,
            ),
            (
                "dead battery, a service: half a minute of 2020, then right within a day",
                30,
                |m| {
                    largest(52, |_| {
                        m.off(16 * HOUR);
                        m.wrong = DEAD_BATTERY - m.now;
                        m.read_clock();
                        m.pass(MINUTE / 2).wrong = 0;
                        m.run(8 * HOUR)
                    })
                },
                0,
                0,
            ),
            (
                "a week in 2020, then right: a day of use",
                30,
                |m| {
                    m.run_wrong(DEAD_BATTERY - NOW, 7 * DAY);
                    m.run(DAY)
                },
                0,
                0,
            ),
            (
                "created under a clock of the future, set right, then wrong again after a day of \
                 use",
                30,
                |m| {
                    m.stored = None;
                    m.run_wrong(9 * YEAR, HOUR);
                    m.early = i64::MIN;
                    m.run(DAY + HOUR);
                    m.run_wrong(9 * YEAR, HOUR);
                    m.run(HOUR)
                },
                0,
                0,
            ),
            (
                "a day further ahead at each of two starts, within seconds",
                30,
                |m| {
                    m.read_clock();
                    for further in [0, DAY + 1000, 2 * DAY, 20 * DAY, 21 * DAY + 1] {
                        m.wrong = 4 * YEAR + further;
                        m.pass(5000).start().read_clock();
                    }
                    m.wrong = 0;
                    m.pass(5000).start().read_clock()
                },
                0,
                0,
            ),
            (
                "a day further ahead each minute, in a crash loop, for half a day",
                30,
                |m| {
                    m.read_clock();
                    for minutes in 0..12 * 60 {
                        m.wrong = 4 * YEAR + minutes * DAY;
                        m.pass(MINUTE).start().read_clock();
                    }
                    m.wrong = 0;
                    m.start().read_clock()
                },
                0,
                0,
            ),
            (
                "a year ahead at two starts that are 22 hours apart, further ahead at the second",
                30,
                |m| {
                    m.wrong = YEAR;
                    m.start().read_clock();
                    m.wrong = YEAR + 2 * HOUR;
                    m.pass(22 * HOUR).start().read_clock();
                    m.wrong = 0;
                    m.pass(HOUR).start().read_clock()
                },
                0,
                0,
            ),
            (
                "eight days further ahead at each of twelve starts, within seconds: the first \
                 step is believed",
                90,
                |m| {
                    for steps in 1..=12 {
                        m.wrong = steps * 8 * DAY;
                        m.pass(5000).start().read_clock();
                    }
                    m.wrong = 0;
                    m.start().read_clock()
                },
                0,
                8 * DAY,
            ),
            (
                "an hour further ahead each minute, for two hours: the allowance is believed",
                30,
                |m| {
                    for minutes in 1..=120 {
                        m.wrong = minutes * HOUR;
                        m.pass(MINUTE).read_clock();
                    }
                    m.wrong = 0;
                    m.read_clock()
                },
                0,
                3 * DAY + 3 * DAY / 12,
            ),
            (
                "a time server sets the clock ahead and back by half an hour, all day",
                1,
                |m| {
                    largest(100, |_| {
                        m.wrong = HOUR / 2;
                        m.pass(MINUTE).read_clock();
                        m.wrong = 0;
                        m.pass(MINUTE).read_clock()
                    })
                },
                0,
                HOUR / 2,
            ),
            (
                "virtual machine, paused for a year, then each night: a day of running",
                30,
                |m| {
                    m.run(DAY);
                    m.pause(YEAR);
                    for _ in 0..3 {
                        m.run(8 * HOUR);
                        m.pause(16 * HOUR);
                    }
                    m.read_clock()
                },
                0,
                0,
            ),
            (
                "virtual machine, paused each night",
                30,
                |m| {
                    largest(365, |_| {
                        m.run(8 * HOUR);
                        m.pause(16 * HOUR).read_clock()
                    })
                },
                0,
                0,
            ),
            (
                "virtual machine, paused for a year: a day of use",
                30,
                |m| {
                    m.run(DAY);
                    m.pause(YEAR);
                    m.run(DAY)
                },
                0,
                0,
            ),
            (
                "the clock is set back two hours",
                30,
                |m| {
                    m.run_wrong(2 * HOUR, 30 * DAY);
                    m.run(DAY + 2 * HOUR)
                },
                0,
                2 * HOUR,
            ),
            (
                "an upgraded log without a trusted reading: a day of use",
                30,
                |m| {
                    m.stored = Some(ClockState::trusting(Reading {
                        wall: Timestamp::EPOCH,
                        boot: None,
                    }));
                    assert!(m.run(DAY - HOUR) > 50 * YEAR);
                    m.run(HOUR)
                },
                0,
                0,
            ),
            (
                "time since boot goes back (another container): as after a boot",
                30,
                |m| {
                    m.run(DAY);
                    m.boot.since = 5;
                    m.start().run(DAY)
                },
                0,
                0,
            ),
        ];
        for (name, days, happen, behind, early) in scenarios {
            let mut machine = Machine::with_retention(*days);
            assert_eq!(happen(&mut machine), *behind, "behind: {name}");
            assert!(
                machine.early <= *early,
                "early by {} h: {name}",
                machine.early / HOUR
            );
        }
    }

    #[test]
    fn jump_beside_a_second_process_is_doubted_by_both() {
        let mut machine = Machine::with_retention(30);
        let (mut one, mut other) = (RetentionClock::default(), RetentionClock::default());
        for hour in 0..48 {
            machine.wrong = if hour < 24 {
                0
            } else {
                YEAR + (hour - 24) * YEAR
            };
            machine.pass(HOUR);
            (_, one) = machine.read_clock_with(one);
            (_, other) = machine.read_clock_with(other);
        }
        assert!(machine.early <= 0, "{}", machine.early);
    }

    #[test]
    fn even_run_writes_hourly_at_most_and_a_steady_doubt_once() {
        let mut machine = Machine::with_retention(90);
        machine.run(30 * DAY);
        assert_eq!(machine.writes, 32, "each 22 hours");
        machine.writes = 0;
        machine.run_wrong(YEAR, 20 * HOUR);
        assert_eq!(machine.writes, 1, "the first reading that is doubted");
    }

    #[test]
    fn extreme_readings_never_overflow_or_pass_the_wall_clock() {
        let walls = [
            Timestamp::MIN,
            Timestamp::EPOCH - 1,
            Timestamp::EPOCH,
            NOW,
            Timestamp::END_OF_TIME,
            Timestamp::MAX,
        ];
        let boots = [None, Some(0), Some(i64::MIN), Some(i64::MAX)];
        let readings: Vec<Reading> = walls
            .into_iter()
            .flat_map(|wall| {
                boots.map(|since| Reading {
                    wall,
                    boot: since.map(|since| Boot {
                        id: Uuid::nil(),
                        since,
                    }),
                })
            })
            .collect();
        let mut clock = RetentionClock::default();
        let mut state = None;
        for one in &readings {
            for other in &readings {
                for reading in [one, other] {
                    let next = clock.advance(state, *reading, MAX_ALLOWANCE_MS);
                    assert!(next.time_at(reading) <= reading.wall);
                    let _ = next.must_follow(&state.unwrap_or(next), MAX_ALLOWANCE_MS);
                    state = Some(next);
                }
            }
        }
    }
}
