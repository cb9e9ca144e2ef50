//! Rate limits for clients.
//!
//! A request costs one compare-and-swap in a table of fixed size. actix-extensible-rate-limit was
//! not used because its table of addresses grows until it is swept, so a client with many addresses
//! can fill the memory. It also needs a runtime when the routes are configured, and an allocation
//! and a lock for each request.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Number of slots. Clients with the same slot share one limit. Clients cannot choose their slot,
/// because the hash has a random seed.
const SLOTS: usize = 1 << 14;
/// One second in nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// Rate limiter with one limit for each client. It implements the generic cell rate algorithm
/// (GCRA).
pub(crate) struct Meter {
    epoch: Instant,
    hasher: RandomState,
    /// For each slot, the theoretical arrival time of its next request, in nanoseconds since
    /// `epoch`. Each request moves it on by its share of a second.
    slots: Box<[AtomicU64]>,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            hasher: RandomState::new(),
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Meter {
    /// Counts a request of the client. Returns the number of requests that it may still send at
    /// once, or `None` if this request exceeds `per_second`. 0 means no limit.
    pub(crate) fn take(&self, client: Client, per_second: u32) -> Option<u32> {
        if per_second == 0 {
            Some(u32::MAX)
        } else {
            self.take_at(client, per_second, self.now())
        }
    }

    fn take_at(&self, client: Client, per_second: u32, now: u64) -> Option<u32> {
        let advance = |arrival| advanced(arrival, per_second, now);
        // Relaxed: the slot stands alone, no other memory depends on its value.
        let before = self
            .slot(client)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance)
            .ok()?;
        let arrival = advance(before)?;
        let left = (now + SECOND).saturating_sub(arrival) / (SECOND / u64::from(per_second)).max(1);
        Some(u32::try_from(left).unwrap_or(u32::MAX))
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the index is a remainder of the length"
    )]
    fn slot(&self, client: Client) -> &AtomicU64 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "every part of a hash is equally random"
        )]
        let slot = self.hasher.hash_one(client.0) as usize % SLOTS;
        &self.slots[slot]
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX - SECOND)
    }
}

/// Returns the theoretical arrival time after one more request, or `None` if it is more than a
/// second ahead.
fn advanced(arrival: u64, per_second: u32, now: u64) -> Option<u64> {
    let next = arrival.max(now) + SECOND / u64::from(per_second);
    (next <= now + SECOND).then_some(next)
}

/// Client as rate limits see it: an IPv4 address, or an IPv6 network of 64 bits. Providers assign
/// IPv6 networks of this size to one customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client(u64);

impl Client {
    /// Returns the client with this address. All connections without an address, such as those
    /// through a Unix socket, are one client.
    pub(crate) fn at(address: Option<IpAddr>) -> Self {
        match address.map(|address| address.to_canonical()) {
            None => Self(0),
            Some(IpAddr::V4(address)) => Self(u32::from(address).into()),
            Some(IpAddr::V6(address)) => Self((u128::from(address) >> 64) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> Client {
        Client::at(Some(address.parse().unwrap()))
    }

    fn allowed(meter: &Meter, client: Client, per_second: u32, now: u64) -> usize {
        (0..1000)
            .filter(|_| meter.take_at(client, per_second, now).is_some())
            .count()
    }

    #[test]
    fn second_permits_its_limit_and_each_part_of_it_a_share() {
        let meter = Meter::default();
        let one = client("192.0.2.1");
        for (now, expected) in [
            (0, 10),
            (SECOND / 20, 0),
            (SECOND / 10, 1),
            (SECOND, 9),
            (60 * SECOND, 10),
        ] {
            assert_eq!(allowed(&meter, one, 10, now), expected, "{now}");
        }
        assert_eq!(allowed(&Meter::default(), one, 1, 5), 1);
        assert_eq!(allowed(&Meter::default(), one, 3, 5), 3);
        assert_eq!(allowed(&Meter::default(), one, u32::MAX, 5), 1000);
        assert!((0..1000).all(|_| meter.take(one, 0).is_some()));
    }

    #[test]
    fn what_is_left_shrinks_with_each_and_grows_with_the_time() {
        let meter = Meter::default();
        let one = client("192.0.2.1");
        let left: Vec<_> = (0..4).map(|_| meter.take_at(one, 3, 5)).collect();
        assert_eq!(left, [Some(2), Some(1), Some(0), None]);
        assert_eq!(meter.take_at(one, 3, 5 + SECOND), Some(2));
    }

    #[test]
    fn a_client_is_an_address_or_a_network_of_64_bits() {
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_eq!(client("192.0.2.1"), client("::ffff:192.0.2.1"));
        assert_eq!(client("2001:db8:0:1::1"), client("2001:db8:0:1:ffff::2"));
        assert_ne!(client("2001:db8:0:1::1"), client("2001:db8:0:2::1"));
        assert_eq!(Client::at(None), Client::at(None));
    }
}
