//! Settings: flags over the environment over a file over defaults.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Failure;
use super::output::{Column, Format, Kind, column, write};
use super::redact::{QueryText, Redaction, Rule};
use crate::config::{DEFAULT_ATTEMPTS_RETENTION_DAYS, DEFAULT_RETENTION_DAYS, Location, LoggerConfig};
use crate::error::ConfigError;
use crate::http::{DEFAULT_MAX_POSTS_PER_SECOND, DEFAULT_MAX_QUESTIONS_PER_SECOND, Host, HttpOptions, Token};
use crate::report::FailureReader;
use crate::store::StoredRetention;

const DEFAULT_LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 4318));
/// A service has more callers than one application.
const DEFAULT_BUFFER_CAPACITY: usize = 65_536;

/// Threads that speak HTTP at most.
const MAX_WORKERS: usize = 256;
/// How the names of variables begin.
const PREFIX: &str = "FAILURE_LOGGER_";
/// How much an unknown key must be like another for that to be suggested, 0 to 1.
const LIKE: f64 = 0.75;

/// Flags that any command takes; each has a setting of the same name.
#[derive(Args, Default)]
#[command(next_help_heading = "Settings")]
pub(super) struct Flags {
    /// The database file
    #[arg(long = "db", global = true, value_name = "PATH")]
    database_url: Option<String>,
    #[command(flatten)]
    service: ServiceFlags,
    /// Any other setting, as flush_interval_ms=250; see `config`
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    others: Vec<String>,
    /// A TOML file with settings
    #[arg(long = "config", global = true, env = "FAILURE_LOGGER_CONFIG", value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Flags of `serve`, also before or without a command; each has a setting of the same name.
#[derive(Args, Default, Clone)]
#[command(next_help_heading = "Settings")]
pub(super) struct ServiceFlags {
    /// The address to listen on; any other than a loopback address needs --token-file
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// File with the tokens to ask for: lines `read = TOKEN` and `ingest = TOKEN`, or one token for both
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Another host by which the service may be addressed, as fl.example, 10.1.2.3, *.example or *
    #[arg(long = "allow-host", value_name = "HOST")]
    allow_hosts: Vec<String>,
    /// How the log is written
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Days after which failures are deleted; 0 keeps them. A service writes this to the database, where it stays
    #[arg(long, value_name = "DAYS")]
    retention_days: Option<u32>,
}

impl Flags {
    /// Adds the flags behind `serve` to those before it, and before them in rank.
    pub(super) fn with(mut self, own: &ServiceFlags) -> Self {
        let before = &mut self.service;
        before.listen = own.listen.or(before.listen);
        before.token_file = own.token_file.clone().or(before.token_file.take());
        before.allow_hosts.extend(own.allow_hosts.iter().cloned());
        before.log_format = own.log_format.or(before.log_format);
        before.retention_days = own.retention_days.or(before.retention_days);
        self
    }
}

/// How the service's own log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogFormat {
    /// Lines for people
    Text,
    /// A JSON object a line
    Json,
}

/// The settings of the service beside those of the logger.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceSettings {
    pub(super) listen: SocketAddr,
    pub(super) token_file: Option<PathBuf>,
    pub(super) allow_hosts: Vec<String>,
    pub(super) allow_origins: Vec<String>,
    pub(super) log_format: LogFormat,
    pub(super) log_level: String,
    pub(super) max_connections: usize,
    pub(super) max_questions_per_second: u32,
    pub(super) max_posts_per_second: u32,
    pub(super) reject_unknown_fields: bool,
    pub(super) redact: Vec<Rule>,
    pub(super) query_text: QueryText,
    pub(super) query_hash_key_file: Option<PathBuf>,
    pub(super) workers: usize,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            listen: DEFAULT_LISTEN,
            token_file: None,
            allow_hosts: Vec::new(),
            allow_origins: Vec::new(),
            log_format: LogFormat::Text,
            log_level: "info".into(),
            max_connections: 20_000,
            max_questions_per_second: DEFAULT_MAX_QUESTIONS_PER_SECOND,
            max_posts_per_second: DEFAULT_MAX_POSTS_PER_SECOND,
            reject_unknown_fields: false,
            redact: Vec::new(),
            query_text: QueryText::Keep,
            query_hash_key_file: None,
            workers: std::thread::available_parallelism().map_or(2, usize::from).min(MAX_WORKERS),
        }
    }
}

impl ServiceSettings {
    fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |setting, value: usize, expected| Err(ConfigError { setting, value: value.to_string(), expected });
        if !(1..=MAX_WORKERS).contains(&self.workers) {
            return refuse("workers", self.workers, "1 to 256 threads");
        }
        if !is_log_level(&self.log_level) {
            let expected = "error, warn, info, debug, trace or off, or a list such as info,failure_logger=debug";
            return Err(ConfigError { setting: "log_level", value: self.log_level.clone(), expected });
        }
        if self.max_connections == 0 {
            return refuse("max_connections", 0, "at least 1 connection for each worker");
        }
        Ok(())
    }
}

/// Returns `true` if each part names a level. A word that is none would be taken for a module, and silence the rest.
fn is_log_level(text: &str) -> bool {
    let level = |text: &str| LEVELS.contains(&text.trim().to_ascii_lowercase().as_str());
    text.split(',').all(|part| level(part.rsplit_once('=').map_or(part, |(_, level)| level)))
        && tracing_subscriber::EnvFilter::try_new(text).is_ok()
}

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Settings whose default is what the database says, with what it says at first.
const RETENTION: [(&str, u32); 2] =
    [("retention_days", DEFAULT_RETENTION_DAYS), ("attempts_retention_days", DEFAULT_ATTEMPTS_RETENTION_DAYS)];

const SETTING: [Column; 3] = [
    column("setting", "/setting", Kind::Text),
    column("value", "/value", Kind::Text),
    column("origin", "/origin", Kind::Text),
];

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Default,
    /// The retention in force, which a logger has written to the database.
    Database,
    File(PathBuf),
    Environment(String),
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Database => f.write_str("database"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "${name}"),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// All settings in force.
pub(super) struct Settings {
    values: BTreeMap<String, (Value, Origin)>,
    pub(super) logger: LoggerConfig,
    pub(super) service: ServiceSettings,
}

impl Settings {
    pub(super) fn load(flags: &Flags) -> Result<Self, Failure> {
        Self::from(flags, std::env::vars_os())
    }

    fn from(flags: &Flags, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, Failure> {
        let mut values = defaults();
        if let Some(path) = &flags.file {
            let text = fs::read_to_string(path)
                .map_err(|error| Failure::Usage(format!("--config {}: {error}", path.display())))?;
            let file: Map<String, Value> = toml::from_str(&text)
                .map_err(|error| Failure::Usage(format!("{}: {}", path.display(), error.message())))?;
            for (key, value) in file {
                let known = values.get_mut(&key).ok_or_else(|| unknown(&key, &path.display().to_string()))?;
                *known = (value, Origin::File(path.clone()));
            }
        }
        let mut set = |key: &str, value: Value, origin| values.insert(key.to_owned(), (value, origin));
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            let Some(of) = name.strip_prefix(PREFIX).filter(|of| *of != "CONFIG") else { continue };
            if is_of_the_platform(of, &value.to_string_lossy()) {
                continue;
            }
            let key = of.to_ascii_lowercase();
            if !defaults().contains_key(&key) || key.to_ascii_uppercase() != of {
                return Err(unknown(&key, &format!("${name}")));
            }
            // The value is not repeated: it is no text.
            let text = value.to_str().ok_or_else(|| Failure::Usage(format!("${name}: expected text in UTF-8")))?;
            set(&key, parsed(&key, text.trim()), Origin::Environment(name));
        }
        let service = &flags.service;
        let own = [
            ("database_url", flags.database_url.clone().map(Value::from)),
            ("listen", service.listen.map(|listen| listen.to_string().into())),
            ("token_file", service.token_file.as_ref().map(|path| path.to_string_lossy().into())),
            ("allow_hosts", (!service.allow_hosts.is_empty()).then(|| service.allow_hosts.clone().into())),
            ("log_format", service.log_format.and_then(|format| serde_json::to_value(format).ok())),
            ("retention_days", service.retention_days.map(Value::from)),
        ];
        for (key, value) in own {
            if let Some(value) = value {
                set(key, value, Origin::Flag);
            }
        }
        for other in &flags.others {
            let (key, value) =
                other.split_once('=').ok_or_else(|| Failure::Usage(format!("--set {other}: expected KEY=VALUE")))?;
            if !defaults().contains_key(key) {
                return Err(unknown(key, "--set"));
            }
            set(key, parsed(key, value), Origin::Flag);
        }
        let service_keys = as_map(&ServiceSettings::default());
        let is_left_to_the_database =
            |key: &str, origin: &Origin| *origin == Origin::Default && RETENTION.iter().any(|(name, _)| *name == key);
        let (service, logger): (Map<_, _>, Map<_, _>) = values
            .iter()
            .filter(|(key, (_, origin))| !is_left_to_the_database(key, origin))
            .map(|(key, (value, _))| (key.clone(), value.clone()))
            .partition(|(key, _)| service_keys.contains_key(key));
        let mut settings = Self { logger: read(logger, &values)?, service: read(service, &values)?, values };
        let ServiceSettings { redact, query_text, query_hash_key_file, .. } = &settings.service;
        let redaction = Redaction::new(redact, *query_text, query_hash_key_file.as_deref())?;
        if !redaction.is_empty() {
            settings.logger = settings.logger.redactor(move |record| redaction.apply(record));
        }
        settings.logger.validate().map_err(|error| settings.refused(&error))?;
        settings.service.validate().map_err(|error| settings.refused(&error))?;
        Ok(settings)
    }

    /// A setting that is not accepted, as it was written and by where it comes from.
    fn refused(&self, error: &ConfigError) -> Failure {
        let name = error.setting.replace(' ', "_");
        let found = [name.clone(), format!("{name}_ms")].into_iter().find_map(|key| self.values.get_key_value(&key));
        Failure::Usage(match found {
            // What may carry a password is not repeated.
            Some((key, (_, origin))) if key == "database_url" => {
                format!("{key} = {} ({origin}): expected {}", error.value, error.expected)
            }
            Some((key, (value, origin))) => format!("{key} = {value} ({origin}): expected {}", error.expected),
            None => error.to_string(),
        })
    }

    /// What the HTTP routes are to allow.
    pub(super) fn http(&self) -> Result<HttpOptions, Failure> {
        self.http_on(self.service.listen)
    }

    /// The same for a service that listens on `listen` already, whatever the settings say now.
    pub(super) fn http_on(&self, listen: SocketAddr) -> Result<HttpOptions, Failure> {
        let mut options = HttpOptions::default()
            .alone()
            .max_questions_per_second(self.service.max_questions_per_second)
            .max_posts_per_second(self.service.max_posts_per_second)
            .reject_unknown_fields(self.service.reject_unknown_fields);
        if !listen.ip().is_unspecified() {
            let address = listen.ip().to_string().parse::<Host>().map_err(|error| Failure::Usage(error.into()))?;
            options = options.allow_host(address);
        }
        for host in &self.service.allow_hosts {
            let refused = |expected| Failure::Usage(format!("allow_hosts = {host}: {expected}"));
            options = options.allow_host(host.parse().map_err(refused)?);
        }
        for origin in &self.service.allow_origins {
            let refused = |expected| Failure::Usage(format!("allow_origins = {origin}: {expected}"));
            options = options.allow_origin(origin.parse().map_err(refused)?);
        }
        let Some(path) = &self.service.token_file else {
            if !listen.ip().is_loopback() {
                let refused = format!(
                    "listen = {listen}: anybody who reaches this address could read the log; \
                     give --token-file, or listen on 127.0.0.1"
                );
                return Err(Failure::Usage(refused));
            }
            return Ok(options);
        };
        let Tokens { read, ingest, delete } = tokens(path)?;
        if !listen.ip().is_loopback() && (read.is_none() || ingest.is_none()) {
            let refused = format!("token_file = {}: expected tokens for read and ingest", path.display());
            return Err(Failure::Usage(refused));
        }
        if let Some(token) = read {
            options = options.read_token(token);
        }
        if let Some(token) = ingest {
            options = options.ingest_token(token);
        }
        if let Some(token) = delete {
            options = options.delete_token(token);
        }
        Ok(options)
    }

    /// Shows every setting with its value and its origin.
    pub(super) async fn show(&self, format: Format) -> Result<(), Failure> {
        let mut values = self.values.clone();
        if let Some(stored) = self.stored_retention().await {
            for ((key, _), days) in RETENTION.iter().zip([stored.failures_days, stored.attempts_days]) {
                if let (Some((value, origin @ Origin::Default)), Some(days)) = (values.get_mut(*key), days) {
                    (*value, *origin) = (days.into(), Origin::Database);
                }
            }
        }
        let row = |(key, (value, origin)): (&String, &(Value, Origin))| json!({"setting": key, "value": value, "origin": origin.to_string()});
        let rows: Vec<Value> = values.iter().map(row).collect();
        write(format, &Value::from(rows.clone()), &rows, &SETTING)
    }

    /// Returns the retention that the database contains, if it can be read.
    async fn stored_retention(&self) -> Option<StoredRetention> {
        match self.logger.validate() {
            Ok(Location::File(path)) if path.exists() => FailureReader::open(path).retention().await.ok(),
            _ => None,
        }
    }
}

/// The tokens in a file.
#[derive(Default)]
pub(super) struct Tokens {
    pub(super) read: Option<Token>,
    pub(super) ingest: Option<Token>,
    pub(super) delete: Option<Token>,
}

/// Reads a file with tokens. One token by itself reads and brings, and deletes nothing.
pub(super) fn tokens(path: &std::path::Path) -> Result<Tokens, Failure> {
    let refuse = |what: &dyn fmt::Display| Failure::Usage(format!("token_file = {}: {what}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| refuse(&error))?;
    if fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0) {
        tracing::warn!(token_file = %path.display(), "others than its owner may read the tokens; chmod 600 keeps them out");
    }
    let Tokens { mut read, mut ingest, mut delete } = Tokens::default();
    let lines = text.lines().map(str::trim).zip(1..);
    for (line, number) in lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#')) {
        // Neither the line nor a part of it is repeated: it may be a secret.
        let token = |text: &str| text.trim().trim_matches('"').parse::<Token>().map_err(|error| refuse(&error));
        match line.split_once('=').map(|(name, value)| (name.trim(), value)) {
            Some(("read", value)) => read = Some(token(value)?),
            Some(("ingest", value)) => ingest = Some(token(value)?),
            Some(("delete", value)) => delete = Some(token(value)?),
            // At its end only: the padding of base64.
            Some(_) if line.trim_matches('"').trim_end_matches('=').contains('=') => {
                return Err(refuse(&format_args!(
                    "line {number}: expected `read = TOKEN`, `ingest = TOKEN`, `delete = TOKEN`, or a token"
                )));
            }
            _ => {
                let both = token(line)?;
                (read, ingest) = (Some(both.clone()), Some(both));
            }
        }
    }
    if read.is_none() && ingest.is_none() && delete.is_none() {
        return Err(refuse(&"expected a token, or lines `read = TOKEN` and `ingest = TOKEN`"));
    }
    Ok(Tokens { read, ingest, delete })
}

fn defaults() -> BTreeMap<String, (Value, Origin)> {
    let logger = as_map(&LoggerConfig::default().buffer_capacity(DEFAULT_BUFFER_CAPACITY));
    let service = as_map(&ServiceSettings::default());
    let logger = logger.into_iter().map(|(key, value)| match RETENTION.iter().find(|(name, _)| *name == key) {
        Some((_, days)) => (key, Value::from(*days)),
        None => (key, value),
    });
    logger.into_iter().chain(service).map(|(key, value)| (key, (value, Origin::Default))).collect()
}

fn as_map(settings: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// A value that was written as text: a number, true or false, a list with commas, or text.
fn parsed(key: &str, text: &str) -> Value {
    let default = defaults().remove(key).map(|(value, _)| value);
    match default {
        // A list of rules, which may contain commas.
        Some(Value::Array(_)) if key == "redact" => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        Some(Value::Array(_)) => text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect(),
        Some(Value::Number(_) | Value::Bool(_)) => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        _ => text.into(),
    }
}

/// The settings that `values` make; a mistake is named by its key, its value and its origin.
fn read<T: serde::de::DeserializeOwned>(
    map: Map<String, Value>,
    values: &BTreeMap<String, (Value, Origin)>,
) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(map.clone())).map_err(|error| {
        // One by one over the defaults, to find which.
        let defaults = defaults();
        let wrong = map.iter().find(|(key, value)| {
            let alone = map.keys().map(|other| {
                let default = || defaults.get(other).map(|(value, _)| value.clone()).unwrap_or_default();
                (other.clone(), if other == *key { (*value).clone() } else { default() })
            });
            serde_json::from_value::<T>(Value::Object(alone.collect())).is_err()
        });
        Failure::Usage(match wrong {
            Some((key, value)) => {
                let origin = values.get(key).map(|(_, origin)| origin.to_string()).unwrap_or_default();
                format!("{key} = {value} ({origin}): {error}")
            }
            None => error.to_string(),
        })
    })
}

/// What a setting is for, in the order of the sample file.
const DESCRIPTIONS: [(&str, &str); 30] = [
    ("database_url", "The database file."),
    ("listen", "The address to listen on. Any other than a loopback address needs token_file."),
    (
        "token_file",
        "File with the tokens to ask for: `read = TOKEN` and `ingest = TOKEN`, or one token for both. Default: none.",
    ),
    (
        "allow_hosts",
        "Hosts by which the service may be addressed, beside those of the loopback address: fl.example, 10.1.2.3, *.example, *.",
    ),
    ("allow_origins", "Origins whose web pages may ask and report (CORS), as https://dashboard.example."),
    ("log_format", "How the log is written: text or json."),
    ("log_level", "error, warn, info, debug, trace or off, or by module, as warn,failure_logger=debug."),
    ("max_questions_per_second", "Requests that read, from one address in a second. 0: no limit."),
    ("max_posts_per_second", "Requests that bring records, from one address in a second. 0: no limit."),
    ("reject_unknown_fields", "Reject records that have an unknown field, instead of ignoring the field."),
    (
        "redact",
        "Rules: text that is replaced in queries, errors and conversation ids, as [{ pattern = '[\\\\w.]+@[\\\\w.]+', replacement = '[mail]' }].",
    ),
    ("query_text", "What is kept of a query: keep, hash (a keyed hash, by which equal queries stay equal) or drop."),
    ("query_hash_key_file", "File with the key of the hash, at least 16 bytes, readable for its owner only."),
    ("max_connections", "Connections for each worker. They need as many file descriptors."),
    ("workers", "Threads that speak HTTP, 1 to 256. Default: one for each core."),
    ("buffer_capacity", "Records held in memory at most."),
    ("mailbox_capacity", "Records that wait for the actor, part of buffer_capacity. Default: an eighth of it."),
    ("batch_size", "Records that are written at once, without waiting for the timer."),
    ("flush_interval_ms", "Longest time that a record waits before it is written."),
    ("retention_days", "Days after which failures are deleted. 0: never. The service writes this to the database."),
    ("attempts_retention_days", "Days after which counts of attempts are deleted. 0: never."),
    ("cleanup_every", "Flushes between two purges. Each start and each hour purge, too."),
    ("pool_size", "Connections to the database, 1 to 64."),
    ("max_strategies", "Strategies that are counted by themselves, 1 to 1024. The rest are counted together."),
    (
        "max_database_bytes",
        "Bytes of the database at most. If it is larger, its oldest failures are deleted. 0: no bound.",
    ),
    ("shutdown_timeout_ms", "Longest time that a shutdown waits for the database."),
    ("first_backoff_ms", "Pause after a first failure of the database. It doubles with each further one."),
    ("longest_backoff_ms", "Longest such pause."),
    ("migrate", "Create and update the tables at the start."),
    ("enabled", "Record anything at all."),
];

/// A TOML file with every setting, its description and its default, which is commented out.
pub(super) fn sample() -> String {
    let defaults = defaults();
    let mut sample = String::from("# Settings of failure-logger. Read with --config FILE, or FAILURE_LOGGER_CONFIG.\n");
    for (key, about) in DESCRIPTIONS {
        let Some((value, _)) = defaults.get(key) else { continue };
        let value = match value {
            Value::Null => "\"\"".to_owned(),
            value => value.to_string(),
        };
        sample.push_str(&format!("\n# {about}\n#{key} = {value}\n"));
    }
    sample
}

/// Returns `true` for a variable that Kubernetes or Docker writes for a service called `failure-logger`, or with a name
/// that begins so: `SERVICE_HOST`, `PORT=tcp://10.0.0.1:4318`, `PORT_4318_TCP_ADDR`, `ENV_X`, `NAME=/web/failure-logger`.
fn is_of_the_platform(name: &str, value: &str) -> bool {
    let is_word = |word: &str| name == word || name.ends_with(&format!("_{word}"));
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_port = name.split("PORT_").skip(1).any(|rest| {
        let rest = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
        ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| rest.starts_with(protocol))
    });
    is_word("SERVICE_HOST")
        || is_word("SERVICE_PORT")
        || name.contains("SERVICE_PORT_")
        || is_word("PORT") && is_url
        || is_port
        || name.starts_with("ENV_")
        || is_word("NAME") && value.starts_with('/')
}

fn unknown(key: &str, place: &str) -> Failure {
    let known = defaults();
    let like = |other: &String| strsim::jaro_winkler(key, other);
    let nearest =
        known.keys().filter(|other| like(other) > LIKE).max_by(|one, other| like(one).total_cmp(&like(other)));
    // The flag has another name than the setting.
    let nearest = if key == "db" { Some("database_url") } else { nearest.map(String::as_str) };
    let hint = nearest.map_or("; see `failure-logger config`".into(), |nearest| format!("; did you mean {nearest}?"));
    Failure::Usage(format!("{place}: there is no setting {key}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_has_every_setting_with_its_default_and_description() {
        let sample = sample();
        let without_comments: String = sample
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| !line.starts_with(' '))
            .map(|line| format!("{line}\n"))
            .collect();
        let read: Map<String, Value> = toml::from_str(&without_comments).unwrap();
        let defaults = defaults();
        assert_eq!(read.keys().collect::<std::collections::BTreeSet<_>>(), defaults.keys().collect());
        for (key, (default, _)) in &defaults {
            let expected = if default.is_null() { &Value::from("") } else { default };
            assert_eq!(&read[key], expected, "{key}");
            let about = DESCRIPTIONS.iter().find(|(name, _)| name == key).unwrap().1;
            assert!(sample.contains(&format!("# {about}\n#{key} = ")) && about.ends_with('.'), "{key}");
        }
        // As it is, it changes nothing.
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &sample).unwrap();
        let settings = loaded(Flags { file: Some(file.path().into()), ..Flags::default() }, &[]).unwrap();
        assert!(settings.values.values().all(|(_, origin)| *origin == Origin::Default));
    }

    #[test]
    fn variables_of_a_platform_are_left_alone_and_typing_errors_are_not() {
        for (name, value) in [
            ("FAILURE_LOGGER_SERVICE_HOST", "10.0.0.7"),
            ("FAILURE_LOGGER_SERVICE_PORT", "4318"),
            ("FAILURE_LOGGER_SERVICE_PORT_HTTP", "4318"),
            ("FAILURE_LOGGER_PORT", "tcp://10.0.0.7:4318"),
            ("FAILURE_LOGGER_PORT_4318_TCP", "tcp://10.0.0.7:4318"),
            ("FAILURE_LOGGER_PORT_4318_TCP_ADDR", "10.0.0.7"),
            ("FAILURE_LOGGER_PORT_53_UDP_PROTO", "udp"),
            ("FAILURE_LOGGER_NAME", "/web/failure-logger"),
            ("FAILURE_LOGGER_ENV_LANG", "C"),
            // A service called failure-logger-headless.
            ("FAILURE_LOGGER_HEADLESS_SERVICE_HOST", "10.0.0.8"),
            ("FAILURE_LOGGER_HEADLESS_PORT_4318_TCP_PORT", "4318"),
            ("FAILURE_LOGGER_HEADLESS_PORT", "tcp://10.0.0.8:4318"),
        ] {
            assert!(loaded(Flags::default(), &[(name, value)]).is_ok(), "{name}");
        }
        for name in ["FAILURE_LOGGER_LISTN", "FAILURE_LOGGER_PORT", "FAILURE_LOGGER_HOST", "FAILURE_LOGGER_NAME"] {
            assert!(loaded(Flags::default(), &[(name, "4318")]).is_err(), "{name}");
        }
    }

    #[test]
    fn log_level_that_is_none_is_an_error() {
        for level in ["info", "DEBUG", "off", "warn,failure_logger=debug", "failure_logger::http=trace,info"] {
            assert!(loaded(Flags::default(), &[("FAILURE_LOGGER_LOG_LEVEL", level)]).is_ok(), "{level}");
        }
        for level in ["inof", "", "info,", "warning", "failure_logger=loud", "failure_logger", "2"] {
            let said = loaded(Flags::default(), &[("FAILURE_LOGGER_LOG_LEVEL", level)]).err().unwrap();
            assert!(
                said.starts_with(&format!("log_level = \"{level}\" ($FAILURE_LOGGER_LOG_LEVEL): expected error")),
                "{said}"
            );
        }
    }

    fn loaded(flags: Flags, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        said(Settings::from(&flags, variables))
    }

    fn said<T>(result: Result<T, Failure>) -> Result<T, String> {
        result.map_err(|failure| match failure {
            Failure::Usage(text) => text,
            failure => format!("{failure:?}"),
        })
    }

    fn file(text: &str) -> (tempfile::NamedTempFile, Flags) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let flags = Flags { file: Some(file.path().into()), ..Flags::default() };
        (file, flags)
    }

    #[test]
    fn flags_win_over_the_environment_over_the_file_over_defaults() {
        let (_file, mut flags) = file("retention_days = 1\nbatch_size = 2\ncleanup_every = 3\n");
        flags.service.retention_days = Some(30);
        let settings =
            loaded(flags, &[("FAILURE_LOGGER_RETENTION_DAYS", "20"), ("FAILURE_LOGGER_BATCH_SIZE", "20")]).unwrap();
        assert_eq!(
            (settings.logger.retention_days, settings.logger.batch_size, settings.logger.cleanup_every),
            (Some(30), 20, 3)
        );
        assert_eq!(settings.logger.buffer_capacity, DEFAULT_BUFFER_CAPACITY);
        assert_eq!(settings.logger.attempts_retention_days, None, "a default is not written to the database");
        let origins = ["retention_days", "batch_size", "pool_size"].map(|key| settings.values[key].1.to_string());
        assert_eq!(origins, ["command line", "$FAILURE_LOGGER_BATCH_SIZE", "default"]);
        assert_eq!(settings.values["migrate"], (true.into(), Origin::Default));
        let (_file, flags) = file("migrate = false");
        assert!(!loaded(flags, &[]).unwrap().logger.migrate);
        let (_file, flags) = file("migrate = false");
        assert!(loaded(flags, &[("FAILURE_LOGGER_MIGRATE", "true")]).unwrap().logger.migrate);
        assert_eq!(settings.service.listen, DEFAULT_LISTEN);
    }

    #[test]
    fn a_mistake_is_named_by_key_value_and_origin_and_the_nearest_key_is_suggested() {
        let (_file, flags) = file("retention_dais = 1");
        assert!(
            loaded(flags, &[])
                .err()
                .unwrap()
                .ends_with("there is no setting retention_dais; did you mean retention_days?")
        );
        let (_file, flags) = file("retention_days = \"x\"");
        let said = loaded(flags, &[]).err().unwrap();
        assert!(said.starts_with("retention_days = \"x\" (") && said.contains("invalid type"), "{said}");
        let said = loaded(Flags::default(), &[("FAILURE_LOGGER_POOL_SIZE", "many")]).err().unwrap();
        assert!(said.starts_with("pool_size = \"many\" ($FAILURE_LOGGER_POOL_SIZE)"), "{said}");
        let said = loaded(Flags::default(), &[("FAILURE_LOGGER_MIGRATE", "never")]).err().unwrap();
        assert!(said.starts_with("migrate = \"never\" ($FAILURE_LOGGER_MIGRATE)"), "{said}");
        let said = loaded(Flags { others: vec!["pool_size=0".into()], ..Flags::default() }, &[]).err().unwrap();
        assert_eq!(said, "pool_size = 0 (command line): expected 1 to 64 connections");
    }

    #[test]
    fn what_is_refused_is_named_as_it_was_written() {
        for (set, refusal) in [
            ("first_backoff_ms=0", "first_backoff_ms = 0 (command line): expected 1 ms to 1 day"),
            ("longest_backoff_ms=1", "longest_backoff_ms = 1 (command line): expected at least the first backoff"),
            ("flush_interval_ms=0", "flush_interval_ms = 0 (command line): expected 1 ms to 1 day"),
            ("buffer_capacity=8", "batch_size = 256 (default): expected 1 record to the buffer_capacity"),
            ("workers=0", "workers = 0 (command line): expected 1 to 256 threads"),
            ("workers=257", "workers = 257 (command line): expected 1 to 256 threads"),
            ("max_connections=0", "max_connections = 0 (command line): expected at least 1 connection for each worker"),
        ] {
            let flags = Flags { others: vec![set.into()], ..Flags::default() };
            assert_eq!(loaded(flags, &[]).err().unwrap(), refusal);
        }
        let (_file, flags) = file("[server]\nlisten = \"127.0.0.1:1\"");
        let said = loaded(flags, &[]).err().unwrap();
        assert!(said.ends_with("there is no setting server; see `failure-logger config`"), "{said}");
        let flags = Flags { database_url: Some("postgres://u:secret@h/d".into()), ..Flags::default() };
        let said = loaded(flags, &[]).err().unwrap();
        assert!(said.starts_with("database_url = postgres:.. (command line)") && !said.contains("secret"), "{said}");
    }

    #[test]
    fn a_variable_that_is_no_setting_is_refused() {
        for (name, hint) in [
            ("DB", "$FAILURE_LOGGER_DB: there is no setting db; did you mean database_url?"),
            ("BATCHSIZE", "$FAILURE_LOGGER_BATCHSIZE: there is no setting batchsize; did you mean batch_size?"),
            ("Listen", "$FAILURE_LOGGER_Listen: there is no setting listen; did you mean listen?"),
            ("X", "$FAILURE_LOGGER_X: there is no setting x; see `failure-logger config`"),
        ] {
            assert_eq!(loaded(Flags::default(), &[(&format!("{PREFIX}{name}"), "1")]).err().unwrap(), hint);
        }
        assert!(loaded(Flags::default(), &[("FAILURE_LOGGER_CONFIG", "x"), ("OTHER", "1")]).is_ok());
        let no_text = std::os::unix::ffi::OsStringExt::from_vec(vec![0xff]);
        let refusal = said(Settings::from(&Flags::default(), [("FAILURE_LOGGER_DATABASE_URL".into(), no_text)]));
        assert_eq!(refusal.err().unwrap(), "$FAILURE_LOGGER_DATABASE_URL: expected text in UTF-8");
    }

    #[test]
    fn a_misspelt_name_makes_no_token_and_is_not_repeated() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let tokens = |text: &str| {
            fs::write(file.path(), text).unwrap();
            said(tokens(file.path())).map(|tokens| (tokens.read.is_some(), tokens.ingest.is_some()))
        };
        for text in ["raed = 0123456789abcdef", "raed=0123456789abcdef", "\"0123=456789abcdefgh=\""] {
            let refusal = tokens(text).unwrap_err();
            assert!(
                refusal.ends_with("line 1: expected `read = TOKEN`, `ingest = TOKEN`, `delete = TOKEN`, or a token"),
                "{refusal}"
            );
            assert!(!refusal.contains("0123"));
        }
        for text in ["MDEyMzQ1Njc4OWFiY2RlZg==", "\"MDEyMzQ1Njc4OWFiY2RlZg==\""] {
            assert_eq!(tokens(text), Ok((true, true)));
        }
        assert_eq!(tokens("read = MDEyMzQ1Njc4OWFiY2RlZg=="), Ok((true, false)));
    }

    #[test]
    fn other_addresses_than_loopback_need_tokens() {
        let with = |token_file: Option<PathBuf>| {
            let service = ServiceFlags { listen: Some("0.0.0.0:1".parse().unwrap()), token_file, ..Default::default() };
            Flags { service, ..Flags::default() }
        };
        let Err(Failure::Usage(said)) = loaded(with(None), &[]).unwrap().http() else { panic!("must be refused") };
        assert!(said.contains("--token-file"), "{said}");
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, fine) in [
            ("0123456789abcdef0123", true),
            ("# both\nread = 0123456789abcdef\ningest = \"0123456789abcdeg\"", true),
            ("read = 0123456789abcdef", false),
            ("short", false),
            ("", false),
        ] {
            fs::write(file.path(), text).unwrap();
            assert_eq!(loaded(with(Some(file.path().into())), &[]).unwrap().http().is_ok(), fine, "{text}");
        }
    }
}
