//! Shared reads: requests for the same read at the same time share one run of it. The read is
//! cancelled when no client waits for it any more.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::http::Api;
use crate::http::problem::{Code, Problem};
use crate::http::read::streams;

type Outcome = Result<Bytes, Problem>;

/// Running reads, by path and query string of their requests.
#[derive(Default)]
pub(crate) struct SharedReads {
    running: Mutex<HashMap<String, Weak<Read>>>,
}

/// Running read. Dropping the last reference aborts its task, and thereby the read of the database.
struct Read {
    outcome: watch::Receiver<Option<Outcome>>,
    task: AbortHandle,
}

impl Drop for Read {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SharedReads {
    /// Responds with the JSON that `read` returns. If the same read is already running, waits for
    /// that one instead.
    pub(crate) async fn respond(
        &self,
        api: &Data<Api>,
        request: &HttpRequest,
        read: impl Future<Output = Outcome> + 'static,
    ) -> Result<HttpResponse, Problem> {
        let read = self.join(api, request, read);
        let mut outcome = read.outcome.clone();
        let outcome = match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            // The event loop of the task has ended.
            Ok(None) | Err(_) => Err(Problem::new(Code::Busy, "the read was interrupted; retry")),
        };
        drop(read);
        streams::json(api, outcome?)
    }

    fn join(
        &self,
        api: &Data<Api>,
        request: &HttpRequest,
        read: impl Future<Output = Outcome> + 'static,
    ) -> Arc<Read> {
        let key = request
            .uri()
            .path_and_query()
            .map_or_else(String::new, ToString::to_string);
        let mut running = lock(&self.running);
        if let Some(read) = running.get(&key).and_then(Weak::upgrade) {
            return read;
        }
        let (sender, outcome) = watch::channel(None);
        let (api, task_key) = (api.clone(), key.clone());
        let task = actix_rt::spawn(async move {
            let outcome = read.await;
            // Removes the read before it publishes the outcome: a request that arrives after the
            // outcome must start a new read, or it would get stale data.
            lock(&api.reads.running).remove(&task_key);
            sender.send_replace(Some(outcome));
        });
        let read = Arc::new(Read {
            outcome,
            task: task.abort_handle(),
        });
        running.retain(|_, read| read.strong_count() > 0);
        running.insert(key, Arc::downgrade(&read));
        read
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
