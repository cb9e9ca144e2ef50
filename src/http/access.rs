//! Access rules: tokens and their scopes, allowed hosts and origins, trusted proxies, rate limits.

use std::fmt;
use std::str::FromStr;

use actix_web::http::header::HeaderValue;
use ipnet::IpNet;
use subtle::{Choice, ConstantTimeEq as _};

use crate::http::host::Host;
use crate::http::{DEFAULT_MAX_POSTS_PER_SECOND, DEFAULT_MAX_READS_PER_SECOND};

/// Secret of a client. `Debug` does not reveal it, and comparisons take constant time.
#[derive(Clone)]
pub struct Token(String);

impl FromStr for Token {
    type Err = &'static str;

    /// Parses a token of at least 16 visible ASCII characters.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.len() < 16 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("expected a token of at least 16 visible ASCII characters");
        }
        Ok(Self(text.into()))
    }
}

impl Token {
    /// Returns the secret itself, which a client has to send.
    #[cfg(feature = "program")]
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    fn matches(&self, presented: &str) -> Choice {
        presented.as_bytes().ct_eq(self.0.as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Permission that a token grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// Permission to read failures, rates and all other contents of the log.
    Read,
    /// Permission to report failures and attempts.
    Ingest,
    /// Permission to set the status of groups of queries.
    Triage,
    /// Permission to read the counters for Prometheus.
    Metrics,
    /// Permission to delete failures permanently.
    Erase,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 5] = [
        Self::Read,
        Self::Ingest,
        Self::Triage,
        Self::Metrics,
        Self::Erase,
    ];

    /// Returns the name of the scope in a token file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Ingest => "ingest",
            Self::Triage => "triage",
            Self::Metrics => "metrics",
            Self::Erase => "erase",
        }
    }
}

impl FromStr for Scope {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let scope = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        scope.ok_or("expected read, ingest, triage, metrics or erase")
    }
}

/// Token with a name and scopes.
#[derive(Debug, Clone)]
pub struct NamedToken {
    /// Name that the access log records.
    pub name: String,
    /// Secret that the client sends.
    pub token: Token,
    /// Scopes that the token grants.
    pub scopes: Vec<Scope>,
}

/// Origin whose web pages may read the responses of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

impl FromStr for Origin {
    type Err = &'static str;

    /// Parses an origin in the form that browsers send: scheme, host and optional port, such as
    /// `https://dashboard.example`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected =
            "expected an origin such as https://dashboard.example or http://localhost:3000";
        let origin = text.trim().to_ascii_lowercase();
        let host = origin
            .strip_prefix("https://")
            .or_else(|| origin.strip_prefix("http://"))
            .ok_or(expected)?;
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_allowed) {
            return Err(expected);
        }
        Ok(Self(origin))
    }
}

impl Origin {
    pub(crate) fn matches(&self, header: &HeaderValue) -> bool {
        header.as_bytes().eq_ignore_ascii_case(self.0.as_bytes())
    }
}

/// Proxies that the service trusts to name the address of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustedProxy {
    /// All addresses of a network.
    Network(IpNet),
    /// Every process that connects through a Unix socket.
    Unix,
}

impl FromStr for TrustedProxy {
    type Err = &'static str;

    /// Parses an address, a network such as `10.0.0.0/8`, or `unix`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text == "unix" {
            return Ok(Self::Unix);
        }
        let network = text
            .parse()
            .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        network
            .map(Self::Network)
            .map_err(|_| "expected an address, a network such as 10.0.0.0/8, or unix")
    }
}

/// Rules that decide if a request is accepted. They can be replaced while the service runs.
#[derive(Debug, Clone)]
pub(crate) struct AccessRules {
    /// `None` allows every host.
    pub(crate) hosts: Option<Vec<Host>>,
    pub(crate) tokens: Vec<NamedToken>,
    pub(crate) trusted_proxies: Vec<TrustedProxy>,
    pub(crate) max_reads_per_second: u32,
    pub(crate) max_posts_per_second: u32,
}

impl Default for AccessRules {
    fn default() -> Self {
        Self {
            hosts: Some(
                ["localhost", "127.0.0.1", "[::1]"]
                    .map(Host::exactly)
                    .into(),
            ),
            tokens: Vec::new(),
            trusted_proxies: Vec::new(),
            max_reads_per_second: DEFAULT_MAX_READS_PER_SECOND,
            max_posts_per_second: DEFAULT_MAX_POSTS_PER_SECOND,
        }
    }
}

/// Decision about a request, based on its token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The request may proceed. Contains the name of its token, if it has a valid one.
    Granted(Option<String>),
    /// The token with this name is valid, but lacks the scope.
    LacksScope(String),
    /// The scope needs a token, but no token has it.
    NoSuchToken,
    /// The scope needs a token, and the request has no `Authorization` header.
    Missing,
    /// The scope needs a token, and the request has an unknown one.
    Wrong,
}

impl AccessRules {
    pub(crate) fn decide(&self, scope: Scope, authorization: Option<&HeaderValue>) -> Decision {
        let presented = authorization.and_then(|value| value.to_str().ok()?.split_once(' '));
        let presented = presented
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        // The loop compares all tokens, so that its duration does not reveal the one that matches.
        let mut found = None;
        for named in &self.tokens {
            // Several names may share one secret. It grants the scopes of all of them.
            let is_better = found.is_none_or(|found: &NamedToken| !found.scopes.contains(&scope));
            if bool::from(named.token.matches(presented.unwrap_or_default())) && is_better {
                found = Some(named);
            }
        }
        let is_open = self.is_open(scope);
        match found {
            Some(named) if is_open || named.scopes.contains(&scope) => {
                Decision::Granted(Some(named.name.clone()))
            }
            Some(named) => Decision::LacksScope(named.name.clone()),
            None if is_open => Decision::Granted(None),
            None if !self
                .tokens
                .iter()
                .any(|named| named.scopes.contains(&scope)) =>
            {
                Decision::NoSuchToken
            }
            None if authorization.is_none() => Decision::Missing,
            None => Decision::Wrong,
        }
    }

    /// Returns `true` if the scope needs no token.
    pub(crate) fn is_open(&self, scope: Scope) -> bool {
        let has_no_token = |scope: Scope| {
            !self
                .tokens
                .iter()
                .any(|named| named.scopes.contains(&scope))
        };
        match scope {
            Scope::Read | Scope::Ingest => has_no_token(scope),
            // Both build on reading: without a token of their own, they are open only if `Read` is.
            Scope::Triage | Scope::Metrics => has_no_token(scope) && has_no_token(Scope::Read),
            // Always needs a token, because a deletion cannot be undone.
            Scope::Erase => false,
        }
    }
}

/// Sender of a request, as an extension of it: the access log and [`Grant`] read it.
///
/// [`Grant`]: crate::http::guard::Grant
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Name of its token.
    pub(crate) token: Option<String>,
    /// Scope that the request needs.
    pub(crate) scope: Scope,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(tokens: &[(&str, &[Scope])]) -> AccessRules {
        let named = |(name, scopes): &(&str, &[Scope])| NamedToken {
            name: (*name).into(),
            token: format!("{name}-0123456789abcdef").parse().unwrap(),
            scopes: scopes.to_vec(),
        };
        AccessRules {
            tokens: tokens.iter().map(named).collect(),
            ..AccessRules::default()
        }
    }

    fn decide(rules: &AccessRules, scope: Scope, name: Option<&str>) -> Decision {
        let header = name
            .map(|name| HeaderValue::from_str(&format!("bEARER {name}-0123456789abcdef")).unwrap());
        rules.decide(scope, header.as_ref())
    }

    #[test]
    fn without_tokens_everything_but_erasing_is_granted() {
        let rules = rules(&[]);
        for scope in Scope::ALL {
            let expected = if scope == Scope::Erase {
                Decision::NoSuchToken
            } else {
                Decision::Granted(None)
            };
            assert_eq!(decide(&rules, scope, None), expected, "{scope:?}");
            assert_eq!(decide(&rules, scope, Some("x")), expected, "{scope:?}");
        }
    }

    #[test]
    fn token_grants_its_scopes_and_two_of_them_may_grant_the_same() {
        let rules = rules(&[
            ("old", &[Scope::Read]),
            ("new", &[Scope::Read, Scope::Erase]),
            ("app", &[Scope::Ingest]),
        ]);
        let granted = |name: &str| Decision::Granted(Some(name.into()));
        let lacks = |name: &str| Decision::LacksScope(name.into());
        for (scope, name, expected) in [
            (Scope::Read, Some("old"), granted("old")),
            (Scope::Read, Some("new"), granted("new")),
            (Scope::Read, Some("app"), lacks("app")),
            (Scope::Read, Some("x"), Decision::Wrong),
            (Scope::Read, None, Decision::Missing),
            (Scope::Erase, Some("old"), lacks("old")),
            (Scope::Erase, Some("new"), granted("new")),
            (Scope::Ingest, Some("old"), lacks("old")),
            // Metrics and triage need a token as soon as reading needs one.
            (Scope::Metrics, Some("old"), lacks("old")),
            (Scope::Triage, None, Decision::NoSuchToken),
        ] {
            assert_eq!(decide(&rules, scope, name), expected, "{scope:?} {name:?}");
        }
    }

    #[test]
    fn proxies_are_addresses_networks_and_the_unix_socket() {
        for text in ["10.1.2.3", "10.0.0.0/8", "::1", "2001:db8::/32", "unix"] {
            assert!(text.parse::<TrustedProxy>().is_ok(), "{text}");
        }
        for text in ["", "localhost", "10.0.0.0/33", "10.0.0"] {
            assert!(text.parse::<TrustedProxy>().is_err(), "{text}");
        }
    }
}
