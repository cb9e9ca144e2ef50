//! The address of a database server with the settings of its connections.

use std::fmt;
use std::time::Duration;

use crate::config::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_STATEMENT_TIMEOUT};
use crate::database_url::DatabaseUrl;

/// What is needed to connect. A parameter of the URL takes precedence over the setting of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerConfig {
    pub(crate) url: DatabaseUrl,
    /// libpq counts whole seconds, of which a part counts as a whole one.
    pub(crate) connect_timeout: Duration,
    /// Longest time of one statement of a writer.
    pub(crate) statement_timeout: Duration,
    /// `None`: that of `PGAPPNAME`, or the name of the program.
    pub(crate) application_name: Option<String>,
    /// `false`: no statement stays prepared on a connection.
    pub(crate) prepared_statements: bool,
}

impl From<DatabaseUrl> for ServerConfig {
    /// Returns the defaults.
    fn from(url: DatabaseUrl) -> Self {
        Self {
            url,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            statement_timeout: DEFAULT_STATEMENT_TIMEOUT,
            application_name: None,
            prepared_statements: true,
        }
    }
}

#[cfg(test)]
impl From<String> for ServerConfig {
    fn from(url: String) -> Self {
        DatabaseUrl::from(url).into()
    }
}

impl fmt::Display for ServerConfig {
    /// Writes the URL without its password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}
