//! Host names under which clients may address the service.

use std::net::Ipv6Addr;
use std::str::FromStr;

/// Pattern for the Host header of a request. Ports are ignored.
///
/// | pattern | allows |
/// | --- | --- |
/// | `logger.example`, `10.1.2.3`, `[2001:db8::1]`, each also with a port | this host |
/// | `*.example` | each host below `example`, at any depth |
/// | `.example` | the same, and `example` itself |
/// | `*` | each host |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(Rule);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Any,
    /// A host in the form of [`host_name`].
    Exactly(String),
    /// Suffix of all hosts below a domain: a dot and the domain.
    Below(String),
    /// The same suffix, which also allows the domain itself.
    BelowOrEqual(String),
}

impl FromStr for Host {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected a host such as fl.example or 10.1.2.3, *.example, .example or *";
        let text = text.trim();
        if text == "*" {
            return Ok(Self(Rule::Any));
        }
        if text.contains("://") {
            return Err("expected a host without a scheme, such as fl.example");
        }
        let (suffix, name) = match (text.strip_prefix("*."), text.strip_prefix('.')) {
            (Some(domain), _) => (Some(Rule::Below as fn(String) -> Rule), domain),
            (None, Some(domain)) => (Some(Rule::BelowOrEqual as fn(String) -> Rule), domain),
            (None, None) => (None, text),
        };
        let name = host_name(name);
        let is_address = name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
            .is_some_and(is_ipv6);
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if name.is_empty() || !(is_address || name.bytes().all(is_allowed)) || name.starts_with('.')
        {
            return Err(expected);
        }
        Ok(Self(match suffix {
            Some(rule) => rule(format!(".{name}")),
            None => Rule::Exactly(name),
        }))
    }
}

impl Host {
    /// Returns `true` if the pattern matches `host`, which must have the form of [`host_name`].
    pub(crate) fn allows(&self, host: &str) -> bool {
        match &self.0 {
            Rule::Any => true,
            Rule::Exactly(name) => host == name,
            Rule::Below(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            Rule::BelowOrEqual(suffix) => host.ends_with(suffix) || suffix.get(1..) == Some(host),
        }
    }

    pub(crate) fn exactly(name: &str) -> Self {
        Self(Rule::Exactly(host_name(name)))
    }
}

/// Returns the host of an authority in a form that can be compared: in lower case, without port and
/// without trailing dot. An IPv6 address is in brackets and in its shortest form.
pub(crate) fn host_name(authority: &str) -> String {
    let bare = authority.trim_start_matches('[').trim_end_matches(']');
    if is_ipv6(bare) {
        return bracketed(bare);
    }
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(address) if is_ipv6(address) => bracketed(address),
        _ => host.trim_end_matches('.').to_ascii_lowercase(),
    }
}

fn is_ipv6(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok()
}

fn bracketed(address: &str) -> String {
    address
        .parse::<Ipv6Addr>()
        .map_or_else(|_| address.to_owned(), |address| format!("[{address}]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_mean_what_people_expect() {
        for (rule, allowed, rejected) in [
            (
                "fl.example",
                &["fl.example", "FL.example:4318", "fl.example."][..],
                &["example", "x.fl.example", ""][..],
            ),
            (
                "fl.example:8080",
                &["fl.example", "fl.example:1"],
                &["fl.examples"],
            ),
            ("10.1.2.3", &["10.1.2.3", "10.1.2.3:4318"], &["10.1.2.4"]),
            ("10.1.2.3:4318", &["10.1.2.3"], &["10.1.2.33"]),
            (
                "2001:db8::1",
                &["[2001:db8::1]", "[2001:0db8:0::1]:4318"],
                &["[2001:db8::2]"],
            ),
            ("[2001:DB8::1]:80", &["[2001:db8::1]"], &["2001"]),
            (
                "*.example",
                &["a.example", "a.b.EXAMPLE:1"],
                &["example", ".example", "anexample"],
            ),
            (
                ".example",
                &["a.example", "example", "example:1"],
                &["anexample"],
            ),
            ("*", &["a", "", "10.0.0.1:1", "[::1]"], &[]),
            ("my_service", &["my_service:1"], &["my-service"]),
        ] {
            let rule: Host = rule.parse().unwrap();
            assert!(
                allowed.iter().all(|host| rule.allows(&host_name(host))),
                "{rule:?}"
            );
            assert!(
                !rejected.iter().any(|host| rule.allows(&host_name(host))),
                "{rule:?}"
            );
        }
        for bad in [
            "",
            " ",
            "http://fl.example",
            "fl.example/path",
            "a b",
            "user@host",
            "fl.*",
            "a*.example",
            "*.*",
            "..a",
        ] {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
    }
}
