//! Counters of requests and their durations, by route.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix_web::http::{Method, StatusCode};

use crate::model::histogram::{Histogram, HistogramCounts};

/// Upper bounds of the histogram's buckets, in seconds.
const BOUNDS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.25, 1.0, 5.0, 30.0];
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", "other"];
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// Counters of the requests to one route.
pub(crate) struct RouteMetrics {
    pub(crate) route: &'static str,
    counts: [[AtomicU64; CLASSES.len()]; METHODS.len()],
    seconds: Histogram<{ BOUNDS.len() }>,
}

impl RouteMetrics {
    pub(crate) fn new(route: &'static str) -> Self {
        Self {
            route,
            counts: Default::default(),
            seconds: Histogram::new(BOUNDS),
        }
    }

    /// Counts a request. `took` is the time until its response began.
    pub(crate) fn observe(&self, method: &Method, status: StatusCode, took: Duration) {
        let method = METHODS
            .iter()
            .position(|name| *name == method.as_str())
            .unwrap_or(METHODS.len() - 1);
        let class = usize::from(status.as_u16() / 100)
            .saturating_sub(2)
            .min(CLASSES.len() - 1);
        if let Some(count) = self
            .counts
            .get(method)
            .and_then(|classes| classes.get(class))
        {
            // Relaxed: a statistic that no other memory depends on.
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.seconds.observe(took.as_secs_f64());
    }

    /// Returns method, class of status and count of all combinations that occurred.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        METHODS
            .iter()
            .zip(&self.counts)
            .flat_map(|(method, classes)| {
                let counts = CLASSES
                    .iter()
                    .zip(classes)
                    .map(|(class, count)| (*method, *class, count.load(Ordering::Relaxed)));
                counts.filter(|(_, _, count)| *count > 0)
            })
    }

    pub(crate) fn seconds(&self) -> HistogramCounts {
        self.seconds.counts()
    }
}
