//! A day of a search application for engineers: repeated queries, strategies of unequal quality,
//! and an outage. It is the same at each run.

use std::time::{Duration, SystemTime};

use failure_logger::{LoggerHandle, Outcome, RetrievalFailureType};

const ASKED: [&str; 5] = [
    "what is known of",
    "how does one compute",
    "are there experiments on",
    "which theories explain",
    "has anyone measured",
];
const ABOUT: [&str; 9] = [
    "laminar boundary layers on a flat plate",
    "heat transfer in hypersonic flow",
    "flutter of a swept wing",
    "the base pressure behind a cone",
    "buckling of thin cylindrical shells",
    "jet noise from a supersonic nozzle",
    "transition on a rough surface",
    "slender bodies at incidence",
    "shock waves that meet a wall",
];
/// Name, threshold, and share of failures of each strategy.
const STRATEGIES: [(&str, f32, f32); 4] = [
    ("semantic", 0.35, 0.12),
    ("bm25", 0.2, 0.22),
    ("graph", 0.5, 0.31),
    ("hybrid", 0.4, 0.07),
];

/// Has monitors observe `attempts`, spread over the last two days.
pub fn observe(logger: &LoggerHandle, attempts: u32) {
    let mut random = Random(42);
    let now = SystemTime::now();
    for nth in 0..attempts {
        let hours = 48.0 * (1.0 - nth as f32 / attempts as f32);
        let at = now - Duration::from_secs_f32(hours * 3600.0);
        let (name, threshold, failing) = STRATEGIES[random.below(4)];
        let outage = (6.0..9.0).contains(&hours);
        let query = format!("{} {}?", ASKED[random.below(5)], ABOUT[random.small(9)]);
        let monitor = logger
            .strategy(name)
            .confidence_threshold(threshold)
            .conversation(format!("chat-{}", random.below(300)))
            .turn(random.below(9) as i64);
        let latency =
            Duration::from_micros(3000 + (random.share() * random.share() * 80_000.0) as u64);
        let outcome = if random.share() < failing * if outage { 2.5 } else { 1.0 } {
            match random.below(10) {
                0..3 => Outcome::failure(RetrievalFailureType::NoHit, &query, latency),
                3..8 => Outcome::failure(RetrievalFailureType::LowConfidence, &query, latency)
                    .top_score(threshold * random.share().sqrt())
                    .result_count(3),
                8 => Outcome::failure(
                    RetrievalFailureType::Timeout,
                    &query,
                    Duration::from_millis(500),
                ),
                _ => Outcome::failure(RetrievalFailureType::Error, &query, latency)
                    .error(&"the index refuses the connection"),
            }
        } else {
            let above = (random.share() + random.share()) / 2.0;
            Outcome::success(latency)
                .top_score(threshold + (1.0 - threshold) * above)
                .result_count(10)
        };
        monitor.record(outcome.at(at));
    }
}

/// A generator of numbers that are random enough (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Returns a number below `limit`, mostly a small one.
    fn small(&mut self, limit: usize) -> usize {
        (self.share() * self.share() * limit as f32) as usize
    }

    /// Returns a number from 0 to 1.
    fn share(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }
}
