//! Bodies of requests: decompressed, and bounded in size, time and memory.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::HttpRequest;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use actix_web::web::{Bytes, BytesMut, Payload};
use async_compression::tokio::bufread::{GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::Notify;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::http::Api;
use crate::http::problem::{Code, Problem};

/// Maximum size of all bodies in memory together. It has room for two bodies of the default
/// maximum.
const MAX_HELD_BYTES: usize = 16 << 20;
/// Maximum time that a body waits for memory.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval at which a waiting body retries.
const ROOM_INTERVAL: Duration = Duration::from_millis(5);
/// Minimum age of a body that is evicted. Younger bodies have no meaningful rate yet.
const MIN_EVICTION_AGE: Duration = Duration::from_secs(1);
/// Minimum average rate of a body in memory, in bytes per second. It bounds the time for which a
/// slow sender occupies memory, because the timeout of a chunk alone never ends for a byte at a
/// time.
const MIN_RATE: u64 = 1024;
/// Time after the beginning of a shutdown in which the rest of a body may still be read.
const SHUTDOWN_TIME: Duration = Duration::from_secs(1);
/// Maximum size of a decompressed chunk.
const CHUNK_BYTES: usize = 16 << 10;
/// Maximum window of zstd, as a power of two: 8 MiB, the size that RFC 8878 recommends decoders to
/// support. A larger window would let a client choose how much memory the decoder allocates.
const MAX_ZSTD_WINDOW_LOG: u32 = 23;

type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, String>>>>;

/// Body of a request while it arrives.
pub(crate) struct Body<'a> {
    api: &'a Api,
    chunks: Chunks,
    /// Notified if another body needs the memory of this one. `None` if it holds no memory.
    evicted: Option<Arc<Notify>>,
    /// Time at which this body first noticed the shutdown of the service.
    shutdown_noticed_at: Option<Instant>,
}

impl<'a> Body<'a> {
    /// Returns the body, decompressed according to its `Content-Encoding`.
    pub(crate) fn new(
        api: &'a Api,
        request: &HttpRequest,
        payload: Payload,
    ) -> Result<Self, Problem> {
        let encoding = request
            .headers()
            .get(CONTENT_ENCODING)
            .map(|value| value.to_str().unwrap_or("?"));
        let encoding = encoding.map(|encoding| encoding.trim().to_ascii_lowercase());
        let chunks: Chunks = match encoding.as_deref() {
            None | Some("" | "identity") => Box::pin(payload.map_err(|error| error.to_string())),
            Some("gzip" | "x-gzip") => {
                let mut decoder =
                    GzipDecoder::new(StreamReader::new(payload.map_err(io::Error::other)));
                decoder.multiple_members(true);
                Box::pin(
                    ReaderStream::with_capacity(decoder, CHUNK_BYTES)
                        .map_err(|error| error.to_string()),
                )
            }
            // The name of zlib in HTTP (RFC 9110, 8.4.1.2).
            Some("deflate") => {
                let reader = StreamReader::new(payload.map_err(io::Error::other));
                Box::pin(
                    ReaderStream::with_capacity(ZlibDecoder::new(reader), CHUNK_BYTES)
                        .map_err(|error| error.to_string()),
                )
            }
            Some("zstd") => {
                let reader = StreamReader::new(payload.map_err(io::Error::other));
                let window = DParameter::window_log_max(MAX_ZSTD_WINDOW_LOG);
                let mut decoder = ZstdDecoder::with_params(reader, &[window]);
                decoder.multiple_members(true);
                Box::pin(
                    ReaderStream::with_capacity(decoder, CHUNK_BYTES)
                        .map_err(|error| error.to_string()),
                )
            }
            Some(_) => {
                let detail = "Content-Encoding: expected gzip, deflate, zstd or none";
                return Err(Problem::new(Code::UnsupportedEncoding, detail));
            }
        };
        Ok(Self {
            api,
            chunks,
            evicted: None,
            shutdown_noticed_at: None,
        })
    }

    /// Returns the next chunk, or `None` after the last one.
    ///
    /// Once the service shuts down, this returns only chunks that have already arrived, and none
    /// after [`SHUTDOWN_TIME`]. The time limit is necessary because the payload of a fast sender
    /// refills whenever the handler waits.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let shutting_down = || {
            let detail = "the service is shutting down; resend the records after the first `processed` later";
            Problem::new(Code::ShuttingDown, detail)
        };
        if self.api.options.is_ending() {
            let noticed_at = *self.shutdown_noticed_at.get_or_insert_with(Instant::now);
            if noticed_at.elapsed() >= SHUTDOWN_TIME {
                return Err(shutting_down());
            }
        }
        let evicted = self.evicted.clone();
        let eviction = async {
            match evicted {
                Some(evicted) => evicted.notified().await,
                None => std::future::pending().await,
            }
        };
        let chunk = tokio::select! {
            // Biased: a request that has arrived completely succeeds even during an eviction or a
            // shutdown.
            biased;
            chunk = actix_rt::time::timeout(self.api.options.body_timeout, self.chunks.next()) => chunk,
            () = eviction => {
                let detail = "the body arrived too slowly: other requests needed its memory; retry";
                return Err(Problem::new(Code::BodyTooSlow, detail));
            }
            () = self.api.options.until_ending() => return Err(shutting_down()),
        };
        match chunk {
            Ok(Some(Ok(chunk))) => Ok(Some(chunk)),
            Ok(None) => Ok(None),
            Ok(Some(Err(error))) => Err(Problem::new(
                Code::InvalidBody,
                format!("cannot read the body to its end: {error}"),
            )),
            Err(_) => Err(Problem::new(
                Code::BodyTooSlow,
                "the body arrived too slowly",
            )),
        }
    }

    /// Reads the whole body into memory. `remedy` tells the client how to send more than `max`
    /// bytes.
    pub(crate) async fn read_whole(
        mut self,
        max: usize,
        remedy: &str,
    ) -> Result<(BytesMut, HeldBody<'a>), Problem> {
        let held = self.api.bodies.hold();
        self.evicted = Some(Arc::clone(&held.evicted));
        let began = Instant::now();
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.next().await? {
            if whole.len() + chunk.len() > max {
                return Err(Problem::new(
                    Code::BodyTooLarge,
                    format!("a JSON body has {max} bytes at most; {remedy}"),
                ));
            }
            held.reserve(chunk.len()).await?;
            whole.extend_from_slice(&chunk);
            // The minimum rate applies after one timeout, so that a slow start does not count.
            let overtime = began
                .elapsed()
                .saturating_sub(self.api.options.body_timeout);
            if overtime.as_secs() * MIN_RATE > whole.len() as u64 {
                let detail = format!(
                    "the body arrived too slowly: expected at least {MIN_RATE} bytes per second"
                );
                return Err(Problem::new(Code::BodyTooSlow, detail));
            }
        }
        Ok((whole, held))
    }
}

/// Returns the media type in the `Content-Type` of a request, in lower case and without parameters.
pub(crate) fn media_type(request: &HttpRequest) -> String {
    let content_type = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Bodies that are held in memory as a whole. If memory runs out, the slowest one is evicted.
#[derive(Default)]
pub(crate) struct Bodies(Mutex<State>);

#[derive(Default)]
struct State {
    bytes: usize,
    bodies: HashMap<u64, Entry>,
    last_id: u64,
}

struct Entry {
    bytes: usize,
    began: Instant,
    evicted: Arc<Notify>,
    /// `true` after `evicted` was notified. The memory is free once the request has ended.
    is_evicted: bool,
}

impl Entry {
    /// Returns the average rate in bytes per second.
    fn rate(&self) -> f64 {
        self.bytes as f64 / self.began.elapsed().as_secs_f64().max(0.001)
    }
}

impl Bodies {
    fn hold(&self) -> HeldBody<'_> {
        let mut state = lock(&self.0);
        state.last_id += 1;
        let (id, evicted) = (state.last_id, Arc::new(Notify::new()));
        let entry = Entry {
            bytes: 0,
            began: Instant::now(),
            evicted: Arc::clone(&evicted),
            is_evicted: false,
        };
        state.bodies.insert(id, entry);
        HeldBody {
            bodies: self,
            id,
            evicted,
        }
    }
}

/// Memory reservation of one body. Dropping it frees the memory.
pub(crate) struct HeldBody<'a> {
    bodies: &'a Bodies,
    id: u64,
    evicted: Arc<Notify>,
}

impl HeldBody<'_> {
    /// Reserves memory for more bytes. Waits up to [`ROOM_TIMEOUT`] if there is none.
    async fn reserve(&self, bytes: usize) -> Result<(), Problem> {
        let began = Instant::now();
        while !self.try_reserve(bytes) {
            if began.elapsed() >= ROOM_TIMEOUT {
                let detail =
                    "too many large bodies at once; send JSON lines instead, or retry later";
                return Err(Problem::new(Code::Busy, detail));
            }
            actix_rt::time::sleep(ROOM_INTERVAL).await;
        }
        Ok(())
    }

    /// Returns `false` if there is not enough memory. In this case, the slowest body is evicted.
    fn try_reserve(&self, bytes: usize) -> bool {
        let mut state = lock(&self.bodies.0);
        if state.bytes + bytes <= MAX_HELD_BYTES {
            state.bytes += bytes;
            if let Some(own) = state.bodies.get_mut(&self.id) {
                own.bytes += bytes;
            }
            return true;
        }
        let is_evictable = |(id, entry): &(&u64, &mut Entry)| {
            **id != self.id
                && !entry.is_evicted
                && entry.bytes > 0
                && entry.began.elapsed() >= MIN_EVICTION_AGE
        };
        // One eviction at a time: the memory of the last evicted body may be enough.
        let is_eviction_pending = state.bodies.values().any(|entry| entry.is_evicted);
        if !is_eviction_pending {
            let candidates = state.bodies.iter_mut().filter(is_evictable);
            if let Some((_, slowest)) =
                candidates.min_by(|(_, one), (_, other)| one.rate().total_cmp(&other.rate()))
            {
                slowest.is_evicted = true;
                slowest.evicted.notify_one();
            }
        }
        false
    }
}

impl Drop for HeldBody<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.bodies.0);
        if let Some(entry) = state.bodies.remove(&self.id) {
            state.bytes -= entry.bytes;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowest_body_loses_its_room_to_one_that_needs_it() {
        let bodies = Bodies::default();
        let (slow, fast, new) = (bodies.hold(), bodies.hold(), bodies.hold());
        assert!(slow.try_reserve(MAX_HELD_BYTES / 4) && fast.try_reserve(MAX_HELD_BYTES * 3 / 4));
        assert!(!new.try_reserve(1));
        let is_evicted = |held: &HeldBody<'_>| lock(&bodies.0).bodies[&held.id].is_evicted;
        assert!(
            !is_evicted(&slow) && !is_evicted(&fast),
            "both are too young to be evicted"
        );
        for entry in lock(&bodies.0).bodies.values_mut() {
            entry.began = entry.began.checked_sub(MIN_EVICTION_AGE).unwrap();
        }
        for _ in 0..2 {
            assert!(!new.try_reserve(1));
        }
        assert!(is_evicted(&slow) && !is_evicted(&fast) && !is_evicted(&new));
        drop(slow);
        assert!(new.try_reserve(1));
        drop((fast, new));
        let state = lock(&bodies.0);
        assert_eq!((state.bytes, state.bodies.len()), (0, 0));
    }
}
