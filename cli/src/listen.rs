//! Listening sockets: TCP addresses, Unix sockets and sockets that systemd passes.
//!
//! The sockets are made here and passed to actix-web as bound listeners, because three options have
//! to be set before: the backlog, the timeout of writes, and IPv4 on an IPv6 wildcard address.
//!
//! A Unix socket is as private as a loopback address: its file has mode 0600. A proxy that runs as
//! another user needs a socket from systemd, whose unit sets the owner and the mode.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::CommandError;

/// Maximum number of connections that wait to be accepted. Clients that connect during a restart by
/// systemd wait there. The kernel may have a lower limit of its own (`somaxconn`).
const BACKLOG: i32 = 1024;
/// Time after which the kernel closes a connection whose client acknowledges no data. A client that
/// stops reading would otherwise hold its response, and the snapshot of an export, for as long as
/// it likes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Prefix of the address of a Unix socket. An absolute path alone is not accepted, because a
/// misspelt address would create a file.
const UNIX: &str = "unix:";

/// Address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Listen {
    /// Address of a network interface. Host names are not accepted: they may resolve to several
    /// addresses.
    Tcp(SocketAddr),
    /// Path of a socket file, relative to the current folder unless it is absolute.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        match text.strip_prefix(UNIX) {
            Some("") => Err("expected a path after `unix:`".into()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => {
                // The message lists all forms, because the text may be a failed attempt at any of
                // them.
                let expected =
                    "expected an address such as 127.0.0.1:4318 or [::1]:4318, or unix:PATH";
                text.parse().map(Self::Tcp).map_err(|_| expected.into())
            }
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// Serializes to the text that [`FromStr`] parses, so that `config` prints what a file may contain.
impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Deserializes one address or a list of addresses. One address is the usual case and needs no
/// brackets. The setting is a list in `config` nevertheless.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Listen>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let texts = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    };
    texts
        .iter()
        .map(|text| text.parse().map_err(serde::de::Error::custom))
        .collect()
}

/// Bound socket. A Unix socket of systemd has no [`SocketFile`], because systemd owns its file.
pub(super) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, Option<SocketFile>),
}

impl Bound {
    /// Returns the address in use, with the port that the kernel chose in place of 0. Returns
    /// `None` if the system does not tell.
    pub(super) fn address(&self) -> Option<Listen> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(Listen::Tcp),
            Self::Unix(listener, _) => {
                let address = listener.local_addr().ok()?;
                Some(Listen::Unix(
                    address.as_pathname().unwrap_or(Path::new("")).to_owned(),
                ))
            }
        }
    }
}

/// File of a Unix socket, which is removed when the service ends. Removal lets the next start bind
/// without a check for a stale file. A killed process leaves the file behind, and [`bind_unix`]
/// handles that.
pub(super) struct SocketFile(PathBuf);

/// Errors are ignored: the file may be gone, and nothing can be done about it at the end.
impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Binds the addresses. Sockets that systemd passes replace all of them. The first failure drops
/// the sockets that were bound before it: a service that listens on a part of its addresses looks
/// healthy and is not.
pub(super) fn bind(listen: &[Listen]) -> Result<Vec<Bound>, CommandError> {
    let activated = activated().map_err(|error| {
        CommandError::Unreachable(format!(
            "cannot use a socket of systemd: {error}; check the .socket unit"
        ))
    })?;
    if !activated.is_empty() {
        return Ok(activated);
    }
    listen.iter().map(bind_one).collect()
}

/// Returns the sockets that systemd passes to this process. The environment names their number and
/// the process that they are for. `listenfd` checks both.
fn activated() -> io::Result<Vec<Bound>> {
    let mut sockets = listenfd::ListenFd::from_env();
    let mut bound = Vec::new();
    for nth in 0..sockets.len() {
        // Only an attempt shows the kind of a socket.
        if let Ok(Some(listener)) = sockets.take_tcp_listener(nth) {
            prepare(&SockRef::from(&listener))?;
            bound.push(Bound::Tcp(listener));
        } else if let Some(listener) = sockets.take_unix_listener(nth)? {
            // systemd passes blocking sockets, and an event loop must never block.
            listener.set_nonblocking(true)?;
            bound.push(Bound::Unix(listener, None));
        }
    }
    Ok(bound)
}

/// Binds one address. Adds the address and the remedy to an error of the system, which has neither.
fn bind_one(listen: &Listen) -> Result<Bound, CommandError> {
    let failed = |error: io::Error| {
        CommandError::Unreachable(format!(
            "cannot listen on {listen} (listen): {error}; set --listen to another address"
        ))
    };
    match listen {
        Listen::Tcp(address) => bind_tcp(*address).map(Bound::Tcp).map_err(failed),
        Listen::Unix(path) => bind_unix(path).map_err(failed),
    }
}

/// Binds a TCP address. `SO_REUSEADDR` lets a restarted service bind while connections of the old
/// one are in `TIME_WAIT`. A second service on the same port still fails.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // The order of the calls matters: options have to be set before the bind or the listen.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // An IPv6 wildcard address accepts IPv4 clients as well. Some systems do not allow that.
        let _ = socket.set_only_v6(false);
    }
    prepare(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sets the options that accepted connections inherit from their listening socket. Sockets of
/// systemd get the same options.
fn prepare(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(WRITE_TIMEOUT))?;
    Ok(())
}

/// Binds a socket that only its owner can use. Replaces the file of a socket without a listener,
/// which a killed process leaves behind. The connection attempt tells the two apart. A file that is
/// no socket is never removed: the path may be a mistake.
///
/// The mode is set after the bind. In between, the umask applies.
fn bind_unix(path: &Path) -> io::Result<Bound> {
    match path.symlink_metadata() {
        Ok(file) if file.file_type().is_socket() => {
            // A listener that accepts nothing still completes the connection, as long as its
            // backlog has room.
            if UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another process listens on it",
                ));
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the file is not a socket",
            ));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(Bound::Unix(listener, Some(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_address_round_trips_through_text() {
        for text in [
            "127.0.0.1:4318",
            "[::1]:4318",
            "unix:/run/failure-logger.sock",
            "unix:x",
        ] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in ["", "localhost:4318", "127.0.0.1", "unix:", "/run/x"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }

    #[test]
    fn unix_socket_is_for_its_owner_and_replaces_only_a_stale_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = bind_unix(&path).ok().unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            bind_unix(&path).err().unwrap().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(first);
        assert!(
            !path.exists(),
            "the socket file is removed with the service"
        );
        drop(UnixListener::bind(&path).unwrap());
        assert!(
            path.exists() && bind_unix(&path).is_ok(),
            "a socket without a listener is replaced"
        );
        std::fs::write(&path, "a file").unwrap();
        assert!(bind_unix(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    }

    #[test]
    fn connection_inherits_the_timeout_of_its_listener() {
        let listener = bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        #[cfg(target_os = "linux")]
        assert_eq!(
            SockRef::from(&accepted).tcp_user_timeout().unwrap(),
            Some(WRITE_TIMEOUT)
        );
        drop(accepted);
    }
}
