//! Lines of `export --attempts`. Each line has the number of attempts of one day, strategy and
//! outcome.

use crate::handle::LoggerHandle;
use crate::http::wire::moment::parse_moment;
use crate::http::wire::value::Value;
use crate::http::wire::{Fields, Rejected, outcomes};
use crate::model::outcome::OutcomeKind;
use crate::model::time::Timestamp;

/// Maximum number of attempts on one line. Sums of thousands of such lines do not overflow.
const MAX_ATTEMPTS: u64 = 1 << 50;

/// Number of attempts that another log counted.
#[derive(Debug)]
pub struct CountLine {
    strategy: String,
    kind: OutcomeKind,
    day: Timestamp,
    observed: u64,
    unobserved: u64,
}

impl CountLine {
    /// Parses a JSON object. Returns `None` if it is another kind of line.
    pub fn from_json(json: &[u8]) -> Option<Result<Self, Rejected>> {
        // Skips most other lines before they are parsed, because the caller parses them, too.
        if !json.windows(5).any(|name| name == b"\"day\"") {
            return None;
        }
        let fields: Fields<'_> = serde_json::from_slice(json).ok()?;
        Self::from_fields(fields.iter())
    }

    /// Parses a record of CSV. `names` is the header. Returns `None` if it is another kind of line.
    pub fn from_csv(
        names: &csv::StringRecord,
        cells: &csv::StringRecord,
    ) -> Option<Result<Self, Rejected>> {
        Self::from_fields(names.iter().zip(cells.iter().map(Value::cell)))
    }

    fn from_fields<'a>(
        fields: impl Iterator<Item = (&'a str, Value<'a>)>,
    ) -> Option<Result<Self, Rejected>> {
        let [
            mut day,
            mut strategy,
            mut outcome,
            mut attempts,
            mut unobserved,
        ] = [const { Value::Null }; 5];
        for (name, value) in fields {
            match name {
                "day" => day = value,
                "retrieval_strategy" => strategy = value,
                "outcome" => outcome = value,
                "attempts" => attempts = value,
                "unobserved" => unobserved = value,
                _ => {}
            }
        }
        let is_count = !matches!(day, Value::Null) && !matches!(attempts, Value::Null);
        is_count.then(|| Self::read(&day, strategy, &outcome, &attempts, &unobserved))
    }

    fn read(
        day: &Value<'_>,
        strategy: Value<'_>,
        outcome: &Value<'_>,
        attempts: &Value<'_>,
        unobserved: &Value<'_>,
    ) -> Result<Self, Rejected> {
        let missing = || Rejected::missing("retrieval_strategy", "the name of the strategy");
        let strategy = strategy.text("retrieval_strategy")?.ok_or_else(missing)?;
        let kind = outcome.name().and_then(|name| OutcomeKind::parse(&name));
        let kind = kind.ok_or_else(|| Rejected::invalid("outcome", outcome, &outcomes()))?;
        let all = attempts
            .count("attempts")?
            .filter(|attempts| *attempts <= MAX_ATTEMPTS);
        let all =
            all.ok_or_else(|| Rejected::invalid("attempts", attempts, "a number of attempts"))?;
        let unobserved = unobserved.count("unobserved")?.unwrap_or(0).min(all);
        let moment = day.text_ref().and_then(parse_moment);
        let moment =
            moment.ok_or_else(|| Rejected::invalid("day", day, "a day such as 2026-11-24"))?;
        Ok(Self {
            strategy,
            kind,
            day: moment.into(),
            observed: all - unobserved,
            unobserved,
        })
    }

    /// Adds the attempts to the counters of the logger.
    pub fn add(&self, logger: &LoggerHandle) {
        let Self {
            strategy,
            kind,
            day,
            observed,
            unobserved,
        } = self;
        logger
            .shared()
            .attempts
            .add_counts(strategy, *kind, *day, *observed, *unobserved);
    }
}
