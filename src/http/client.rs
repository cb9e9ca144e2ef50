//! The address of the client of a request, also behind proxies.

use std::net::IpAddr;

use actix_web::dev::ServiceRequest;
use actix_web::http::header::{FORWARDED, HeaderMap, HeaderName};

use crate::http::access::TrustedProxy;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Maximum number of hops that are evaluated. It bounds the work that one long header causes.
const MAX_HOPS: usize = 32;

/// Returns the address of the client, or `None` if it is connected through a Unix socket.
///
/// If the peer is a trusted proxy, its header lists the chain of addresses. The client is the first
/// address from the right that is not a trusted proxy. Everything to the left of it is ignored,
/// because the client may have forged it.
pub(crate) fn address_of(request: &ServiceRequest, trusted: &[TrustedProxy]) -> Option<IpAddr> {
    let peer = request.peer_addr().map(|peer| peer.ip().to_canonical());
    if trusted.is_empty() {
        peer
    } else {
        behind_proxies(peer, request.headers(), trusted)
    }
}

fn behind_proxies(
    peer: Option<IpAddr>,
    headers: &HeaderMap,
    trusted: &[TrustedProxy],
) -> Option<IpAddr> {
    let is_trusted = |address: Option<IpAddr>| {
        trusted.iter().any(|proxy| match (proxy, address) {
            (TrustedProxy::Network(network), Some(address)) => network.contains(&address),
            (TrustedProxy::Unix, None) => true,
            (TrustedProxy::Network(_), None) | (TrustedProxy::Unix, Some(_)) => false,
        })
    };
    let mut client = peer;
    // `Forwarded` (RFC 7239) takes precedence: a proxy sends it only if it is configured to.
    let hops = match headers.contains_key(FORWARDED) {
        true => hops(headers, &FORWARDED, forwarded_for),
        false => hops(headers, &X_FORWARDED_FOR, |hop| parse_address(hop.trim())),
    };
    for hop in hops.into_iter().rev().take(MAX_HOPS) {
        if !is_trusted(client) {
            break;
        }
        let Some(address) = hop else { break };
        client = Some(address.to_canonical());
    }
    client
}

/// Returns the hops that a header lists, in its order. A hop without an address, such as `unknown`,
/// is `None`.
fn hops(
    headers: &HeaderMap,
    name: &HeaderName,
    parse: impl Fn(&str) -> Option<IpAddr>,
) -> Vec<Option<IpAddr>> {
    let lines = headers
        .get_all(name)
        .filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(parse).collect()
}

/// Returns the address in a hop such as `for="[2001:db8::1]:4711";proto=https`.
fn forwarded_for(hop: &str) -> Option<IpAddr> {
    hop.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("for") {
            parse_address(value.trim().trim_matches('"'))
        } else {
            None
        }
    })
}

/// Parses an address with or without a port.
fn parse_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split_once(']')?.0.parse().ok();
    }
    text.rsplit_once(':')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn client_is_the_first_from_the_right_that_is_no_trusted_proxy() {
        let trusted: Vec<TrustedProxy> = ["10.0.0.0/8", "::1"]
            .map(|text| text.parse().unwrap())
            .into();
        for (peer, header, value, expected) in [
            ("10.0.0.1", "x-forwarded-for", "192.0.2.1", "192.0.2.1"),
            (
                "10.0.0.1",
                "x-forwarded-for",
                "198.51.100.9, 192.0.2.1, 10.0.0.2",
                "192.0.2.1",
            ),
            ("10.0.0.1", "x-forwarded-for", "192.0.2.1:4711", "192.0.2.1"),
            (
                "10.0.0.1",
                "forwarded",
                "for=192.0.2.1;proto=https",
                "192.0.2.1",
            ),
            (
                "10.0.0.1",
                "forwarded",
                "for=198.51.100.9, For=\"[2001:db8::1]:4711\"",
                "2001:db8::1",
            ),
            ("::1", "x-forwarded-for", "192.0.2.1", "192.0.2.1"),
            (
                "::ffff:10.0.0.1",
                "x-forwarded-for",
                "192.0.2.1",
                "192.0.2.1",
            ),
            // The peer is no trusted proxy, so its header is ignored.
            ("192.0.2.7", "x-forwarded-for", "198.51.100.9", "192.0.2.7"),
            (
                "10.0.0.1",
                "x-forwarded-for",
                "192.0.2.1, unknown",
                "10.0.0.1",
            ),
            ("10.0.0.1", "x-forwarded-for", "", "10.0.0.1"),
        ] {
            let peer: IpAddr = peer.parse().unwrap();
            let request = TestRequest::default()
                .peer_addr((peer, 1).into())
                .insert_header((header, value));
            let client = address_of(&request.to_srv_request(), &trusted);
            assert_eq!(
                client,
                Some(expected.parse().unwrap()),
                "{peer} {header}: {value}"
            );
        }
        let request = TestRequest::default()
            .insert_header(("x-forwarded-for", "192.0.2.1"))
            .to_srv_request();
        assert_eq!(
            address_of(&request, &trusted),
            None,
            "a Unix socket is trusted only if the settings say so"
        );
        assert_eq!(
            address_of(&request, &[TrustedProxy::Unix]),
            Some("192.0.2.1".parse().unwrap())
        );
    }
}
