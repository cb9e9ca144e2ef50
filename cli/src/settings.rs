//! Settings. Flags take precedence over environment variables, these over the file of `--config`,
//! and that over the defaults.
//!
//! Every setting has one name. The file and `--set` use it as it is, the environment uses it in
//! capitals with the prefix `FAILURE_LOGGER_`. The library deserializes the settings of the logger,
//! and [`ServiceSettings`] those of the service, so that each limit stands beside the code that it
//! protects.
//!
//! The steps of [`Settings::resolve`] are:
//!
//! - [`defaults`] lists all settings. A key outside of that list is an error in every origin,
//!   because a misspelt setting would otherwise have no effect.
//! - Each origin replaces values and leaves its name beside them. `config` prints the name, and an
//!   error about a value quotes it.
//! - The values are deserialized twice, into [`LoggerConfig`] and [`ServiceSettings`]. The keys of
//!   the latter decide which value belongs to which.
//! - Rules for redaction, the database and the ranges are checked last, because they need whole
//!   values.
//!
//! The file of `--config` and the token file are read once more on SIGHUP. The environment of a
//! process cannot change from outside, so that variables keep their values until a restart.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use failure_logger::config::{DEFAULT_ATTEMPTS_RETENTION_DAYS, DEFAULT_RETENTION_DAYS};
use failure_logger::error::ConfigError;
use failure_logger::http::{
    AccessLog, DEFAULT_MAX_POSTS_PER_SECOND, DEFAULT_MAX_READS_PER_SECOND, Host, HttpOptions,
    Scope, Token, TraceRule,
};
use failure_logger::program::{self, DatabaseLocation, NamedToken};
use failure_logger::{FailureReader, LoggerConfig};

use super::CommandError;
use super::listen::{Listen, one_or_many};
use super::output::{CellKind, Column, Format, column, write};
use super::redact::{QueryText, Redaction, Rule};

/// Default address. It is a loopback address, because the service needs no token there. The port is
/// that of OTLP over HTTP.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 4318));
/// Default of the program, larger than that of the library because a service has more callers. With
/// 8 KB, the most that a record has, a full buffer takes some 500 MB.
const DEFAULT_BUFFER_CAPACITY: usize = 65_536;

/// Maximum number of connections per worker, if there are enough file descriptors. The value is
/// meant as an upper bound, so that a lower limit of file descriptors is not worth a warning. See
/// [`super::descriptors`].
pub(super) const DEFAULT_MAX_CONNECTIONS: usize = 20_000;

/// Maximum number of HTTP worker threads. Each worker has an event loop of its own. More of them
/// than cores only add switches between threads, and a typing error such as 4000 must not start
/// that many.
const MAX_WORKERS: usize = 256;
/// Prefix of environment variables. Kubernetes and Docker set variables with the same prefix: see
/// [`is_set_by_orchestrator`].
const PREFIX: &str = "FAILURE_LOGGER_";
/// Minimum similarity, 0 to 1, at which a setting is suggested for an unknown key. Jaro-Winkler
/// weighs the first letters most, as typing errors seldom are in them. Below this value the
/// suggestions are unrelated words.
const MIN_SIMILARITY: f64 = 0.75;

/// Flags of every command. Each corresponds to a setting.
#[derive(Args, Default)]
#[command(next_help_heading = "Settings")]
pub(super) struct Flags {
    /// Database file, or postgres://USER@HOST/DATABASE (setting database_url)
    #[arg(long = "db", global = true, value_name = "PATH|URL")]
    database_url: Option<String>,
    #[command(flatten)]
    service: ServiceFlags,
    /// Any setting, such as flush_interval_ms=250; repeatable; listed by `config`
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    assignments: Vec<String>,
    /// TOML file with settings
    #[arg(
        long = "config",
        global = true,
        env = "FAILURE_LOGGER_CONFIG",
        value_name = "FILE"
    )]
    file: Option<PathBuf>,
}

/// Flags of `serve`, which are also accepted before or without a command. Each corresponds to a
/// setting.
#[derive(Args, Default, Clone)]
#[command(next_help_heading = "Settings")]
pub(super) struct ServiceFlags {
    /// Address to listen on, or unix:PATH; repeatable. An address that is not loopback needs
    /// --token-file
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<Listen>,
    /// File with the tokens that clients need: lines `NAME SCOPE[,SCOPE] = TOKEN`, or one token
    /// with every scope but erase
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Additional host name that requests may address, such as fl.example, 10.1.2.3, *.example or
    /// *; repeatable
    #[arg(long = "allow-host", value_name = "HOST")]
    allow_hosts: Vec<String>,
    /// Format of the service's own log
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Retention of failures in days; 0 keeps all. The service persists the value in the database
    #[arg(long, value_name = "DAYS")]
    retention_days: Option<u32>,
}

impl Flags {
    /// Merges the flags after `serve` into those before it. Lists are joined; single values after
    /// `serve` take precedence.
    pub(super) fn with(mut self, after: &ServiceFlags) -> Self {
        let before = &mut self.service;
        // `failure-logger --listen A serve --listen B` listens on both. A list with replaced items
        // would depend on the place of a flag, which is surprising.
        before.listen.extend(after.listen.iter().cloned());
        before.token_file = after.token_file.clone().or(before.token_file.take());
        before.allow_hosts.extend(after.allow_hosts.iter().cloned());
        before.log_format = after.log_format.or(before.log_format);
        before.retention_days = after.retention_days.or(before.retention_days);
        self
    }
}

/// Format of the service's own log on standard error. It also selects the format of the line that
/// names the address on standard output, so that one parser reads both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogFormat {
    /// Plain lines
    Text,
    /// One JSON object per line
    Json,
}

/// Settings of the service, in addition to those of the logger.
///
/// The names of the fields are the names of the settings. Each is also a key of [`DESCRIPTIONS`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceSettings {
    /// Addresses to listen on, at least one. One address may stand without a list. Sockets that
    /// systemd passes replace them all.
    #[serde(deserialize_with = "one_or_many")]
    pub(super) listen: Vec<Listen>,
    /// File with the tokens. `None` lets every client read and write, and is only allowed on
    /// addresses that other machines cannot reach.
    pub(super) token_file: Option<PathBuf>,
    /// Names that the `Host` header of a request may have, beside those of the loopback address and
    /// the bound addresses. The list prevents DNS rebinding.
    pub(super) allow_hosts: Vec<String>,
    /// Origins of web pages that may send requests. The dashboard needs none, because the service
    /// serves it.
    pub(super) allow_origins: Vec<String>,
    /// Default: text.
    pub(super) log_format: LogFormat,
    /// Filter of the log in the syntax of `tracing`. SIGHUP can change it, so that a running
    /// service can be debugged.
    pub(super) log_level: String,
    /// Default: requests that fail, or take at least a second.
    pub(super) access_log: AccessLog,
    /// Maximum number of connections of each worker. All workers together can have `workers` times
    /// as many.
    pub(super) max_connections: usize,
    /// Rate limit of reads for each client. 0 is no limit.
    pub(super) max_reads_per_second: u32,
    /// Rate limit of requests with records for each client. 0, the default, is no limit: a full
    /// buffer slows senders down by itself.
    pub(super) max_posts_per_second: u32,
    /// `true` rejects records with unknown fields. By default they are ignored, so that a newer
    /// sender can use an older service.
    pub(super) reject_unknown_fields: bool,
    /// Rules for the retrievals of traces: what their spans do not say.
    pub(super) trace_rules: Vec<TraceRule>,
    /// Rules that replace text before a record enters the buffer, in the order in which they apply.
    pub(super) redact: Vec<Rule>,
    /// Treatment of the query after the rules.
    pub(super) query_text: QueryText,
    /// Required for `query_text = hash`. The key stays in a file, because settings are printed.
    pub(super) query_hash_key_file: Option<PathBuf>,
    /// Proxies whose forwarding header names the client. Any other sender could claim an address of
    /// its choice, and so evade the rate limit.
    pub(super) trusted_proxies: Vec<String>,
    /// Drain time. `None` selects the default for the addresses of the service. In milliseconds, at
    /// most 10 minutes.
    pub(super) drain_ms: Option<u64>,
    /// Number of HTTP worker threads. Default: one per core, or 2 if the number of cores is
    /// unknown.
    pub(super) workers: usize,
}

/// Default drain time of a service that is not on loopback only. Load balancers poll `/readyz`
/// every few seconds, and stop sending requests within that time.
const DEFAULT_DRAIN: Duration = Duration::from_secs(5);
/// Maximum drain time. In milliseconds. Service managers kill a process that takes longer to stop,
/// and so would cut off the flush that follows the drain.
const MAX_DRAIN_MS: u64 = 10 * 60 * 1000;

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            listen: vec![Listen::Tcp(DEFAULT_LISTEN)],
            token_file: None,
            allow_hosts: Vec::new(),
            allow_origins: Vec::new(),
            log_format: LogFormat::Text,
            log_level: "info".into(),
            access_log: AccessLog::default(),
            max_connections: DEFAULT_MAX_CONNECTIONS,
            max_reads_per_second: DEFAULT_MAX_READS_PER_SECOND,
            max_posts_per_second: DEFAULT_MAX_POSTS_PER_SECOND,
            reject_unknown_fields: false,
            trace_rules: Vec::new(),
            redact: Vec::new(),
            query_text: QueryText::Keep,
            query_hash_key_file: None,
            trusted_proxies: Vec::new(),
            drain_ms: None,
            workers: std::thread::available_parallelism()
                .map_or(2, usize::from)
                .min(MAX_WORKERS),
        }
    }
}

impl ServiceSettings {
    /// Checks the ranges that no type expresses. The lists of hosts, proxies and origins are parsed
    /// by [`Settings::http_on`] instead, because their errors name the item.
    fn validate(&self) -> Result<(), ConfigError> {
        let out_of_range = |setting, value: usize, expected| {
            Err(program::refused(setting, value.to_string(), expected))
        };
        if !(1..=MAX_WORKERS).contains(&self.workers) {
            return out_of_range("workers", self.workers, "1 to 256 threads");
        }
        if !is_log_level(&self.log_level) {
            let expected = "error, warn, info, debug, trace or off, or a list such as \
                info,failure_logger=debug";
            return Err(program::refused(
                "log_level",
                self.log_level.clone(),
                expected,
            ));
        }
        if self.listen.is_empty() {
            let expected = "at least one address, such as 127.0.0.1:4318";
            return Err(program::refused("listen", "[]".into(), expected));
        }
        if let Some(drain) = self.drain_ms.filter(|drain| *drain > MAX_DRAIN_MS) {
            return Err(program::refused(
                "drain_ms",
                drain.to_string(),
                "10 minutes at most",
            ));
        }
        if self.max_connections == 0 {
            return out_of_range("max_connections", 0, "at least 1 connection per worker");
        }
        Ok(())
    }
}

/// Returns `true` if each part of `text` names a level. The filter would read a misspelt level as a
/// module name and disable all other modules.
fn is_log_level(text: &str) -> bool {
    // A directive is a level, or `MODULE=LEVEL`.
    let level = |text: &str| LEVELS.contains(&text.trim().to_ascii_lowercase().as_str());
    text.split(',')
        .all(|part| level(part.rsplit_once('=').map_or(part, |(_, level)| level)))
        && tracing_subscriber::EnvFilter::try_new(text).is_ok()
}

/// Levels of `tracing`, with the word that disables a module.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Settings that default to the value in the database, with the initial value of a new database.
///
/// A logger without these settings takes the values in the database, and changes none of them. A
/// command such as `ingest` could otherwise set the retention of a service back to the default.
const RETENTION: [(&str, u32); 2] = [
    ("retention_days", DEFAULT_RETENTION_DAYS),
    ("attempts_retention_days", DEFAULT_ATTEMPTS_RETENTION_DAYS),
];

/// Columns of `config`.
const SETTING: [Column; 3] = [
    column("setting", "/setting", CellKind::Text),
    column("value", "/value", CellKind::Text),
    column("origin", "/origin", CellKind::Text),
];

/// Place from which a setting has its value, as `config` prints it and errors quote it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SettingOrigin {
    Default,
    /// Retention that a logger persisted in the database.
    Database,
    /// File of `--config`.
    File(PathBuf),
    /// Variable with this name, including the prefix.
    Environment(String),
    /// A flag of its own, or `--set`.
    Flag,
}

impl fmt::Display for SettingOrigin {
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

/// Effective settings: those of the logger and of the service, and each single value with its
/// origin.
pub(super) struct Settings {
    /// All settings by name. The order of a `BTreeMap` is that of `config`.
    values: BTreeMap<String, (Value, SettingOrigin)>,
    pub(super) logger: LoggerConfig,
    pub(super) service: ServiceSettings,
}

impl Settings {
    /// Reads the settings from all origins.
    pub(super) fn load(flags: &Flags) -> Result<Self, CommandError> {
        Self::resolve(flags, std::env::vars_os())
    }

    /// Merges the origins, lowest precedence first. `variables` is a parameter, because tests run
    /// in parallel and share the environment of their process.
    ///
    /// # Errors
    ///
    /// Any unknown key, and any value that does not parse or is out of range. A service never
    /// starts with a part of its settings, because an ignored redaction or token file would expose
    /// data.
    fn resolve(
        flags: &Flags,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, CommandError> {
        let mut values = defaults();
        if let Some(path) = &flags.file {
            let text = fs::read_to_string(path).map_err(|error| {
                CommandError::Usage(format!("--config {}: {error}", path.display()))
            })?;
            let invalid = |message: &dyn fmt::Display| {
                CommandError::Usage(format!("{}: {message}", path.display()))
            };
            let file: toml::Table =
                toml::from_str(&text).map_err(|error| invalid(&error.message()))?;
            for (key, value) in file {
                // JSON would turn such a number into null, which is the default.
                if let Some(number) = non_finite(&value) {
                    return Err(invalid(&format_args!(
                        "{key} has the number {number}: expected a finite number"
                    )));
                }
                let value = value.try_into().map_err(|error| invalid(&error))?;
                let known = values
                    .get_mut(&key)
                    .ok_or_else(|| unknown(&key, &path.display().to_string()))?;
                *known = (value, SettingOrigin::File(path.clone()));
            }
        }
        // Variables come next, and then the flags. A later call replaces the value and its origin.
        let mut set =
            |key: &str, value: Value, origin| values.insert(key.to_owned(), (value, origin));
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            // `FAILURE_LOGGER_CONFIG` is the variable of the flag `--config`, not a setting.
            let Some(suffix) = name
                .strip_prefix(PREFIX)
                .filter(|suffix| *suffix != "CONFIG")
            else {
                continue;
            };
            if is_set_by_orchestrator(suffix, &value.to_string_lossy()) {
                continue;
            }
            let key = suffix.to_ascii_lowercase();
            if !defaults().contains_key(&key) || key.to_ascii_uppercase() != suffix {
                return Err(unknown(&key, &format!("${name}")));
            }
            // The message omits the value, which cannot be printed.
            let text = value
                .to_str()
                .ok_or_else(|| CommandError::Usage(format!("${name}: expected text in UTF-8")))?;
            set(
                &key,
                parsed(&key, text.trim()),
                SettingOrigin::Environment(name),
            );
        }
        let service = &flags.service;
        let values_of_flags = [
            ("database_url", flags.database_url.clone().map(Value::from)),
            (
                "listen",
                (!service.listen.is_empty())
                    .then(|| service.listen.iter().map(Listen::to_string).collect()),
            ),
            (
                "token_file",
                service
                    .token_file
                    .as_ref()
                    .map(|path| path.to_string_lossy().into()),
            ),
            (
                "allow_hosts",
                (!service.allow_hosts.is_empty()).then(|| service.allow_hosts.clone().into()),
            ),
            (
                "log_format",
                service
                    .log_format
                    .and_then(|format| serde_json::to_value(format).ok()),
            ),
            ("retention_days", service.retention_days.map(Value::from)),
        ];
        for (key, value) in values_of_flags {
            if let Some(value) = value {
                set(key, value, SettingOrigin::Flag);
            }
        }
        // `--set` comes last, and so takes precedence over a flag for the same setting.
        for assignment in &flags.assignments {
            let (key, value) = assignment.split_once('=').ok_or_else(|| {
                CommandError::Usage(format!("--set {assignment}: expected KEY=VALUE"))
            })?;
            if !defaults().contains_key(key) {
                return Err(unknown(key, "--set"));
            }
            set(key, parsed(key, value), SettingOrigin::Flag);
        }
        // A setting belongs to the service if its defaults have the key, and otherwise to the
        // logger.
        let service_keys = as_map(&ServiceSettings::default());
        // A default retention is left out, so that the logger reads it from the database.
        let is_read_from_database = |key: &str, origin: &SettingOrigin| {
            *origin == SettingOrigin::Default && RETENTION.iter().any(|(name, _)| *name == key)
        };
        let (service, logger): (Map<_, _>, Map<_, _>) = values
            .iter()
            .filter(|(key, (_, origin))| !is_read_from_database(key, origin))
            .map(|(key, (value, _))| (key.clone(), value.clone()))
            .partition(|(key, _)| service_keys.contains_key(key));
        let mut settings = Self {
            logger: deserialize(logger, &values)?,
            service: deserialize(service, &values)?,
            values,
        };
        let ServiceSettings {
            redact,
            query_text,
            query_hash_key_file,
            ..
        } = &settings.service;
        let redaction = Redaction::new(redact, *query_text, query_hash_key_file.as_deref())?;
        if !redaction.is_empty() {
            settings.logger = settings
                .logger
                .redactor(move |record| redaction.apply(record));
        }
        // The library checks its settings in `database_location`. The path itself is not needed here,
        // and no file is opened or created.
        program::database_location(&settings.logger)
            .map_err(|error| settings.setting_error(&error))?;
        settings
            .service
            .validate()
            .map_err(|error| settings.setting_error(&error))?;
        Ok(settings)
    }

    /// Converts an invalid setting to an error that quotes the value as written and names its
    /// origin.
    ///
    /// The library knows neither the key of a duration in milliseconds nor the origin of a value.
    fn setting_error(&self, error: &ConfigError) -> CommandError {
        let name = error.setting.replace(' ', "_");
        // The library names a duration without its unit, and a setting has it in its name.
        let found = [name.clone(), format!("{name}_ms")]
            .into_iter()
            .find_map(|key| self.values.get_key_value(&key));
        CommandError::Usage(match found {
            // The URL may hold a password: the message has the value that the library abbreviates.
            Some((key, (_, origin))) if key == "database_url" => {
                format!(
                    "{key} = {} ({origin}): expected {}",
                    error.value, error.expected
                )
            }
            Some((key, (value, origin))) => {
                format!("{key} = {value} ({origin}): expected {}", error.expected)
            }
            None => error.to_string(),
        })
    }

    /// Returns the drain time: the time between SIGTERM and the closing of the listeners.
    ///
    /// The default is zero if only this machine can reach the service. A load balancer elsewhere
    /// needs the time to notice that `/readyz` responds 503.
    pub(super) fn drain(&self, listen: &[Listen]) -> Duration {
        let default = if listen.iter().all(is_local) {
            Duration::ZERO
        } else {
            DEFAULT_DRAIN
        };
        self.service.drain_ms.map_or(default, Duration::from_millis)
    }

    /// Returns the options of the HTTP routes for a service that is bound to `listen`. The bound
    /// addresses count, not the setting: systemd may pass other sockets.
    ///
    /// SIGHUP calls this function, too. It therefore has no effects besides a warning, and the
    /// caller decides whether to use the result.
    ///
    /// # Errors
    ///
    /// A value that does not parse, or a set of addresses and tokens that would open the log to the
    /// network:
    ///
    /// - an address that is not local, without a token file;
    /// - an address that is not local, with tokens that lack `read` or `ingest`, because a scope
    ///   without tokens is open to all clients.
    pub(super) fn http_on(&self, listen: &[Listen]) -> Result<HttpOptions, CommandError> {
        let mut options = program::alone(HttpOptions::default())
            .access_log(self.service.access_log)
            .max_reads_per_second(self.service.max_reads_per_second)
            .max_posts_per_second(self.service.max_posts_per_second)
            .reject_unknown_fields(self.service.reject_unknown_fields);
        for listen in listen {
            // A wildcard address such as 0.0.0.0 says nothing about the names of the machine, so
            // that `allow_hosts` has to list them.
            if let Listen::Tcp(listen) = listen
                && !listen.ip().is_unspecified()
            {
                let address = listen
                    .ip()
                    .to_string()
                    .parse::<Host>()
                    .map_err(|error| CommandError::Usage(error.into()))?;
                options = options.allow_host(address);
            }
        }
        for rule in &self.service.trace_rules {
            let invalid = |error| CommandError::Usage(format!("trace_rules: {error}"));
            options = options.trace_rule(rule.clone()).map_err(invalid)?;
        }
        for proxy in &self.service.trusted_proxies {
            let invalid =
                |expected| CommandError::Usage(format!("trusted_proxies = {proxy}: {expected}"));
            options = options.trust_proxy(proxy.parse().map_err(invalid)?);
        }
        for host in &self.service.allow_hosts {
            let invalid =
                |expected| CommandError::Usage(format!("allow_hosts = {host}: {expected}"));
            options = options.allow_host(host.parse().map_err(invalid)?);
        }
        for origin in &self.service.allow_origins {
            let invalid =
                |expected| CommandError::Usage(format!("allow_origins = {origin}: {expected}"));
            options = options.allow_origin(origin.parse().map_err(invalid)?);
        }
        let Some(path) = &self.service.token_file else {
            if let Some(listen) = listen.iter().find(|listen| !is_local(listen)) {
                let message = format!(
                    "listen = {listen}: any client that reaches this address could read the log; \
                     set --token-file or listen on 127.0.0.1"
                );
                return Err(CommandError::Usage(message));
            }
            return Ok(options);
        };
        let tokens = tokens(path)?;
        let has = |scope| tokens.iter().any(|named| named.scopes.contains(&scope));
        let has_both = has(Scope::Read) && has(Scope::Ingest);
        if !has_both && !listen.iter().all(is_local) {
            let message = format!(
                "token_file = {}: expected tokens with the scopes read and ingest",
                path.display()
            );
            return Err(CommandError::Usage(message));
        }
        // A token applies to all addresses, including the local ones.
        let add = |options: HttpOptions,
                   NamedToken {
                       name,
                       token,
                       scopes,
                   }| options.token(name, token, scopes);
        Ok(tokens.into_iter().fold(options, add))
    }

    /// Prints every setting with its value and its origin.
    ///
    /// `config` is for people who look for the cause of a behaviour. It shows the retention that is
    /// in force in the database, although a logger has not started. Secrets stay in files that the
    /// settings only name.
    pub(super) async fn show(&self, format: Format) -> Result<(), CommandError> {
        let mut values = self.values.clone();
        if let Some((Value::String(url), _)) = values.get_mut("database_url") {
            *url = program::without_password(url);
        }
        // A value from a file, a variable or a flag stays: a logger that starts would persist it.
        if let Some(stored) = self.stored_retention().await {
            for ((key, _), days) in RETENTION.iter().zip(stored) {
                if let (Some((value, origin @ SettingOrigin::Default)), Some(days)) =
                    (values.get_mut(*key), days)
                {
                    (*value, *origin) = (days.into(), SettingOrigin::Database);
                }
            }
        }
        let row = |(key, (value, origin)): (&String, &(Value, SettingOrigin))| json!({"setting": key, "value": value, "origin": origin.to_string()});
        let rows: Vec<Value> = values.iter().map(row).collect();
        write(format, &Value::from(rows.clone()), &rows, &SETTING)
    }

    /// Reads the persisted retention of failures and of counts of attempts. Returns `None` if the
    /// database cannot be read.
    ///
    /// The errors are ignored, since `config` has to work beside a damaged database.
    async fn stored_retention(&self) -> Option<[Option<u32>; 2]> {
        let reader = match program::database_location(&self.logger).ok()? {
            DatabaseLocation::File(path) => path.exists().then(|| FailureReader::open(path))?,
            DatabaseLocation::Server(_) => program::reader(&self.logger).ok()?,
            DatabaseLocation::Memory => return None,
        };
        program::stored_retention(&reader).await.ok()
    }
}

/// Returns `true` if only processes of this machine can reach the address.
fn is_local(listen: &Listen) -> bool {
    match listen {
        Listen::Tcp(address) => address.ip().is_loopback(),
        // The service creates the socket file with mode 0600.
        Listen::Unix(_) => true,
    }
}

/// Reads a token file: lines `NAME SCOPE[,SCOPE..] = TOKEN` or `SCOPE = TOKEN`. A line with a token
/// only grants every scope but `erase`.
///
/// Empty lines and lines that begin with `#` are skipped. A line without a name is named after its
/// scope or its number.
///
/// Other users that can read the file cause a warning and no error: containers mount secrets with a
/// mode that the operator may be unable to change.
pub(super) fn tokens(path: &std::path::Path) -> Result<Vec<NamedToken>, CommandError> {
    let invalid = |cause: &dyn fmt::Display| {
        CommandError::Usage(format!("token_file = {}: {cause}", path.display()))
    };
    let text = fs::read_to_string(path).map_err(|error| invalid(&error))?;
    if fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0) {
        tracing::warn!(token_file = %path.display(), "other users can read the tokens; restrict the \
            file with chmod 600");
    }
    let mut tokens = Vec::new();
    let lines = text.lines().map(str::trim).zip(1..);
    for (line, number) in lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#')) {
        // Messages quote no part of the line, because it may be a secret.
        let token = |text: &str| {
            text.trim()
                .trim_matches('"')
                .parse::<Token>()
                .map_err(|error| invalid(&error))
        };
        let head = line
            .split_once('=')
            .and_then(|(head, value)| Some((name_and_scopes(head)?, value)));
        let (name, scopes, token) = match head {
            Some(((name, scopes), value)) => (name, scopes, token(value)?),
            // A token may end with `=`, the padding of base64, but not contain it elsewhere.
            None if line.trim_matches('"').trim_end_matches('=').contains('=') => {
                return Err(invalid(&format_args!(
                    "line {number}: expected `NAME SCOPE = TOKEN`, such as `grafana read,metrics = TOKEN`, `SCOPE = TOKEN` with \
                     read, ingest, triage, metrics or erase, or a token"
                )));
            }
            None => {
                let scopes = Scope::ALL
                    .into_iter()
                    .filter(|scope| *scope != Scope::Erase)
                    .collect();
                (format!("line {number}"), scopes, token(line)?)
            }
        };
        tokens.push(NamedToken {
            name,
            token,
            scopes,
        });
    }
    if tokens.is_empty() {
        return Err(invalid(&"expected a token, or lines `NAME SCOPE = TOKEN`"));
    }
    Ok(tokens)
}

/// Parses the part of a line before `=`. `read` without a name also grants `triage` and `metrics`.
///
/// The short form `read = TOKEN` is for people and dashboards, which also set statuses and read
/// `/metrics`. A line with a name lists its scopes exactly. `None` means that the text has neither
/// form.
fn name_and_scopes(head: &str) -> Option<(String, Vec<Scope>)> {
    let mut words = head.split_whitespace();
    let (first, second) = (words.next()?, words.next());
    if words.next().is_some() {
        return None;
    }
    match second {
        None if first == "read" => Some((
            first.into(),
            vec![Scope::Read, Scope::Triage, Scope::Metrics],
        )),
        None => Some((first.into(), vec![first.parse().ok()?])),
        Some(scopes) => Some((
            first.into(),
            scopes
                .split(',')
                .map(|scope| scope.parse().ok())
                .collect::<Option<_>>()?,
        )),
    }
}

/// Returns every setting with its default.
///
/// Settings without a default are `null`. The retention has the value that a new database gets, so
/// that `config --sample` shows a number.
fn defaults() -> BTreeMap<String, (Value, SettingOrigin)> {
    let logger = as_map(&LoggerConfig::default().buffer_capacity(DEFAULT_BUFFER_CAPACITY));
    let service = as_map(&ServiceSettings::default());
    let logger = logger.into_iter().map(|(key, value)| {
        match RETENTION.iter().find(|(name, _)| *name == key) {
            Some((_, days)) => (key, Value::from(*days)),
            None => (key, value),
        }
    });
    logger
        .into_iter()
        .chain(service)
        .map(|(key, value)| (key, (value, SettingOrigin::Default)))
        .collect()
}

/// Returns a number of `value` that is NaN or infinite, if there is one.
fn non_finite(value: &toml::Value) -> Option<f64> {
    match value {
        toml::Value::Float(number) => Some(*number).filter(|number| !number.is_finite()),
        toml::Value::Array(items) => items.iter().find_map(non_finite),
        toml::Value::Table(fields) => fields.values().find_map(non_finite),
        toml::Value::String(_)
        | toml::Value::Integer(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_) => None,
    }
}

/// Returns the fields of a struct by name. The map of a value that is no struct is empty.
fn as_map(settings: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Parses a value of a flag or a variable by the type of the setting's default. Items of a list are
/// separated by commas. Returns text that does not parse unchanged; deserialization rejects it.
///
/// Variables and flags have text only. The type of the default distinguishes a number from a text
/// of digits, such as a path named `1`.
fn parsed(key: &str, text: &str) -> Value {
    let default = defaults().remove(key).map(|(value, _)| value);
    match default {
        // Rules may contain commas, so the list is JSON.
        Some(Value::Array(_)) if matches!(key, "redact" | "trace_rules") => {
            serde_json::from_str(text).unwrap_or_else(|_| text.into())
        }
        Some(Value::Array(_)) => text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .collect(),
        Some(Value::Number(_) | Value::Bool(_)) => {
            serde_json::from_str(text).unwrap_or_else(|_| text.into())
        }
        // The default is null, which does not show that this is a number.
        _ if key == "drain_ms" => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        _ => text.into(),
    }
}

/// Deserializes settings. The error names the key, the value and the origin of an invalid setting.
///
/// The search for the key runs after a failure only, and takes one deserialization for each
/// setting.
fn deserialize<T: serde::de::DeserializeOwned>(
    map: Map<String, Value>,
    values: &BTreeMap<String, (Value, SettingOrigin)>,
) -> Result<T, CommandError> {
    serde_json::from_value(Value::Object(map.clone())).map_err(|error| {
        // serde does not name the key. Each setting is tried alone among defaults to find it.
        let defaults = defaults();
        let invalid = map.iter().find(|(key, value)| {
            let alone = map.keys().map(|other| {
                // The defaults are valid together, so that only the tried setting can fail.
                let default = || {
                    defaults
                        .get(other)
                        .map(|(value, _)| value.clone())
                        .unwrap_or_default()
                };
                (
                    other.clone(),
                    if other == *key {
                        (*value).clone()
                    } else {
                        default()
                    },
                )
            });
            serde_json::from_value::<T>(Value::Object(alone.collect())).is_err()
        });
        CommandError::Usage(match invalid {
            Some((key, value)) => {
                let origin = values
                    .get(key)
                    .map(|(_, origin)| origin.to_string())
                    .unwrap_or_default();
                format!("{key} = {value} ({origin}): {error}")
            }
            None => error.to_string(),
        })
    })
}

/// Descriptions of all settings, in the order of the sample file.
///
/// The sample file is the reference for operators, so that each text has the unit, the special
/// values and a default that the value does not show. A test compares the keys with [`defaults`].
const DESCRIPTIONS: [(&str, &str); 38] = [
    (
        "database_url",
        "Database file, or postgres://USER@HOST:PORT/DATABASE in a program with PostgreSQL. libpq \
         reads a password from ~/.pgpass or $PGPASSWORD, too.",
    ),
    (
        "listen",
        "Addresses to listen on, or unix:PATH. An address that is not loopback needs token_file.",
    ),
    (
        "token_file",
        "File with the tokens that clients need: lines `NAME SCOPE,SCOPE = TOKEN` with the scopes \
         read, ingest, triage, metrics and erase, or one token. Default: none.",
    ),
    (
        "trusted_proxies",
        "Proxies whose Forwarded or X-Forwarded-For header is trusted: addresses, networks, unix.",
    ),
    (
        "allow_hosts",
        "Host names that requests may address, in addition to those of the loopback address: \
         fl.example, 10.1.2.3, *.example, *.",
    ),
    (
        "allow_origins",
        "Origins of web pages that may send requests (CORS), such as https://dashboard.example.",
    ),
    (
        "log_format",
        "Format of the service's own log: text or json.",
    ),
    (
        "log_level",
        "Level of the service's own log: error, warn, info, debug, trace or off, also by module, such \
         as warn,failure_logger=debug.",
    ),
    (
        "access_log",
        "Requests that are logged: failed (those that fail or take at least a second), all or off.",
    ),
    (
        "max_reads_per_second",
        "Maximum number of reads per second and client. 0: no limit.",
    ),
    (
        "max_posts_per_second",
        "Maximum number of requests with records per second and client. 0: no limit.",
    ),
    (
        "reject_unknown_fields",
        "Reject records with an unknown field, instead of ignoring the field.",
    ),
    (
        "trace_rules",
        "Rules for the retrievals of traces, such as [{ source = 'shop*', strategy = \
         'VectorStoreRetriever', name = 'semantic', confidence_threshold = 0.35 }]. \
         docs/opentelemetry.md lists the fields.",
    ),
    (
        "redact",
        "Rules that replace text in queries, errors and conversation ids, such as [{ pattern = \
         '[\\\\w.]+@[\\\\w.]+', replacement = '[mail]' }].",
    ),
    (
        "query_text",
        "Treatment of query texts: keep, hash (a keyed hash, equal for equal queries) or drop.",
    ),
    (
        "query_hash_key_file",
        "File with the key of the hash: at least 16 bytes, readable by its owner only.",
    ),
    (
        "max_connections",
        "Maximum number of connections per worker. The limit of file descriptors can lower it.",
    ),
    (
        "drain_ms",
        "Time between SIGTERM and the closing of the listeners, in which /readyz responds 503. \
         Default: 0 on loopback addresses, otherwise 5000.",
    ),
    (
        "workers",
        "Number of HTTP worker threads, 1 to 256. Default: one per core.",
    ),
    ("buffer_capacity", "Maximum number of records in memory."),
    (
        "mailbox_capacity",
        "Capacity of the actor's mailbox, part of buffer_capacity. Default: an eighth of it.",
    ),
    (
        "batch_size",
        "Number of buffered records that starts a flush before the timer.",
    ),
    (
        "flush_interval_ms",
        "Longest time that a buffered record waits for a flush.",
    ),
    (
        "retention_days",
        "Retention of failures in days. 0: unlimited. The service persists it in the database.",
    ),
    (
        "attempts_retention_days",
        "Retention of counts of attempts in days. 0: unlimited.",
    ),
    (
        "cleanup_every",
        "Number of flushes between two purges. A purge also runs at each start and each hour.",
    ),
    (
        "pool_size",
        "Number of connections to the database, 1 to 64.",
    ),
    (
        "connect_timeout_ms",
        "Longest time of a connect to PostgreSQL, unless database_url has a connect_timeout.",
    ),
    (
        "statement_timeout_ms",
        "Longest time of a statement that writes to PostgreSQL, or changes its schema.",
    ),
    (
        "application_name",
        "Name under which PostgreSQL lists the connections. Default: failure-logger.",
    ),
    (
        "prepared_statements",
        "Keep statements prepared in PostgreSQL. false: for a pooler in transaction mode.",
    ),
    (
        "max_strategies",
        "Number of strategies with counts of their own, 1 to 1024. Further ones share one count.",
    ),
    (
        "max_database_bytes",
        "Maximum size of the database in bytes. Above it, the oldest failures are purged. 0: no \
         limit.",
    ),
    (
        "shutdown_timeout_ms",
        "Timeout of a shutdown that waits for the database.",
    ),
    (
        "first_backoff_ms",
        "Pause before the first retry after an error of the database. It doubles with each retry.",
    ),
    ("longest_backoff_ms", "Longest pause between two retries."),
    ("migrate", "Create and migrate the tables at the start."),
    ("enabled", "Record failures. `false` disables the logger."),
];

/// Returns a TOML file that describes every setting, with the defaults commented out.
///
/// The lines are commented out, so that the file of an older version does not pin its defaults.
pub(super) fn sample() -> String {
    let defaults = defaults();
    let mut sample = String::from(
        "# Settings of failure-logger. Read with --config FILE, or FAILURE_LOGGER_CONFIG.\n",
    );
    for (key, about) in DESCRIPTIONS {
        let Some((value, _)) = defaults.get(key) else {
            continue;
        };
        let value = match value {
            Value::Null => "\"\"".to_owned(),
            value => value.to_string(),
        };
        sample.push_str(&format!("\n# {about}\n#{key} = {value}\n"));
    }
    sample
}

/// Returns `true` if Kubernetes or Docker sets the variable for a service whose name starts with
/// `failure-logger`. `name` has no prefix. Examples: `SERVICE_HOST`, `PORT=tcp://10.0.0.1:4318`,
/// `PORT_4318_TCP_ADDR`, `ENV_X`, `NAME=/web/failure-logger`.
///
/// Kubernetes adds such variables for each service in the namespace, and Docker did for each link.
/// They would end the program as unknown settings, although the operator has set none of them. The
/// forms are narrow, because a misspelt setting must still be an error.
fn is_set_by_orchestrator(name: &str, value: &str) -> bool {
    let is_word = |word: &str| name == word || name.ends_with(&format!("_{word}"));
    let is_url = ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    let is_port = name.split("PORT_").skip(1).any(|rest| {
        let rest = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
        ["_TCP", "_UDP", "_SCTP"]
            .iter()
            .any(|protocol| rest.starts_with(protocol))
    });
    is_word("SERVICE_HOST")
        || is_word("SERVICE_PORT")
        || name.contains("SERVICE_PORT_")
        || is_word("PORT") && is_url
        || is_port
        || name.starts_with("ENV_")
        || is_word("NAME") && value.starts_with('/')
}

/// Returns the error for an unknown setting, with the most similar one as a suggestion.
///
/// `place` names the origin: a path, a variable or a flag.
fn unknown(key: &str, place: &str) -> CommandError {
    let known = defaults();
    let like = |other: &String| strsim::jaro_winkler(key, other);
    let nearest = known
        .keys()
        .filter(|other| like(other) > MIN_SIMILARITY)
        .max_by(|one, other| like(one).total_cmp(&like(other)));
    // The flag --db differs from its setting database_url.
    let nearest = if key == "db" {
        Some("database_url")
    } else {
        nearest.map(String::as_str)
    };
    let hint = nearest.map_or("; see `failure-logger config`".into(), |nearest| {
        format!("; did you mean {nearest}?")
    });
    CommandError::Usage(format!("{place}: there is no setting {key}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_describes_every_setting_with_its_default() {
        let sample = sample();
        let without_comments: String = sample
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| !line.starts_with(' '))
            .map(|line| format!("{line}\n"))
            .collect();
        let read: Map<String, Value> = toml::from_str(&without_comments).unwrap();
        let defaults = defaults();
        assert_eq!(
            read.keys().collect::<std::collections::BTreeSet<_>>(),
            defaults.keys().collect()
        );
        for (key, (default, _)) in &defaults {
            let expected = if default.is_null() {
                &Value::from("")
            } else {
                default
            };
            assert_eq!(&read[key], expected, "{key}");
            let about = DESCRIPTIONS.iter().find(|(name, _)| name == key).unwrap().1;
            assert!(
                sample.contains(&format!("# {about}\n#{key} = ")) && about.ends_with('.'),
                "{key}"
            );
        }
        // The sample file changes no setting, because all of its settings are commented out.
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &sample).unwrap();
        let settings = loaded(
            Flags {
                file: Some(file.path().into()),
                ..Flags::default()
            },
            &[],
        )
        .unwrap();
        assert!(
            settings
                .values
                .values()
                .all(|(_, origin)| *origin == SettingOrigin::Default)
        );
    }

    #[test]
    fn platform_variables_are_ignored_and_misspelled_ones_rejected() {
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
            // Variables of a service named failure-logger-headless.
            ("FAILURE_LOGGER_HEADLESS_SERVICE_HOST", "10.0.0.8"),
            ("FAILURE_LOGGER_HEADLESS_PORT_4318_TCP_PORT", "4318"),
            ("FAILURE_LOGGER_HEADLESS_PORT", "tcp://10.0.0.8:4318"),
        ] {
            assert!(loaded(Flags::default(), &[(name, value)]).is_ok(), "{name}");
        }
        for name in [
            "FAILURE_LOGGER_LISTN",
            "FAILURE_LOGGER_PORT",
            "FAILURE_LOGGER_HOST",
            "FAILURE_LOGGER_NAME",
        ] {
            assert!(
                loaded(Flags::default(), &[(name, "4318")]).is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn invalid_log_level_is_an_error() {
        for level in [
            "info",
            "DEBUG",
            "off",
            "warn,failure_logger=debug",
            "failure_logger::http=trace,info",
        ] {
            assert!(
                loaded(Flags::default(), &[("FAILURE_LOGGER_LOG_LEVEL", level)]).is_ok(),
                "{level}"
            );
        }
        for level in [
            "inof",
            "",
            "info,",
            "warning",
            "failure_logger=loud",
            "failure_logger",
            "2",
        ] {
            let error = loaded(Flags::default(), &[("FAILURE_LOGGER_LOG_LEVEL", level)])
                .err()
                .unwrap();
            assert!(
                error.starts_with(&format!(
                    "log_level = \"{level}\" ($FAILURE_LOGGER_LOG_LEVEL): expected error"
                )),
                "{error}"
            );
        }
    }

    fn loaded(flags: Flags, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let variables = variables
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)));
        text_of_error(Settings::resolve(&flags, variables))
    }

    fn text_of_error<T>(result: Result<T, CommandError>) -> Result<T, String> {
        result.map_err(|error| match error {
            CommandError::Usage(text) => text,
            error => format!("{error:?}"),
        })
    }

    fn file(text: &str) -> (tempfile::NamedTempFile, Flags) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let flags = Flags {
            file: Some(file.path().into()),
            ..Flags::default()
        };
        (file, flags)
    }

    #[test]
    fn flags_override_environment_file_and_defaults() {
        let (_file, mut flags) = file("retention_days = 1\nbatch_size = 2\ncleanup_every = 3\n");
        flags.service.retention_days = Some(30);
        let settings = loaded(
            flags,
            &[
                ("FAILURE_LOGGER_RETENTION_DAYS", "20"),
                ("FAILURE_LOGGER_BATCH_SIZE", "20"),
            ],
        )
        .unwrap();
        let logger = format!("{:?}", settings.logger);
        // `None`: the default retention is not persisted in the database.
        for value in [
            "retention_days: Some(30)",
            "batch_size: 20",
            "cleanup_every: 3",
            "attempts_retention_days: None",
            &format!("buffer_capacity: {DEFAULT_BUFFER_CAPACITY}"),
        ] {
            assert!(logger.contains(value), "{value}: {logger}");
        }
        let origins = ["retention_days", "batch_size", "pool_size"]
            .map(|key| settings.values[key].1.to_string());
        assert_eq!(
            origins,
            ["command line", "$FAILURE_LOGGER_BATCH_SIZE", "default"]
        );
        assert_eq!(
            settings.values["migrate"],
            (true.into(), SettingOrigin::Default)
        );
        let (_file, flags) = file("migrate = false");
        assert!(!format!("{:?}", loaded(flags, &[]).unwrap().logger).contains("migrate: true"));
        let (_file, flags) = file("migrate = false");
        assert!(
            format!(
                "{:?}",
                loaded(flags, &[("FAILURE_LOGGER_MIGRATE", "true")])
                    .unwrap()
                    .logger
            )
            .contains("migrate: true")
        );
        assert_eq!(settings.service.listen, [Listen::Tcp(DEFAULT_LISTEN)]);
    }

    #[test]
    fn settings_of_a_server_come_from_each_origin() {
        let (_file, mut flags) = file("statement_timeout_ms = 7\nconnect_timeout_ms = 1\n");
        flags.assignments = vec!["connect_timeout_ms=2000".into()];
        let variables = [
            ("FAILURE_LOGGER_APPLICATION_NAME", "search"),
            ("FAILURE_LOGGER_PREPARED_STATEMENTS", "false"),
        ];
        let settings = loaded(flags, &variables).unwrap();
        let logger = format!("{:?}", settings.logger);
        for value in [
            "statement_timeout: 7ms",
            "connect_timeout: 2s",
            "application_name: Some(\"search\")",
            "prepared_statements: false",
        ] {
            assert!(logger.contains(value), "{value}: {logger}");
        }
        let (_file, flags) = file("statement_timeout_ms = 0");
        let error = loaded(flags, &[]).err().unwrap();
        assert!(error.starts_with("statement_timeout_ms = 0 ("), "{error}");
    }

    #[test]
    fn invalid_setting_is_named_and_the_nearest_key_is_suggested() {
        let (_file, flags) = file("retention_dais = 1");
        assert!(
            loaded(flags, &[])
                .err()
                .unwrap()
                .ends_with("there is no setting retention_dais; did you mean retention_days?")
        );
        let (_file, flags) = file("retention_days = \"x\"");
        let error = loaded(flags, &[]).err().unwrap();
        assert!(
            error.starts_with("retention_days = \"x\" (") && error.contains("invalid type"),
            "{error}"
        );
        let error = loaded(Flags::default(), &[("FAILURE_LOGGER_POOL_SIZE", "many")])
            .err()
            .unwrap();
        assert!(
            error.starts_with("pool_size = \"many\" ($FAILURE_LOGGER_POOL_SIZE)"),
            "{error}"
        );
        let error = loaded(Flags::default(), &[("FAILURE_LOGGER_MIGRATE", "never")])
            .err()
            .unwrap();
        assert!(
            error.starts_with("migrate = \"never\" ($FAILURE_LOGGER_MIGRATE)"),
            "{error}"
        );
        let error = loaded(
            Flags {
                assignments: vec!["pool_size=0".into()],
                ..Flags::default()
            },
            &[],
        )
        .err()
        .unwrap();
        assert_eq!(
            error,
            "pool_size = 0 (command line): expected 1 to 64 connections"
        );
    }

    #[test]
    fn invalid_setting_is_quoted_as_written() {
        for (set, error) in [
            (
                "first_backoff_ms=0",
                "first_backoff_ms = 0 (command line): expected 1 ms to 1 day",
            ),
            (
                "longest_backoff_ms=1",
                "longest_backoff_ms = 1 (command line): expected at least the first backoff",
            ),
            (
                "flush_interval_ms=0",
                "flush_interval_ms = 0 (command line): expected 1 ms to 1 day",
            ),
            (
                "buffer_capacity=8",
                "batch_size = 256 (default): expected 1 record to the buffer_capacity",
            ),
            (
                "workers=0",
                "workers = 0 (command line): expected 1 to 256 threads",
            ),
            (
                "workers=257",
                "workers = 257 (command line): expected 1 to 256 threads",
            ),
            (
                "max_connections=0",
                "max_connections = 0 (command line): expected at least 1 connection per worker",
            ),
        ] {
            let flags = Flags {
                assignments: vec![set.into()],
                ..Flags::default()
            };
            assert_eq!(loaded(flags, &[]).err().unwrap(), error);
        }
        let (_file, flags) = file("[server]\nlisten = \"127.0.0.1:1\"");
        let error = loaded(flags, &[]).err().unwrap();
        assert!(
            error.ends_with("there is no setting server; see `failure-logger config`"),
            "{error}"
        );
        let flags = Flags {
            database_url: Some("mysql://u:secret@h/d".into()),
            ..Flags::default()
        };
        let error = loaded(flags, &[]).err().unwrap();
        assert!(
            error.starts_with("database_url = mysql:.. (command line)")
                && !error.contains("secret"),
            "{error}"
        );
    }

    #[test]
    fn number_that_is_not_finite_is_rejected() {
        for (text, key) in [
            ("confidence_threshold = nan", "trace_rules"),
            ("confidence_threshold = -inf", "trace_rules"),
        ] {
            let (_file, flags) = file(&format!("[[{key}]]\nsource = \"a\"\n{text}\n"));
            let error = loaded(flags, &[]).err().unwrap();
            assert!(error.contains(key) && error.contains("finite"), "{error}");
        }
        let (_file, flags) = file("batch_size = inf\n");
        let error = loaded(flags, &[]).err().unwrap();
        assert!(error.contains("batch_size has the number inf"), "{error}");
    }

    #[test]
    fn unknown_variable_is_rejected() {
        for (name, hint) in [
            (
                "DB",
                "$FAILURE_LOGGER_DB: there is no setting db; did you mean database_url?",
            ),
            (
                "BATCHSIZE",
                "$FAILURE_LOGGER_BATCHSIZE: there is no setting batchsize; did you mean batch_size?",
            ),
            (
                "Listen",
                "$FAILURE_LOGGER_Listen: there is no setting listen; did you mean listen?",
            ),
            (
                "X",
                "$FAILURE_LOGGER_X: there is no setting x; see `failure-logger config`",
            ),
        ] {
            assert_eq!(
                loaded(Flags::default(), &[(&format!("{PREFIX}{name}"), "1")])
                    .err()
                    .unwrap(),
                hint
            );
        }
        assert!(
            loaded(
                Flags::default(),
                &[("FAILURE_LOGGER_CONFIG", "x"), ("OTHER", "1")]
            )
            .is_ok()
        );
        let no_text = std::os::unix::ffi::OsStringExt::from_vec(vec![0xff]);
        let error = text_of_error(Settings::resolve(
            &Flags::default(),
            [("FAILURE_LOGGER_DATABASE_URL".into(), no_text)],
        ));
        assert_eq!(
            error.err().unwrap(),
            "$FAILURE_LOGGER_DATABASE_URL: expected text in UTF-8"
        );
    }

    #[test]
    fn misspelt_token_name_is_rejected_and_not_quoted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let tokens = |text: &str| {
            fs::write(file.path(), text).unwrap();
            text_of_error(tokens(file.path())).map(|tokens| {
                let has = |scope| tokens.iter().any(|named| named.scopes.contains(&scope));
                (has(Scope::Read), has(Scope::Ingest))
            })
        };
        for text in [
            "raed = 0123456789abcdef",
            "raed=0123456789abcdef",
            "\"0123=456789abcdefgh=\"",
        ] {
            let error = tokens(text).unwrap_err();
            assert!(
                error.contains("line 1: expected `NAME SCOPE = TOKEN`"),
                "{error}"
            );
            assert!(!error.contains("0123"));
        }
        for text in ["MDEyMzQ1Njc4OWFiY2RlZg==", "\"MDEyMzQ1Njc4OWFiY2RlZg==\""] {
            assert_eq!(tokens(text), Ok((true, true)));
        }
        assert_eq!(tokens("read = MDEyMzQ1Njc4OWFiY2RlZg=="), Ok((true, false)));
    }

    #[test]
    fn addresses_other_than_loopback_need_tokens() {
        let with = |token_file: Option<PathBuf>| {
            let service = ServiceFlags {
                listen: vec!["0.0.0.0:1".parse().unwrap()],
                token_file,
                ..Default::default()
            };
            Flags {
                service,
                ..Flags::default()
            }
        };
        let http = |settings: Result<Settings, String>| {
            let settings = settings.unwrap();
            settings.http_on(&settings.service.listen)
        };
        let Err(CommandError::Usage(error)) = http(loaded(with(None), &[])) else {
            panic!("expected an error")
        };
        assert!(error.contains("--token-file"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, fine) in [
            ("0123456789abcdef0123", true),
            (
                "# both\nread = 0123456789abcdef\ningest = \"0123456789abcdeg\"",
                true,
            ),
            ("read = 0123456789abcdef", false),
            ("short", false),
            ("", false),
        ] {
            fs::write(file.path(), text).unwrap();
            assert_eq!(
                http(loaded(with(Some(file.path().into())), &[])).is_ok(),
                fine,
                "{text}"
            );
        }
    }
}
