//! How often a client may come.
//!
//! Not with actix-extensible-rate-limit: its table of addresses grows until it is swept, and so could be
//! grown by anybody who has many; it needs a runtime where the routes are made, and an allocation and a
//! lock at each request. Here a request costs one compare-and-swap in a table that never grows.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Clients that are told apart; those who meet in one place share what one may do. Who meets whom
/// cannot be foreseen from outside.
const PLACES: usize = 1 << 14;
const SECOND: u64 = 1_000_000_000;

/// Counts what clients do, each by itself (the generic cell rate algorithm).
pub(super) struct Meter {
    begin: Instant,
    hasher: RandomState,
    /// When whoever is there has made up for what was done, in nanoseconds since the beginning.
    places: Box<[AtomicU64]>,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            begin: Instant::now(),
            hasher: RandomState::new(),
            places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Meter {
    /// Counts one more, unless that were more than `per_second` within a second; 0: there is no limit.
    pub(super) fn allows(&self, client: Client, per_second: u32) -> bool {
        per_second == 0 || self.allows_at(client, per_second, self.now())
    }

    /// What `allows` would say, without counting.
    pub(super) fn is_used_up(&self, client: Client, per_second: u32) -> bool {
        let until = self.place(client).load(Ordering::Relaxed);
        per_second != 0 && after_one_more(until, per_second, self.now()).is_none()
    }

    fn allows_at(&self, client: Client, per_second: u32, now: u64) -> bool {
        let one_more = |until| after_one_more(until, per_second, now);
        self.place(client).fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    #[expect(clippy::indexing_slicing, reason = "the remainder is always within")]
    fn place(&self, client: Client) -> &AtomicU64 {
        #[expect(clippy::cast_possible_truncation, reason = "any part of a hash is as good")]
        let place = self.hasher.hash_one(client.0) as usize % PLACES;
        &self.places[place]
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX - SECOND)
    }
}

/// When one more will have been made up for; `None`: that is more than a second ahead.
fn after_one_more(until: u64, per_second: u32, now: u64) -> Option<u64> {
    let after = until.max(now) + SECOND / u64::from(per_second);
    (after <= now + SECOND).then_some(after)
}

/// Whoever is behind an address; in IPv6, behind a network of 64 bits, for those are given away whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Client(u64);

impl Client {
    /// `None`: the request came over something that has no addresses.
    pub(super) fn at(address: Option<SocketAddr>) -> Self {
        match address.map(|address| address.ip().to_canonical()) {
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
        Client::at(Some(SocketAddr::new(address.parse().unwrap(), 1)))
    }

    fn allowed(meter: &Meter, client: Client, per_second: u32, now: u64) -> usize {
        (0..1000).filter(|_| meter.allows_at(client, per_second, now)).count()
    }

    #[test]
    fn a_second_has_as_many_as_are_allowed_and_each_part_of_it_its_share() {
        let meter = Meter::default();
        let one = client("192.0.2.1");
        for (now, expected) in [(0, 10), (SECOND / 20, 0), (SECOND / 10, 1), (SECOND, 9), (60 * SECOND, 10)] {
            assert_eq!(allowed(&meter, one, 10, now), expected, "{now}");
        }
        assert_eq!(allowed(&Meter::default(), one, 1, 5), 1);
        assert_eq!(allowed(&Meter::default(), one, 3, 5), 3);
        assert_eq!(allowed(&Meter::default(), one, u32::MAX, 5), 1000);
        assert!((0..1000).all(|_| meter.allows(one, 0)));
    }

    #[test]
    fn looking_counts_nothing() {
        let meter = Meter::default();
        let one = client("192.0.2.1");
        assert!((0..100).all(|_| !meter.is_used_up(one, 1)));
        assert!(meter.allows(one, 1));
        assert!(meter.is_used_up(one, 1) && !meter.is_used_up(one, 0));
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
