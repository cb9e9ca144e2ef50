//! A distribution in little space: mergeable, exact for few values, and otherwise with a relative
//! error of half a percent.
//!
//! Both forms merge in any order with the same result, up to the relative error. The encoding is
//! part of the file format: a change of [`RELATIVE_ERROR`], [`MAX_BINS`] or [`EXACT`] makes stored
//! sketches unreadable, or unmergeable with new ones.

use sketches_ddsketch::{Config, DDSketch};

/// Largest distance of a quantile from its value: half a percent of it.
const RELATIVE_ERROR: f64 = 0.005;
/// Bins that `DDSketch` assumes for a decoded sketch: decoded and new ones can only be merged if
/// they have the same.
const MAX_BINS: u32 = 2048;
/// Relative margin of a bound that callers round to an `f32`, whose own error is 6e-8.
const ROUNDING: f64 = 1e-6;
/// Values whose absolute value is smaller count as 0.
const SMALLEST: f64 = 1e-9;

/// Values up to this number are kept as they are. They take no more memory than a sketch of them.
const MAX_EXACT: usize = 32;
/// Begins the encoding of exact values. No `DDSketch` begins so: it would be a mapping that does
/// not exist.
const EXACT: u8 = 0xEE;

/// Latencies or scores: few of them as they are, more as a `DDSketch`.
#[derive(Clone)]
pub(crate) enum Sketch {
    /// In ascending order.
    Exact(Vec<f64>),
    Many(Box<DDSketch>),
}

impl Default for Sketch {
    fn default() -> Self {
        Self::Exact(Vec::new())
    }
}

impl Sketch {
    /// Adds a value; NaN and infinities are no values.
    pub(crate) fn add(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        match self {
            // Kept in order, so that ranks are positions. At most 32 values are moved.
            Self::Exact(values) if values.len() < MAX_EXACT => {
                let place = values.partition_point(|other| *other <= value);
                values.insert(place, value);
            }
            Self::Exact(values) => {
                let mut sketch = sketch_of(values);
                sketch.add(value);
                *self = Self::Many(sketch);
            }
            Self::Many(sketch) => sketch.add(value),
        }
    }

    /// Adds all values of `other`.
    pub(crate) fn merge(&mut self, other: &Self) {
        match (&mut *self, other) {
            (_, Self::Exact(values)) => values.iter().for_each(|value| self.add(*value)),
            (Self::Exact(values), Self::Many(other)) => {
                let mut sketch = other.clone();
                values.iter().for_each(|value| sketch.add(*value));
                *self = Self::Many(sketch);
            }
            (Self::Many(sketch), Self::Many(other)) => {
                // Cannot fail: all sketches have one configuration, those of `decode` included.
                let merged = sketch.merge(other);
                debug_assert!(merged.is_ok());
            }
        }
    }

    /// Returns the number of values. It is smaller than the number of attempts if some were not
    /// measured.
    pub(crate) fn count(&self) -> u64 {
        match self {
            Self::Exact(values) => values.len() as u64,
            Self::Many(sketch) => sketch.count() as u64,
        }
    }

    /// Returns the bytes of memory that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Exact(values) => values.capacity() * size_of::<f64>(),
                Self::Many(sketch) => size_of::<DDSketch>() + sketch.length() * size_of::<u64>(),
            }
    }

    /// Returns the smallest value that `percent` % of all values do not exceed (nearest rank), with
    /// as many digits as are known: three, or those of thousandths if the values are exact.
    pub(crate) fn percentile(&self, percent: u8) -> Option<f64> {
        // Nearest rank: rounded up, so that p50 of two values is the smaller one, and p100 the
        // largest.
        let rank = (self.count() * u64::from(percent)).div_ceil(100).max(1) - 1;
        let value = (self.count() > 0).then(|| self.at_rank(rank))?;
        let decimals = match self {
            // More digits than these would pretend an accuracy that the sketch does not have.
            Self::Exact(_) => 3.0,
            Self::Many(_) if value == 0.0 => 0.0,
            Self::Many(_) => 2.0 - value.abs().log10().floor(),
        };
        let scale = 10_f64.powf(decimals);
        Some((value * scale).round() / scale)
    }

    /// Returns the smallest value, exactly; `None` without values.
    pub(crate) fn min(&self) -> Option<f64> {
        match self {
            Self::Exact(values) => values.first().copied(),
            Self::Many(sketch) => sketch.min(),
        }
    }

    /// Returns the largest value, exactly; `None` without values.
    pub(crate) fn max(&self) -> Option<f64> {
        match self {
            Self::Exact(values) => values.last().copied(),
            Self::Many(sketch) => sketch.max(),
        }
    }

    /// Returns the number of values below `limit`, to the relative error.
    pub(crate) fn below(&self, limit: f64) -> u64 {
        self.ranks_where(|value| value < limit)
    }

    /// Returns the number of values up to `limit`, to the relative error.
    pub(crate) fn up_to(&self, limit: f64) -> u64 {
        self.ranks_where(|value| value <= limit)
    }

    /// Returns the value at a rank, from 0 to the count without 1: about as many values are
    /// smaller.
    pub(crate) fn at_rank(&self, rank: u64) -> f64 {
        let sketch = match self {
            Self::Exact(values) => {
                let rank = usize::try_from(rank).unwrap_or(usize::MAX);
                return values
                    .get(rank)
                    .or(values.last())
                    .copied()
                    .unwrap_or(f64::INFINITY);
            }
            Self::Many(sketch) => sketch,
        };
        // The sketch computes a rank from a quantile, and rounds it down. The middle between this
        // rank and the next one cannot be rounded to a neighbour.
        let q = (rank as f64 + 0.5) / (self.count() as f64 - 1.0);
        let (Some(min), Some(max)) = (self.min(), self.max()) else {
            return f64::INFINITY;
        };
        sketch
            .quantile(q.clamp(0.0, 1.0))
            .ok()
            .flatten()
            .unwrap_or(max)
            .clamp(min, max)
    }

    /// Returns a value that none of those from `rank` on is below, by as much as the sketch does
    /// not know.
    pub(crate) fn at_most(&self, rank: u64) -> f64 {
        let value = self.at_rank(rank);
        let error = self.relative_error();
        let edge = if value > 0.0 {
            value / (1.0 + error)
        } else {
            value / (1.0 - error)
        };
        // A little lower still, because callers round it to an f32. Below the smallest value there
        // is none.
        let safe = |value: f64| value - value.abs() * ROUNDING;
        safe(edge.max(self.min().unwrap_or(edge)))
    }

    /// Returns a value that none of those up to `rank` is above.
    pub(crate) fn at_least(&self, rank: u64) -> f64 {
        let value = self.at_rank(rank);
        let error = self.relative_error();
        let edge = if value > 0.0 {
            value / (1.0 - error)
        } else {
            value / (1.0 + error)
        };
        let safe = |value: f64| value + value.abs() * ROUNDING;
        safe(edge.min(self.max().unwrap_or(edge)))
    }

    fn relative_error(&self) -> f64 {
        match self {
            Self::Exact(_) => 0.0,
            Self::Many(_) => RELATIVE_ERROR,
        }
    }

    /// Returns the number of smallest values that are `within`, by bisection: the sketch gives the
    /// value at a rank. `within` must hold for no value after the first for which it does not.
    fn ranks_where(&self, within: impl Fn(f64) -> bool) -> u64 {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let rank = low + (high - low) / 2;
            if within(self.at_rank(rank)) {
                low = rank + 1
            } else {
                high = rank
            }
        }
        low
    }

    /// Encodes the values, or the sketch in the encoding of DataDog's libraries
    /// (`DDSketchWithExactSummaryStatistics`).
    ///
    /// Exact values begin with [`EXACT`], and are `f64` in little endian, in ascending order.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Exact(values) => std::iter::once(EXACT)
                .chain(values.iter().flat_map(|value| value.to_le_bytes()))
                .collect(),
            Self::Many(sketch) => sketch.to_java_bytes(),
        }
    }

    /// Decodes a sketch. `None`: these bytes are no sketch of ours.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if let Some((&EXACT, values)) = bytes.split_first() {
            let (values, rest) = values.as_chunks::<8>();
            if !rest.is_empty() {
                return None;
            }
            let mut sketch = Self::default();
            values
                .iter()
                .for_each(|value| sketch.add(f64::from_le_bytes(*value)));
            return Some(sketch);
        }
        let sketch = DDSketch::from_java_bytes(bytes).ok()?;
        // Only what has our configuration can be merged.
        empty().merge(&sketch).ok()?;
        Some(Self::Many(Box::new(sketch)))
    }
}

fn sketch_of(values: &[f64]) -> Box<DDSketch> {
    let mut sketch = Box::new(empty());
    values.iter().for_each(|value| sketch.add(*value));
    sketch
}

/// Returns a sketch with the one configuration of this crate.
fn empty() -> DDSketch {
    DDSketch::new(Config::new(RELATIVE_ERROR, MAX_BINS, SMALLEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = f64>) -> Sketch {
        let mut sketch = Sketch::default();
        values.into_iter().for_each(|value| sketch.add(value));
        sketch
    }

    #[test]
    fn quantiles_and_ranks_are_right_within_the_relative_error() {
        let sketch = of((1..=10_000).map(|n| f64::from(n) / 100.0));
        for percent in [1, 50, 95, 99] {
            let exact = f64::from(percent);
            assert!(
                (sketch.percentile(percent).unwrap() - exact).abs() <= exact * 0.006,
                "{percent}"
            );
        }
        for limit in [0.5, 10.0, 33.3, 99.0] {
            let share = sketch.below(limit) as f64 / 100.0;
            assert!(
                (share - limit).abs() <= limit * 0.011 + 0.01,
                "{limit}: {share}"
            );
        }
        assert_eq!((sketch.below(0.01), sketch.below(100.1)), (0, 10_000));
    }

    #[test]
    fn a_limit_parts_the_values_exactly_where_they_are_well_apart() {
        let sketch = of([-2.0, -1.0, 0.0, 0.2, 0.2, 0.3, 7.0]);
        for (limit, below) in [
            (-3.0, 0),
            (-1.5, 1),
            (-0.5, 2),
            (0.1, 3),
            (0.25, 5),
            (0.31, 6),
            (8.0, 7),
        ] {
            assert_eq!(
                (sketch.below(limit), sketch.up_to(limit)),
                (below, below),
                "{limit}"
            );
        }
        // The smallest and the largest value are exact.
        for (limit, below, up_to) in [
            (-2.0, 0, 1),
            (7.0, 6, 7),
            (f64::NEG_INFINITY, 0, 0),
            (f64::INFINITY, 7, 7),
        ] {
            assert_eq!(
                (sketch.below(limit), sketch.up_to(limit)),
                (below, up_to),
                "{limit}"
            );
        }
        for (limit, below, up_to) in [(0.4, 0, 0), (0.5, 0, 1), (0.6, 1, 1)] {
            assert_eq!(
                (of([0.5]).below(limit), of([0.5]).up_to(limit)),
                (below, up_to),
                "{limit}"
            );
            assert_eq!(
                (of([]).below(limit), of([]).up_to(limit)),
                (0, 0),
                "{limit}"
            );
        }
    }

    #[test]
    fn merging_is_the_same_as_adding_and_survives_encoding() {
        let (one, two) = (of([1.0, -5.0, 0.0]), of([2.0, 3.0]));
        let mut merged = Sketch::decode(&one.encode()).unwrap();
        merged.merge(&Sketch::decode(&two.encode()).unwrap());
        let all = of([1.0, -5.0, 0.0, 2.0, 3.0]);
        assert_eq!(merged.count(), 5);
        assert_eq!((merged.min(), merged.max()), (Some(-5.0), Some(3.0)));
        for percent in [0, 25, 50, 75, 100] {
            assert_eq!(merged.percentile(percent), all.percentile(percent));
        }
        merged.merge(&Sketch::default());
        assert_eq!(merged.count(), 5);
        // Few, many, and both ways round.
        let many = of((1..=100).map(f64::from));
        for (one, two) in [(&all, &many), (&many, &all), (&many, &many)] {
            let mut merged = Sketch::decode(&one.encode()).unwrap();
            merged.merge(&Sketch::decode(&two.encode()).unwrap());
            assert_eq!(merged.count(), one.count() + two.count());
            assert_eq!(
                (merged.min(), merged.max()),
                (
                    Some(one.min().unwrap().min(two.min().unwrap())),
                    Some(100.0)
                )
            );
        }
    }

    #[test]
    fn percentiles_are_those_of_the_nearest_rank_and_exact_for_few() {
        assert_eq!(of([]).percentile(50), None);
        assert_eq!(
            [50, 95, 99].map(|percent| of([7.0]).percentile(percent)),
            [Some(7.0); 3]
        );
        assert_eq!(
            [50, 51, 95, 99].map(|percent| of([5000.0, 3.0]).percentile(percent).unwrap()),
            [3.0, 5000.0, 5000.0, 5000.0]
        );
        for count in [1, 2, 3, 10, MAX_EXACT] {
            // In another order than that of their size.
            let sketch = of((0..count).map(|nth| (nth * 7 % count) as f64 + 0.125));
            for percent in 1..=100_u8 {
                let rank = (count * usize::from(percent)).div_ceil(100);
                assert_eq!(
                    sketch.percentile(percent),
                    Some(rank as f64 - 1.0 + 0.125),
                    "{percent} of {count}"
                );
            }
        }
    }

    #[test]
    fn percentiles_have_as_many_digits_as_are_known() {
        let many = |value: f64| {
            of(std::iter::repeat_n(value, 2 * MAX_EXACT).chain([0.5 * value, 2.0 * value]))
        };
        for (value, expected) in [
            (12.0, 12.0),
            (1234.0, 1230.0),
            (0.012_34, 0.0123),
            (-12.0, -12.0),
            (0.0, 0.0),
        ] {
            let shown = many(value).percentile(50).unwrap();
            assert!((shown - expected).abs() <= expected.abs() * 0.01, "{shown}");
            assert!(
                shown.to_string().trim_start_matches(['-', '0', '.']).len() <= 4,
                "{shown}"
            );
        }
        assert_eq!(of([1.0 / 3.0]).percentile(50), Some(0.333));
    }

    #[test]
    fn what_is_no_sketch_is_refused() {
        assert!(Sketch::decode(b"").is_none());
        assert!(Sketch::decode(b"no sketch at all").is_none());
        assert!(Sketch::decode(&[EXACT, 1, 2]).is_none());
        let other = DDSketch::new(Config::new(0.02, MAX_BINS, SMALLEST));
        assert!(Sketch::decode(&other.to_java_bytes()).is_none());
    }
}
