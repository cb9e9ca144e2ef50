//! A line of `export --attempts`: the attempts of one day, strategy and outcome.

use super::moment::parse_moment;
use super::value::Value;
use super::{Fields, OUTCOMES, Rejected};
use crate::attempts::OutcomeKind;
use crate::clock;
use crate::handle::LoggerHandle;

/// Attempts at most that one line may stand for.
const MAX_ATTEMPTS: u64 = 1 << 50;

/// Attempts that another log has counted.
#[derive(Debug)]
pub(crate) struct CountLine {
    strategy: String,
    kind: OutcomeKind,
    day: i64,
    observed: u64,
    unobserved: u64,
}

impl CountLine {
    /// Returns `None` if the object is no such line.
    pub(crate) fn from_json(json: &[u8]) -> Option<Result<Self, Rejected>> {
        // Most lines are no counts, and need not be read twice.
        if !json.windows(5).any(|name| name == b"\"day\"") {
            return None;
        }
        let Fields(fields) = serde_json::from_slice(json).ok()?;
        Self::from_fields(fields.iter().map(|(name, raw)| (&**name, Value::json(raw))))
    }

    /// The same for a line of CSV under its names.
    pub(crate) fn from_csv(names: &csv::StringRecord, cells: &csv::StringRecord) -> Option<Result<Self, Rejected>> {
        Self::from_fields(names.iter().zip(cells.iter().map(Value::cell)))
    }

    fn from_fields<'a>(fields: impl Iterator<Item = (&'a str, Value<'a>)>) -> Option<Result<Self, Rejected>> {
        let [mut day, mut strategy, mut outcome, mut attempts, mut unobserved] = [const { Value::Null }; 5];
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
        let kind = kind.ok_or_else(|| Rejected::invalid("outcome", outcome, OUTCOMES))?;
        let all = attempts.count("attempts")?.filter(|attempts| *attempts <= MAX_ATTEMPTS);
        let all = all.ok_or_else(|| Rejected::invalid("attempts", attempts, "a number of attempts"))?;
        let unobserved = unobserved.count("unobserved")?.unwrap_or(0).min(all);
        let moment = day.text_ref().and_then(parse_moment);
        let moment = moment.ok_or_else(|| Rejected::invalid("day", day, "a day such as 2026-11-24"))?;
        let day = clock::milliseconds_of(moment);
        Ok(Self { strategy, kind, day, observed: all - unobserved, unobserved })
    }

    /// Adds the attempts to those of the logger.
    pub(crate) fn add(&self, logger: &LoggerHandle) {
        let Self { strategy, kind, day, observed, unobserved } = self;
        logger.shared().attempts.add_counts(strategy, *kind, *day, *observed, *unobserved);
    }
}
