//! Types and strategies of the failures of a group.

use std::collections::HashMap;

use serde::Serialize;

use crate::model::outcome::{FailuresByType, RetrievalFailureType};

/// Maximum number of strategies that one read tells apart. The rest counts as one.
const MAX_STRATEGIES: usize = 1000;
/// Name of the rest, which is that of the counts.
const OTHER: &str = "[other strategies]";

/// Failures of a group of one strategy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct StrategyCount {
    /// Name of the strategy.
    pub retrieval_strategy: String,
    /// Its failures in the group.
    pub failures: u64,
}

/// Strategies by a small number that stands for the name.
#[derive(Default)]
pub(crate) struct StrategyNames {
    names: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl StrategyNames {
    /// Returns the number of a name.
    pub(crate) fn number(&mut self, name: &str) -> usize {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len();
        if number >= MAX_STRATEGIES {
            return MAX_STRATEGIES;
        }
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }
}

/// Counts of failures by type and by strategy.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Facets {
    types: [u64; RetrievalFailureType::ALL.len()],
    /// Few strategies have the same query: a list is smaller than a map, and as fast.
    strategies: Vec<(usize, u64)>,
}

impl Facets {
    /// Counts a failure. A type of a newer version (`None`) is counted only by its strategy.
    pub(crate) fn add(&mut self, failure_type: Option<RetrievalFailureType>, strategy: usize) {
        let count = failure_type.and_then(|of_type| self.types.get_mut(of_type as usize));
        if let Some(count) = count {
            *count += 1;
        }
        self.add_strategy(strategy, 1);
    }

    /// Adds the counts of another group.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, other) in self.types.iter_mut().zip(other.types) {
            *count += other;
        }
        for (strategy, failures) in &other.strategies {
            self.add_strategy(*strategy, *failures);
        }
    }

    /// Returns the failures by type.
    pub(crate) fn types(&self) -> FailuresByType {
        FailuresByType::new(|of_type| {
            self.types
                .get(of_type as usize)
                .copied()
                .unwrap_or_default()
        })
    }

    /// Returns the strategies, the one with the most failures first.
    pub(crate) fn strategies(&self, names: &StrategyNames) -> Vec<StrategyCount> {
        let count = |(number, failures): &(usize, u64)| StrategyCount {
            retrieval_strategy: names
                .names
                .get(*number)
                .map_or(OTHER, String::as_str)
                .to_owned(),
            failures: *failures,
        };
        let mut counts: Vec<StrategyCount> = self.strategies.iter().map(count).collect();
        counts.sort_by(|one, other| {
            (other.failures, &one.retrieval_strategy)
                .cmp(&(one.failures, &other.retrieval_strategy))
        });
        counts
    }

    fn add_strategy(&mut self, strategy: usize, failures: u64) {
        match self
            .strategies
            .iter_mut()
            .find(|(number, _)| *number == strategy)
        {
            Some((_, count)) => *count += failures,
            None => self.strategies.push((strategy, failures)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facets_of_merged_groups_are_sums_in_a_fixed_order() {
        let mut names = StrategyNames::default();
        let (graph, bm25) = (names.number("graph"), names.number("bm25"));
        assert_eq!(names.number("graph"), graph);
        let (mut one, mut other) = (Facets::default(), Facets::default());
        one.add(Some(RetrievalFailureType::NoHit), graph);
        one.add(Some(RetrievalFailureType::Error), bm25);
        other.add(Some(RetrievalFailureType::NoHit), bm25);
        other.add(None, graph);
        one.merge(&other);
        assert_eq!((one.types().no_hit, one.types().error), (2, 1));
        let counts = one.strategies(&names);
        let shown: Vec<(&str, u64)> = counts
            .iter()
            .map(|count| (count.retrieval_strategy.as_str(), count.failures))
            .collect();
        assert_eq!(shown, [("bm25", 2), ("graph", 2)]);
    }

    #[test]
    fn strategies_beyond_the_limit_count_as_one() {
        let mut names = StrategyNames::default();
        let mut facets = Facets::default();
        for nth in 0..MAX_STRATEGIES + 5 {
            facets.add(None, names.number(&format!("strategy {nth}")));
        }
        let counts = facets.strategies(&names);
        assert_eq!(counts.len(), MAX_STRATEGIES + 1);
        assert_eq!(counts[0].retrieval_strategy, OTHER);
        assert_eq!(counts[0].failures, 5);
    }
}
