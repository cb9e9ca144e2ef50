//! A distribution in little space: mergeable, with a relative error of half a percent.

use sketches_ddsketch::{Config, DDSketch};

/// How far a quantile may be from the value it stands for: half a percent of it.
const RELATIVE_ERROR: f64 = 0.005;
/// What `DDSketch` assumes of a sketch that it decodes, so that decoded and new ones can be merged.
const MAX_BINS: u32 = 2048;
/// More than the relative error of an f32.
const ROUNDING: f64 = 1e-6;
/// Smaller values count as 0.
const SMALLEST: f64 = 1e-9;

/// Latencies or scores, kept as a `DDSketch`.
#[derive(Clone)]
pub(crate) struct Sketch(DDSketch);

impl Default for Sketch {
    fn default() -> Self {
        Self(DDSketch::new(Config::new(RELATIVE_ERROR, MAX_BINS, SMALLEST)))
    }
}

impl Sketch {
    /// Adds a value; NaN and infinities are no values.
    pub(crate) fn add(&mut self, value: f64) {
        if value.is_finite() {
            self.0.add(value);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        // Cannot fail: all sketches have one configuration, those of `decode` included.
        let merged = self.0.merge(&other.0);
        debug_assert!(merged.is_ok());
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.count() as u64
    }

    /// Memory that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.0.length() * size_of::<u64>()
    }

    /// The value that a share `q` (0 to 1) of all values do not exceed.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        self.0.quantile(q.clamp(0.0, 1.0)).ok().flatten()
    }

    pub(crate) fn min(&self) -> Option<f64> {
        self.0.min()
    }

    pub(crate) fn max(&self) -> Option<f64> {
        self.0.max()
    }

    /// How many values are smaller than `limit`, as near as the relative error allows.
    pub(crate) fn below(&self, limit: f64) -> u64 {
        self.ranks_where(|value| value < limit)
    }

    /// How many values are not greater than `limit`, as near as the relative error allows.
    pub(crate) fn up_to(&self, limit: f64) -> u64 {
        self.ranks_where(|value| value <= limit)
    }

    /// The value at a rank, from 0 to the count without 1: about as many values are smaller.
    pub(crate) fn at_rank(&self, rank: u64) -> f64 {
        // In the middle of what the sketch rounds down to `rank`.
        let q = (rank as f64 + 0.5) / (self.count() as f64 - 1.0);
        let (Some(min), Some(max)) = (self.min(), self.max()) else { return f64::INFINITY };
        self.quantile(q).unwrap_or(max).clamp(min, max)
    }

    /// A value that none of those from `rank` on is below, by as much as the sketch does not know.
    pub(crate) fn at_most(&self, rank: u64) -> f64 {
        let value = self.at_rank(rank);
        let edge = if value > 0.0 { value / (1.0 + RELATIVE_ERROR) } else { value / (1.0 - RELATIVE_ERROR) };
        // A little lower still, for who rounds it to an f32. Below the smallest value there is none.
        let safe = |value: f64| value - value.abs() * ROUNDING;
        safe(edge.max(self.min().unwrap_or(edge)))
    }

    /// A value that none of those up to `rank` is above.
    pub(crate) fn at_least(&self, rank: u64) -> f64 {
        let value = self.at_rank(rank);
        let edge = if value > 0.0 { value / (1.0 - RELATIVE_ERROR) } else { value / (1.0 + RELATIVE_ERROR) };
        let safe = |value: f64| value + value.abs() * ROUNDING;
        safe(edge.min(self.max().unwrap_or(edge)))
    }

    /// How many of the smallest values are `within`, which is true of none after the first that is
    /// not: the sketch tells the value at a rank, and the rank of a value is found by halves.
    fn ranks_where(&self, within: impl Fn(f64) -> bool) -> u64 {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let rank = low + (high - low) / 2;
            if within(self.at_rank(rank)) { low = rank + 1 } else { high = rank }
        }
        low
    }

    /// Of a sketch with values, for there are two ways to read that of an empty one. The encoding of DataDog's libraries (`DDSketchWithExactSummaryStatistics`).
    pub(crate) fn encode(&self) -> Vec<u8> {
        self.0.to_java_bytes()
    }

    /// `None`: these bytes are no sketch of ours.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let sketch = DDSketch::from_java_bytes(bytes).ok()?;
        // Only what has our configuration can be merged.
        Self::default().0.merge(&sketch).ok()?;
        Some(Self(sketch))
    }
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
        for q in [0.01, 0.5, 0.95, 0.99] {
            let exact = 100.0 * q;
            assert!((sketch.quantile(q).unwrap() - exact).abs() <= exact * 0.006, "{q}");
        }
        for limit in [0.5, 10.0, 33.3, 99.0] {
            let share = sketch.below(limit) as f64 / 100.0;
            assert!((share - limit).abs() <= limit * 0.011 + 0.01, "{limit}: {share}");
        }
        assert_eq!((sketch.below(0.01), sketch.below(100.1)), (0, 10_000));
    }

    #[test]
    fn a_limit_parts_the_values_exactly_where_they_are_well_apart() {
        let sketch = of([-2.0, -1.0, 0.0, 0.2, 0.2, 0.3, 7.0]);
        for (limit, below) in [(-3.0, 0), (-1.5, 1), (-0.5, 2), (0.1, 3), (0.25, 5), (0.31, 6), (8.0, 7)] {
            assert_eq!((sketch.below(limit), sketch.up_to(limit)), (below, below), "{limit}");
        }
        // The smallest and the largest value are exact.
        for (limit, below, up_to) in [(-2.0, 0, 1), (7.0, 6, 7), (f64::NEG_INFINITY, 0, 0), (f64::INFINITY, 7, 7)] {
            assert_eq!((sketch.below(limit), sketch.up_to(limit)), (below, up_to), "{limit}");
        }
        for (limit, below, up_to) in [(0.4, 0, 0), (0.5, 0, 1), (0.6, 1, 1)] {
            assert_eq!((of([0.5]).below(limit), of([0.5]).up_to(limit)), (below, up_to), "{limit}");
            assert_eq!((of([]).below(limit), of([]).up_to(limit)), (0, 0), "{limit}");
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
        for q in [0.0, 0.25, 0.5, 0.75, 1.0] {
            assert_eq!(merged.quantile(q), all.quantile(q));
        }
        merged.merge(&Sketch::default());
        assert_eq!(merged.count(), 5);
    }

    #[test]
    fn what_is_no_sketch_is_refused() {
        assert!(Sketch::decode(b"").is_none());
        assert!(Sketch::decode(b"no sketch at all").is_none());
        let other = DDSketch::new(Config::new(0.02, MAX_BINS, SMALLEST));
        assert!(Sketch::decode(&other.to_java_bytes()).is_none());
    }
}
