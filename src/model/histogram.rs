//! Distributions for operators, at the cost of one increment a value.

use std::sync::atomic::{AtomicU64, Ordering};

/// Number of values below each bound, and beyond the last.
pub(crate) struct Histogram<const N: usize> {
    bounds: [f64; N],
    /// One for each bound; what is beyond the last is in the total only.
    counts: [AtomicU64; N],
    total: AtomicU64,
    /// In millionths.
    sum: AtomicU64,
}

/// Counts of a histogram, in the form of an exposition.
#[cfg_attr(
    not(feature = "http"),
    expect(dead_code, reason = "shown by the service")
)]
pub(crate) struct HistogramCounts {
    /// Each bound, and how many values are not above it but above the one before. The last bound is
    /// infinity.
    pub(crate) buckets: Vec<(f64, u64)>,
    pub(crate) total: u64,
    pub(crate) sum: f64,
}

impl<const N: usize> Histogram<N> {
    pub(crate) fn new(bounds: [f64; N]) -> Self {
        Self {
            bounds,
            counts: [const { AtomicU64::new(0) }; N],
            total: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    pub(crate) fn observe(&self, value: f64) {
        if let Some((_, count)) = self
            .bounds
            .iter()
            .zip(&self.counts)
            .find(|(bound, _)| value <= **bound)
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates"
        )]
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
    }

    #[cfg_attr(
        not(feature = "http"),
        expect(dead_code, reason = "shown by the service")
    )]
    pub(crate) fn counts(&self) -> HistogramCounts {
        let total = self.total.load(Ordering::Relaxed);
        let mut buckets: Vec<(f64, u64)> = self
            .bounds
            .iter()
            .zip(&self.counts)
            .map(|(bound, count)| (*bound, count.load(Ordering::Relaxed)))
            .collect();
        let within: u64 = buckets.iter().map(|(_, count)| count).sum();
        buckets.push((f64::INFINITY, total.saturating_sub(within)));
        HistogramCounts {
            buckets,
            total: total.max(within),
            sum: self.sum.load(Ordering::Relaxed) as f64 / 1e6,
        }
    }
}
