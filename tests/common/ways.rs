//! The ways to start the logger.

use actix::SystemRegistry;
use actix::prelude::*;
use failure_logger::{FailureLogger, LoggerConfig, LoggerHandle};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    Spawn,
    Start,
    Arbiter,
    Supervisor,
    Registry,
}

pub const WAYS: [Way; 5] = [
    Way::Spawn,
    Way::Start,
    Way::Arbiter,
    Way::Supervisor,
    Way::Registry,
];

/// A logger that was started in one of the ways. Without `addr`, it has no address of its own.
pub struct Started {
    pub logger: LoggerHandle,
    pub addr: Option<Addr<FailureLogger>>,
    pub arbiter: Option<Arbiter>,
}

impl Started {
    pub fn addr(&self) -> &Addr<FailureLogger> {
        self.addr.as_ref().unwrap_or_else(|| self.logger.addr())
    }
}

/// Starts a logger within the current system.
pub fn start(way: Way, config: LoggerConfig) -> Started {
    if way == Way::Spawn {
        return Started {
            logger: FailureLogger::spawn(config).expect("a logger"),
            addr: None,
            arbiter: None,
        };
    }
    let mut actor = FailureLogger::new(config).expect("a logger");
    let logger = actor.handle();
    let arbiter = (way == Way::Arbiter).then(Arbiter::new);
    let other = arbiter
        .as_ref()
        .map_or_else(Arbiter::current, Arbiter::handle);
    Started {
        logger,
        addr: Some(start_actor(way, actor, &other)),
        arbiter,
    }
}

/// Starts the actor in the current arbiter, or in `other`.
pub fn start_actor(way: Way, actor: FailureLogger, other: &ArbiterHandle) -> Addr<FailureLogger> {
    match way {
        Way::Spawn => panic!("the logger has a thread of its own"),
        Way::Start => actor.start(),
        Way::Arbiter => FailureLogger::start_in_arbiter(other, |_| actor),
        Way::Supervisor => Supervisor::start(|_| actor),
        Way::Registry => {
            SystemRegistry::set(actor.start());
            FailureLogger::from_registry()
        }
    }
}

/// Runs `test` in a system, on a thread that is joined after the system has ended.
pub fn in_system<T: Send>(test: impl AsyncFnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| System::new().block_on(test()))
            .join()
            .expect("no panic")
    })
}
