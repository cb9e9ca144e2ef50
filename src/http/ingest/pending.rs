//! Retrievals of traces that wait for the span around them.
//!
//! Frameworks nest retrievers, and a span is exported when it ends: the inner one first, and often
//! in an earlier request. An attempt is counted once, with what the outermost retriever says. A
//! retrieval with a parent therefore waits for [`MAX_WAIT`] to see whether its parent is a retriever
//! as well. A parent that is none is not noticed, and some parents never arrive: after that time,
//! the retrieval is counted by itself. A late outer span is then not counted again.
//!
//! What waits has been acknowledged. A shutdown counts it at once; a process that is killed loses
//! it, like the contents of the buffer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::http::wire::otlp::{Retrieval, Role, SpanId};

/// Maximum time for which a retrieval waits. Exporters send every five seconds by default, so that
/// the parent is in the next request at the latest.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(10);
/// Maximum number of waiting retrievals. Each takes up to 3 KB. If more arrive, the oldest ones are
/// counted without waiting further.
const MAX_WAITING: usize = 8192;
/// Minimum number of recent spans that are remembered: those of a minute at 4,000 retrievals a
/// second. A repeated export comes within seconds.
const MAX_RECENT: usize = 262_144;

/// Retrievals that wait, and the ids of those that do not wait any more.
#[derive(Default)]
pub(crate) struct Pending {
    waiting: HashMap<SpanId, Waiting>,
    /// Waiting retrievals by their parents.
    children: HashMap<SpanId, VecDeque<SpanId>>,
    /// In the order of arrival. May contain spans that do not wait any more.
    order: VecDeque<(Instant, SpanId)>,
    counted: Recent,
    /// Parents of retrievals that were counted by themselves: a parent that turns out to be a
    /// retriever is the same attempt.
    counted_parents: Recent,
    /// Rerankers whose retrieval never arrived.
    lone_rerankers: u64,
}

struct Waiting {
    since: Instant,
    retrieval: Box<Retrieval>,
}

/// Result of an arrival.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Arrival {
    /// Retrievals to count now.
    pub(crate) ready: Vec<Retrieval>,
    /// `true` if the span was received before.
    pub(crate) is_duplicate: bool,
    /// `true` if the span is a part of an attempt that is counted with another span.
    pub(crate) is_part: bool,
    /// Number of waiting spans that became part of this one.
    pub(crate) joined: u64,
}

impl Pending {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Takes a span of a retrieval. It waits, becomes part of another one, or is ready.
    pub(crate) fn arrive(&mut self, mut span: Box<Retrieval>, now: Instant) -> Arrival {
        let mut arrival = Arrival::default();
        if self.counted.contains(span.id) || self.waiting.contains_key(&span.id) {
            arrival.is_duplicate = true;
            return arrival;
        }
        for id in self.children.remove(&span.id).unwrap_or_default() {
            arrival.joined += u64::from(self.join_child(id, &mut span));
        }
        if span.role == Role::Retriever && self.counted_parents.contains(span.id) {
            self.counted.insert(span.id);
            // An outermost span may follow, too.
            span.parent
                .inspect(|parent| self.counted_parents.insert(*parent));
            arrival.is_part = true;
            return arrival;
        }
        if self.join_parent(&span) || self.join_sibling(&span) {
            self.counted.insert(span.id);
            arrival.is_part = true;
            return arrival;
        }
        match (span.role, span.parent) {
            (Role::Retriever, None) => arrival.ready.push(self.release(span)),
            (Role::Reranker, None) => arrival.is_part = true,
            (_, Some(parent)) => {
                self.children.entry(parent).or_default().push_back(span.id);
                self.order.push_back((now, span.id));
                let waiting = Waiting {
                    since: now,
                    retrieval: span,
                };
                self.waiting.insert(waiting.retrieval.id, waiting);
            }
        }
        // Spans that became part of another one leave stale entries in the order.
        while self.waiting.len() > MAX_WAITING || self.order.len() > 4 * MAX_WAITING {
            arrival.ready.extend(self.pop_oldest());
        }
        arrival
    }

    /// Removes the next retrieval whose time is over at `now`. Returns `None` if there is none.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<Retrieval> {
        loop {
            let (since, _) = *self.order.front()?;
            if now.saturating_duration_since(since) < MAX_WAIT {
                return None;
            }
            let popped = self.pop_oldest();
            if popped.is_some() {
                return popped;
            }
        }
    }

    /// Removes the oldest retrieval. Returns `None` if its entry was stale or that of a reranker
    /// whose retrieval never arrived, or if none waits.
    fn pop_oldest(&mut self) -> Option<Retrieval> {
        let (since, id) = self.order.pop_front()?;
        // The same span may have arrived again after it was released.
        let is_current = self.waiting.get(&id).is_some_and(|it| it.since == since);
        let retrieval = if is_current { self.remove(id) } else { None }?;
        match retrieval.role {
            Role::Retriever => Some(self.release(retrieval)),
            Role::Reranker => {
                self.lone_rerankers += 1;
                None
            }
        }
    }

    /// Returns the number of rerankers that waited in vain for their retrieval.
    pub(crate) fn lone_rerankers(&self) -> u64 {
        self.lone_rerankers
    }

    /// Returns `true` if nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Removes the oldest retrieval, however long it has waited. Returns `None` if none waits.
    pub(crate) fn pop(&mut self) -> Option<Retrieval> {
        while !self.order.is_empty() {
            let popped = self.pop_oldest();
            if popped.is_some() {
                return popped;
            }
        }
        None
    }

    /// Puts back a retrieval that the logger could not take, as the next one to be released.
    pub(crate) fn put_back(&mut self, retrieval: Box<Retrieval>, now: Instant) {
        let since = now.checked_sub(MAX_WAIT).unwrap_or(now);
        self.order.push_front((since, retrieval.id));
        self.waiting
            .insert(retrieval.id, Waiting { since, retrieval });
    }

    /// Makes a waiting span part of its parent, which has just arrived. Returns `false` if it stays
    /// an attempt of its own.
    fn join_child(&mut self, id: SpanId, parent: &mut Retrieval) -> bool {
        // A search within a reranker is an attempt of its own.
        if parent.role == Role::Reranker {
            return false;
        }
        let Some(child) = self.waiting.remove(&id) else {
            return false;
        };
        self.counted.insert(id);
        parent.join(&child.retrieval);
        true
    }

    /// Makes a span part of its parent, if that waits. Returns `false` if it does not.
    fn join_parent(&mut self, span: &Retrieval) -> bool {
        let Some(parent) = span.parent else {
            return false;
        };
        if let Some(parent) = self.waiting.get_mut(&parent)
            && parent.retrieval.role == Role::Retriever
        {
            parent.retrieval.join(span);
            return true;
        }
        // The parent was a retriever that is counted by now.
        self.counted.contains(parent)
    }

    /// Gives the score of a reranker to the last retrieval before it under the same parent. Returns
    /// `false` if there is none.
    fn join_sibling(&mut self, span: &Retrieval) -> bool {
        let (Role::Reranker, Some(parent)) = (span.role, span.parent) else {
            return false;
        };
        let siblings = self.children.get(&parent).into_iter().flatten();
        let before = siblings.filter_map(|id| {
            let sibling = &self.waiting.get(id)?.retrieval;
            let is_before = sibling.role == Role::Retriever && sibling.ended_at <= span.started_at;
            is_before.then_some((sibling.ended_at, *id))
        });
        let Some((_, last)) = before.max_by_key(|(ended_at, _)| *ended_at) else {
            return false;
        };
        if let Some(sibling) = self.waiting.get_mut(&last) {
            sibling.retrieval.join(span);
        }
        true
    }

    fn remove(&mut self, id: SpanId) -> Option<Box<Retrieval>> {
        let Waiting { retrieval, .. } = self.waiting.remove(&id)?;
        if let Some(parent) = retrieval.parent
            && let Some(children) = self.children.get_mut(&parent)
        {
            // The oldest child goes first, so that one parent of many children costs no more.
            if let Some(at) = children.iter().position(|child| *child == id) {
                children.remove(at);
            }
            if children.is_empty() {
                self.children.remove(&parent);
            }
        }
        Some(retrieval)
    }

    /// Remembers that a retrieval is counted.
    fn release(&mut self, retrieval: Box<Retrieval>) -> Retrieval {
        self.counted.insert(retrieval.id);
        if let Some(parent) = retrieval.parent {
            self.counted_parents.insert(parent);
        }
        *retrieval
    }
}

/// Set of the most recent spans: at least the last [`MAX_RECENT`] of them, at most twice as many.
/// Constant time, and memory that does not grow.
///
/// Contains hashes of 64 bits instead of ids of 192, which takes a third of the memory. A collision
/// is as likely as one of the random span ids themselves.
#[derive(Default)]
struct Recent {
    current: HashSet<u64>,
    before: HashSet<u64>,
}

impl Recent {
    fn contains(&self, id: SpanId) -> bool {
        let key = Self::key(id);
        self.current.contains(&key) || self.before.contains(&key)
    }

    fn insert(&mut self, id: SpanId) {
        self.current.insert(Self::key(id));
        if self.current.len() >= MAX_RECENT {
            self.before = std::mem::take(&mut self.current);
        }
    }

    fn key(SpanId { trace, span }: SpanId) -> u64 {
        let trace = u128::from_be_bytes(trace);
        let [high, low] = [trace >> 64, trace & u128::from(u64::MAX)];
        // Both halves of the trace id, because some senders have random bits in one of them only.
        let trace = u64::try_from(high ^ low).unwrap_or_default();
        u64::from_be_bytes(span) ^ trace.rotate_left(32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::trace_rules::{Judgement, TraceRuling};
    use crate::http::wire::otlp::{JsonRequest, ProtobufReader, Step};
    use crate::model::outcome::OutcomeKind::{self, *};
    use crate::rollup::ScoreDirection;

    fn fixture(name: &str) -> Vec<u8> {
        let path = format!("{}/tests/fixtures/otlp/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).unwrap()
    }

    fn from_protobuf(name: &str) -> Vec<Retrieval> {
        let mut reader = ProtobufReader::new();
        reader.push(&fixture(name));
        let mut retrievals = Vec::new();
        loop {
            match reader.next().unwrap() {
                Step::Retrieval(retrieval) => retrievals.push(*retrieval),
                Step::Rejected(fault) => panic!("{fault:?}"),
                Step::End => break,
            }
        }
        reader.finish().unwrap();
        retrievals
    }

    /// Returns the attempts among spans that arrive in this order, by trace.
    fn attempts(spans: impl IntoIterator<Item = Retrieval>) -> Vec<Retrieval> {
        let (mut pending, now) = (Pending::default(), Instant::now());
        let mut attempts = Vec::new();
        for span in spans {
            attempts.extend(pending.arrive(Box::new(span), now).ready);
        }
        assert_eq!(pending.pop_expired(now), None);
        while let Some(retrieval) = pending.pop_expired(now + MAX_WAIT) {
            attempts.push(retrieval);
        }
        assert!(pending.is_empty() && pending.children.is_empty());
        attempts.sort_by_key(|retrieval| retrieval.id.trace);
        attempts
    }

    /// The table of `tests/fixtures/otlp/README.md`: the outcomes of each application, with its
    /// threshold.
    const TABLE: [(&str, f32, [OutcomeKind; 6]); 9] = [
        (
            "langchain-openinference",
            0.5,
            [Success, Success, NoHit, Error, Timeout, LowConfidence],
        ),
        (
            "llamaindex-openinference",
            0.5,
            [Success, LowConfidence, NoHit, Error, Timeout, Success],
        ),
        (
            "haystack-openinference",
            2.0,
            [Success, LowConfidence, NoHit, Error, Timeout, Timeout],
        ),
        (
            "langchain-genai",
            0.5,
            [Success, Success, NoHit, Error, Timeout, LowConfidence],
        ),
        (
            "llamaindex-genai",
            0.5,
            [Success, LowConfidence, NoHit, Error, Timeout, Success],
        ),
        (
            "llamaindex-genai-nocontent",
            0.5,
            [Unknown, Unknown, Unknown, Error, Timeout, Unknown],
        ),
        (
            "langchain-openllmetry",
            0.5,
            [Success, Success, NoHit, Error, Timeout, LowConfidence],
        ),
        (
            "chroma-openllmetry",
            0.5,
            [Success, LowConfidence, Unknown, Error, Timeout, Success],
        ),
        (
            "qdrant-openllmetry",
            0.5,
            [Unknown, Unknown, Unknown, Error, Timeout, Unknown],
        ),
    ];

    #[test]
    fn real_traces_have_their_outcomes_in_any_order_of_arrival() {
        for (name, threshold, expected) in TABLE {
            let judgement = Judgement {
                threshold: Some(threshold),
                direction: None,
            };
            let spans = from_protobuf(&format!("{name}.pb"));
            let reversed = attempts(spans.clone().into_iter().rev());
            let attempts = attempts(spans);
            let outcomes = |attempts: &[Retrieval]| -> Vec<OutcomeKind> {
                attempts.iter().map(|it| it.outcome(judgement)).collect()
            };
            assert_eq!(outcomes(&attempts), expected, "{name}");
            assert_eq!(outcomes(&reversed), expected, "{name}, reversed");
            for retrieval in attempts {
                assert_eq!(&*retrieval.source, name);
            }
        }
    }

    #[test]
    fn json_of_real_exporters_is_read_like_protobuf() {
        for name in ["langchain-openinference", "llamaindex-genai"] {
            let json = String::from_utf8(fixture(&format!("{name}.json"))).unwrap();
            let steps = JsonRequest::parse(&json).unwrap().steps;
            let spans: Vec<Retrieval> = steps.into_iter().map(Result::unwrap).collect();
            assert_eq!(spans, from_protobuf(&format!("{name}.pb")), "{name}");
        }
    }

    #[test]
    fn distance_is_lower_is_better_unless_a_setting_says_otherwise() {
        let spans = from_protobuf("chroma-openllmetry.pb");
        let judged = |direction| {
            spans[0].outcome(Judgement {
                threshold: Some(0.5),
                direction,
            })
        };
        // Its distance is 0.0.
        assert_eq!(judged(None), Success);
        assert_eq!(judged(Some(ScoreDirection::HigherIsBetter)), LowConfidence);
    }

    /// A retriever or reranker of a trace, with this id, parent (0: none), and score.
    fn span(kind: &str, id: u8, parent: u8, score: f32) -> Box<Retrieval> {
        let json = format!(
            r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"traceId":"{:032x}",
            "spanId":"{id:016x}","parentSpanId":"{parent:016x}","name":"s{id}",
            "startTimeUnixNano":"{id}000000000","endTimeUnixNano":"{id}500000000","attributes":[
            {{"key":"openinference.span.kind","value":{{"stringValue":"{kind}"}}}},
            {{"key":"retrieval.documents.0.document.score","value":{{"doubleValue":{score}}}}},
            {{"key":"reranker.output_documents.0.document.score","value":{{"doubleValue":{score}}}}}
            ]}}]}}]}}]}}"#,
            1
        );
        let mut steps = JsonRequest::parse(&json).unwrap().steps;
        Box::new(steps.remove(0).unwrap())
    }

    fn retriever(id: u8, parent: u8) -> Box<Retrieval> {
        span("RETRIEVER", id, parent, 0.4)
    }

    fn ids(retrievals: &[Retrieval]) -> Vec<u8> {
        retrievals.iter().map(|it| it.id.span[7]).collect()
    }

    fn score(retrieval: Retrieval) -> Option<f32> {
        let sent = retrieval.into_sent(TraceRuling::default());
        sent.top_score()
    }

    #[test]
    fn retriever_with_a_parent_waits_and_one_without_is_ready() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        assert_eq!(ids(&pending.arrive(retriever(1, 0), now).ready), [1]);
        assert_eq!(pending.arrive(retriever(2, 9), now), Arrival::default());
        let almost = now + MAX_WAIT - Duration::from_nanos(1);
        assert_eq!(pending.pop_expired(almost), None);
        let expired = pending.pop_expired(now + MAX_WAIT).unwrap();
        assert_eq!(expired.id.span[7], 2);
        assert_eq!(pending.pop_expired(now + MAX_WAIT), None);
    }

    #[test]
    fn span_that_arrives_again_is_a_duplicate() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        for (id, parent) in [(1, 0), (2, 9)] {
            assert!(!pending.arrive(retriever(id, parent), now).is_duplicate);
            assert!(pending.arrive(retriever(id, parent), now).is_duplicate);
        }
        assert!(pending.pop().is_some());
        let again = pending.arrive(retriever(2, 9), now);
        assert!(again.is_duplicate && again.ready.is_empty());
    }

    #[test]
    fn outer_span_that_comes_too_late_is_not_counted_again() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        pending.arrive(retriever(3, 2), now);
        assert_eq!(ids(&[pending.pop_expired(now + MAX_WAIT).unwrap()]), [3]);
        // Its parent, and the parent's parent.
        for (id, parent) in [(2, 1), (1, 0)] {
            let late = pending.arrive(retriever(id, parent), now);
            assert!(late.is_part && late.ready.is_empty(), "{id}");
        }
        assert!(pending.is_empty());
    }

    #[test]
    fn inner_span_that_comes_after_the_outer_one_is_part_of_it() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        pending.arrive(retriever(1, 9), now);
        assert!(pending.arrive(retriever(2, 1), now).is_part);
        assert_eq!(ids(&[pending.pop().unwrap()]), [1]);
        assert!(pending.arrive(retriever(3, 1), now).is_part);
        assert_eq!(pending.pop(), None);
    }

    #[test]
    fn reranker_gives_its_score_to_the_last_retrieval_before_it() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        for id in [1, 2, 4] {
            pending.arrive(retriever(id, 9), now);
        }
        assert!(pending.arrive(span("RERANKER", 3, 9, 0.9), now).is_part);
        let scores: Vec<_> = std::iter::from_fn(|| pending.pop()).map(score).collect();
        assert_eq!(scores, [Some(0.4), Some(0.9), Some(0.4)]);
    }

    #[test]
    fn reranker_gives_its_score_to_the_retriever_around_it() {
        for reranker_first in [true, false] {
            let (mut pending, now) = (Pending::default(), Instant::now());
            let mut spans = [retriever(1, 9), span("RERANKER", 2, 1, 0.9)];
            if reranker_first {
                spans.reverse();
            }
            for span in spans {
                pending.arrive(span, now);
            }
            assert_eq!(pending.len(), 1);
            assert_eq!(score(pending.pop().unwrap()), Some(0.9));
        }
    }

    #[test]
    fn reranker_alone_is_no_attempt() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        assert!(pending.arrive(span("RERANKER", 1, 0, 0.9), now).is_part);
        pending.arrive(span("RERANKER", 2, 9, 0.9), now);
        assert_eq!((pending.lone_rerankers(), pending.len()), (0, 1));
        assert_eq!(pending.pop_expired(now + MAX_WAIT), None);
        assert_eq!(pending.lone_rerankers(), 1);
        assert!(pending.is_empty() && pending.children.is_empty());
    }

    #[test]
    fn oldest_retrievals_are_counted_if_too_many_wait() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        let template = retriever(1, 9);
        let mut ready = Vec::new();
        for nth in 0..=MAX_WAITING as u64 {
            let mut retrieval = template.clone();
            retrieval.id.span = (nth + 10).to_be_bytes();
            ready.extend(pending.arrive(retrieval, now).ready);
        }
        assert_eq!(pending.len(), MAX_WAITING);
        assert_eq!(ready.len(), 1);
        assert_eq!(ready[0].id.span, 10_u64.to_be_bytes());
    }

    #[test]
    fn parts_leave_no_memory_behind() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        let template = retriever(1, 9);
        for nth in 0..10 * MAX_WAITING as u64 {
            let mut inner = template.clone();
            inner.id.span = (2 * nth + 10).to_be_bytes();
            let mut outer = template.clone();
            outer.id.span = (2 * nth + 11).to_be_bytes();
            outer.parent = None;
            inner.parent = Some(outer.id);
            pending.arrive(inner, now);
            assert_eq!(pending.arrive(outer, now).ready.len(), 1);
        }
        assert!(pending.order.len() <= 4 * MAX_WAITING);
        assert!(pending.is_empty() && pending.children.is_empty());
    }

    #[test]
    fn retrieval_that_was_put_back_is_the_next_one() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        pending.arrive(retriever(1, 9), now);
        pending.arrive(retriever(2, 9), now);
        let first = pending.pop_expired(now + MAX_WAIT).unwrap();
        pending.put_back(Box::new(first), now + MAX_WAIT);
        assert!(pending.arrive(retriever(1, 9), now).is_duplicate);
        let expired = std::iter::from_fn(|| pending.pop_expired(now + MAX_WAIT));
        assert_eq!(ids(&expired.collect::<Vec<_>>()), [1, 2]);
    }

    #[test]
    fn recent_spans_are_remembered_up_to_a_number() {
        let mut recent = Recent::default();
        let id = |nth: usize| SpanId {
            trace: [1; 16],
            span: (nth as u64).to_be_bytes(),
        };
        for nth in 0..=2 * MAX_RECENT {
            recent.insert(id(nth));
        }
        assert!(!recent.contains(id(0)));
        assert!((MAX_RECENT + 1..=2 * MAX_RECENT).all(|nth| recent.contains(id(nth))));
        assert!(recent.current.len() + recent.before.len() <= 2 * MAX_RECENT);
    }
}
