//! Table of dialects: what each instrumentation writes into the span of a retrieval.
//!
//! A new dialect is one entry of [`DIALECTS`] and one captured request in `tests/fixtures/otlp`.
//! docs/opentelemetry.md lists what each framework sends.

use serde_json::value::RawValue;

use super::span::{Attributes, Span, Value};
use crate::http::wire::Fields;
use crate::rollup::ScoreDirection;

/// What a span is to its retrieval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Searches.
    Retriever,
    /// Scores the results of a search again. It is no retrieval of its own.
    Reranker,
}

/// What the spans of one kind of instrumentation look like.
#[derive(Debug)]
pub(super) struct Dialect {
    pub(super) role: Role,
    /// Tells these spans from all others.
    marker: Marker,
    /// Sources of the query. The first one with a text counts.
    query: &'static [Text],
    /// Sources of the count and the score. Of each, the first one that has it counts.
    results: &'static [Results],
    /// Attributes with the name of the strategy. The name of the span counts if all are absent.
    strategy: &'static [&'static str],
}

/// Mark of the spans of a dialect.
#[derive(Debug)]
enum Marker {
    /// The attribute has one of these values, in any case.
    Attribute(&'static str, &'static [&'static str]),
    /// A call to this database system. The last word of the span's name is one of these searches.
    Database(&'static str, &'static [&'static str]),
    /// The name of the span begins with this text.
    NamePrefix(&'static str),
}

/// Source of a text.
#[derive(Debug)]
enum Text {
    /// The attribute itself.
    Plain(&'static str),
    /// The text at a path in the JSON of an attribute.
    Json(&'static str, &'static [&'static str]),
}

/// Source of the number of results, or of their scores.
#[derive(Debug)]
enum Results {
    /// An attribute for each result: the prefix, an index, and the suffix of its score.
    Indexed(&'static str, &'static str),
    /// A score in the JSON of an attribute of each result, at one of the paths.
    IndexedJson(
        &'static str,
        &'static str,
        &'static [&'static [&'static str]],
    ),
    /// A list. Only its length is known.
    List(&'static str),
    /// A list in the JSON of an attribute, at a path, with the paths of the score in an element.
    Json(
        &'static str,
        &'static [&'static str],
        &'static [&'static [&'static str]],
    ),
    /// A number of results, in the attribute or in a list of numbers.
    Count(&'static str),
    /// A number of results at a path in the JSON of an attribute.
    JsonCount(&'static str, &'static [&'static str]),
    /// The best score.
    Score(&'static str, ScoreDirection),
    /// An event for each result, with the attribute of its score.
    Events(&'static str, &'static str, ScoreDirection),
}

const HIGHER: ScoreDirection = ScoreDirection::HigherIsBetter;
const LOWER: ScoreDirection = ScoreDirection::LowerIsBetter;

/// Attributes that hold the conversation, in any dialect.
const CONVERSATION: [&str; 3] = [
    "gen_ai.conversation.id",
    "session.id",
    "traceloop.association.properties.session_id",
];

/// Paths of the score in a document, whose metadata has it if the retriever puts it there.
const SCORE: &[&[&str]] = &[
    &["score"],
    &["metadata", "score"],
    &["metadata", "relevance_score"],
];
/// The same paths in the metadata alone.
const METADATA_SCORE: &[&[&str]] = &[&["score"], &["relevance_score"]];

/// Sources of OpenInference, which several frameworks fill differently.
const OPENINFERENCE_RESULTS: &[Results] = &[
    Results::Indexed("retrieval.documents.", "document.score"),
    Results::IndexedJson("retrieval.documents.", "document.metadata", METADATA_SCORE),
    Results::List("retrieval.documents"),
    Results::Json("output.value", &[], SCORE),
    Results::Json("output.value", &["documents"], SCORE),
];

/// All dialects. The first one whose marker fits counts, so that a span in two dialects is one
/// retrieval.
pub(super) const DIALECTS: &[Dialect] = &[
    // OpenInference, of LangChain, LlamaIndex, Haystack and others.
    Dialect {
        role: Role::Retriever,
        marker: Marker::Attribute("openinference.span.kind", &["RETRIEVER"]),
        query: &[
            Text::Json("input.value", &["query"]),
            Text::Json("input.value", &["query_bundle", "query_str"]),
            Text::Json("input.value", &["query_bundle"]),
            Text::Json("input.value", &["query_str"]),
            Text::Json("input.value", &["str_or_query_bundle"]),
            Text::Plain("input.value"),
        ],
        results: OPENINFERENCE_RESULTS,
        strategy: &[],
    },
    Dialect {
        role: Role::Reranker,
        marker: Marker::Attribute("openinference.span.kind", &["RERANKER"]),
        query: &[Text::Plain("reranker.query")],
        results: &[Results::Indexed(
            "reranker.output_documents.",
            "document.score",
        )],
        strategy: &["reranker.model_name"],
    },
    // The semantic conventions of OpenTelemetry for generative AI.
    Dialect {
        role: Role::Retriever,
        marker: Marker::Attribute("gen_ai.operation.name", &["retrieval"]),
        query: &[Text::Plain("gen_ai.retrieval.query.text")],
        results: &[
            Results::Json("gen_ai.retrieval.documents", &[], SCORE),
            Results::List("gen_ai.retrieval.documents"),
            Results::Count("db.response.returned_rows"),
        ],
        strategy: &["gen_ai.data_source.id", "gen_ai.provider.name"],
    },
    Dialect {
        role: Role::Retriever,
        marker: Marker::Attribute("gen_ai.operation.name", &["search_memory"]),
        query: &[Text::Plain("gen_ai.memory.query.text")],
        results: &[
            Results::Json("gen_ai.memory.records", &[], SCORE),
            Results::Count("gen_ai.memory.record.count"),
        ],
        strategy: &["gen_ai.memory.store.id", "gen_ai.memory.store.name"],
    },
    // OpenLLMetry, of LangChain and others.
    Dialect {
        role: Role::Retriever,
        marker: Marker::NamePrefix("vector_db_retrieve"),
        query: &[
            Text::Json("traceloop.entity.input", &["query"]),
            Text::Json("traceloop.entity.input", &["inputs", "query"]),
            Text::Plain("traceloop.entity.input"),
        ],
        results: &[
            Results::Json("traceloop.entity.output", &["documents"], SCORE),
            Results::JsonCount("traceloop.entity.output", &["count"]),
        ],
        strategy: &["traceloop.entity.name"],
    },
    // Vector databases with OpenLLMetry's instrumentations.
    Dialect {
        role: Role::Retriever,
        marker: Marker::Database("chroma", &["query"]),
        query: &[],
        results: &[
            Results::Count("db.response.returned_rows"),
            Results::Events("db.query.result", "db.query.result.distance", LOWER),
        ],
        strategy: &[
            "db.collection.name",
            "db.chroma.query.segment._query.collection_id",
        ],
    },
    Dialect {
        role: Role::Retriever,
        marker: Marker::Database("pinecone", &["query"]),
        query: &[],
        results: &[
            Results::Count("db.vector.query.result_count"),
            Results::Count("db.response.returned_rows"),
            Results::Score("db.vector.query.top_score", HIGHER),
            Results::Events("db.query.result", "db.query.result.score", HIGHER),
        ],
        strategy: &["db.collection.name", "server.address"],
    },
    Dialect {
        role: Role::Retriever,
        marker: Marker::Database("milvus", &["search", "query"]),
        query: &[],
        results: &[
            Results::Count("db.vector.query.result_count"),
            Results::Count("db.response.returned_rows"),
            Results::Score("db.vector.query.top_distance", LOWER),
            Results::Events("db.query.result", "db.query.result.distance", LOWER),
        ],
        strategy: &["db.collection.name", "db.milvus.search.collection_name"],
    },
    Dialect {
        role: Role::Retriever,
        marker: Marker::Database(
            "qdrant",
            &[
                "search",
                "query",
                "query_points",
                "recommend",
                "search_groups",
                "query_points_groups",
                "query_batch_points",
                "search_batch",
            ],
        ),
        query: &[],
        results: &[Results::Count("db.response.returned_rows")],
        strategy: &[
            "db.collection.name",
            "qdrant.search.collection_name",
            "qdrant.search_batch.collection_name",
        ],
    },
    Dialect {
        role: Role::Retriever,
        marker: Marker::Database(
            "weaviate",
            &[
                "get",
                "near_text",
                "near_vector",
                "hybrid",
                "bm25",
                "fetch_objects",
            ],
        ),
        query: &[],
        results: &[Results::Count("db.response.returned_rows")],
        strategy: &["db.collection.name"],
    },
];

/// What is known about a span before it is read: a scan of its name and of four attributes, without
/// an allocation. Nine of ten spans are no retrievals.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Scan<'a> {
    name: &'a [u8],
    openinference_kind: Option<&'a [u8]>,
    operation: Option<&'a [u8]>,
    database: Option<&'a [u8]>,
}

impl<'a> Scan<'a> {
    pub(super) fn set_name(&mut self, name: &'a [u8]) {
        self.name = name;
    }

    /// Returns `true` if the value of this attribute is needed.
    #[inline]
    pub(super) fn needs(key: &[u8]) -> bool {
        // Most keys have another length, which one comparison shows.
        match key.len() {
            9 => key == b"db.system",
            14 => key == b"db.system.name",
            21 => key == b"gen_ai.operation.name",
            23 => key == b"openinference.span.kind",
            _ => false,
        }
    }

    pub(super) fn set(&mut self, key: &[u8], value: &'a [u8]) {
        match key.len() {
            9 | 14 => self.database = Some(value),
            21 => self.operation = Some(value),
            _ => self.openinference_kind = Some(value),
        }
    }

    /// Returns the dialect of the span. `None`: it is no retrieval.
    pub(super) fn dialect(&self) -> Option<&'static Dialect> {
        DIALECTS.iter().find(|dialect| match &dialect.marker {
            Marker::Attribute(key, values) => {
                let value = match *key {
                    "openinference.span.kind" => self.openinference_kind,
                    _ => self.operation,
                };
                value.is_some_and(|value| {
                    values
                        .iter()
                        .any(|expected| value.eq_ignore_ascii_case(expected.as_bytes()))
                })
            }
            Marker::Database(system, words) => {
                let is_system = self
                    .database
                    .is_some_and(|value| value.eq_ignore_ascii_case(system.as_bytes()));
                is_system && words.iter().any(|word| self.last_word_is(word))
            }
            Marker::NamePrefix(prefix) => self.name.starts_with(prefix.as_bytes()),
        })
    }

    /// Returns `true` if the last word of the name is `word`, as in `qdrant.query_points`.
    fn last_word_is(&self, word: &str) -> bool {
        let rest = self.name.len().checked_sub(word.len());
        rest.and_then(|at| self.name.split_at_checked(at))
            .is_some_and(|(before, last)| {
                last.eq_ignore_ascii_case(word.as_bytes())
                    && before
                        .last()
                        .is_none_or(|byte| matches!(byte, b'.' | b' ' | b'/' | b':'))
            })
    }
}

/// Number of results and best score, as far as a span says.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Found {
    pub(super) count: Option<u64>,
    pub(super) score: Option<f32>,
    pub(super) direction: ScoreDirection,
}

impl Dialect {
    pub(super) fn query(&self, attributes: &Attributes<'_>) -> Option<String> {
        self.query.iter().find_map(|source| match source {
            Text::Plain(key) => attributes.text(key).map(str::to_owned),
            Text::Json(key, path) => {
                let value = json_at(attributes.text(key)?, path)?;
                let text: String = serde_json::from_str(value.get()).ok()?;
                Some(text).filter(|text| !text.is_empty())
            }
        })
    }

    pub(super) fn strategy<'s>(&self, span: &'s Span<'_>) -> &'s str {
        let named = self
            .strategy
            .iter()
            .find_map(|key| span.attributes.text(key));
        named.unwrap_or_else(|| without_method(&span.name))
    }

    pub(super) fn conversation<'s>(&self, attributes: &'s Attributes<'_>) -> Option<&'s str> {
        CONVERSATION.iter().find_map(|key| attributes.text(key))
    }

    pub(super) fn found(&self, span: &Span<'_>) -> Found {
        let mut found = Found::default();
        for source in self.results {
            let (count, scored) = source.read(span);
            found.count = found.count.or(count);
            if let (None, Some((score, direction))) = (found.score, scored) {
                (found.score, found.direction) = (Some(score), direction);
            }
        }
        found
    }
}

/// Names of the methods that frameworks append to the name of a retriever, for synchronous and
/// asynchronous callers.
const METHODS: [&str; 7] = [
    "._retrieve",
    "._aretrieve",
    ".retrieve",
    ".aretrieve",
    ".run",
    ".run_async",
    ".forward",
];

/// Removes the name of a method, so that all methods of a retriever are one strategy.
fn without_method(name: &str) -> &str {
    let method = METHODS.iter().find_map(|method| name.strip_suffix(method));
    let name = method.unwrap_or(name);
    name.strip_prefix("vector_db_retrieve ").unwrap_or(name)
}

impl Results {
    /// Returns the number of results, and the best score with its direction.
    fn read(&self, span: &Span<'_>) -> (Option<u64>, Option<(f32, ScoreDirection)>) {
        let attributes = &span.attributes;
        match self {
            Self::Indexed(prefix, suffix) => {
                let (count, score) = indexed(attributes, prefix, suffix);
                // No attribute is no evidence that there was no result.
                (
                    Some(count).filter(|count| *count > 0),
                    score.map(|score| (score, HIGHER)),
                )
            }
            Self::IndexedJson(prefix, suffix, paths) => {
                let scores = attributes.0.iter().filter_map(|(key, value)| {
                    let (_, field) = key.strip_prefix(prefix)?.split_once('.')?;
                    score_at(value.text().filter(|_| field == *suffix)?, paths)
                });
                let best = scores.reduce(|one, other| HIGHER.better(one, other));
                (None, best.map(|score| (score, HIGHER)))
            }
            Self::List(key) => match attributes.get(key) {
                Some(Value::List(_, length)) => (Some(*length as u64), None),
                _ => (None, None),
            },
            Self::Json(key, path, scores) => {
                let list = attributes.text(key).and_then(|text| json_at(text, path));
                let elements: Option<Vec<&RawValue>> =
                    list.and_then(|list| serde_json::from_str(list.get()).ok());
                let Some(elements) = elements else {
                    return (None, None);
                };
                let scores = elements
                    .iter()
                    .filter_map(|element| score_at(element.get(), scores));
                let best = scores.reduce(|one, other| HIGHER.better(one, other));
                (
                    Some(elements.len() as u64),
                    best.map(|score| (score, HIGHER)),
                )
            }
            Self::Count(key) => (count(attributes, key), None),
            Self::JsonCount(key, path) => {
                let count = attributes.text(key).and_then(|text| json_at(text, path));
                (count.and_then(|count| count.get().parse().ok()), None)
            }
            Self::Score(key, direction) => {
                let score = values(attributes, key).filter_map(|value| as_score(value.number()?));
                let best = score.reduce(|one, other| direction.better(one, other));
                (None, best.map(|score| (score, *direction)))
            }
            Self::Events(name, key, direction) => {
                let events = span.events.iter().filter(|event| event.name == *name);
                let scores = events
                    .clone()
                    .filter_map(|event| as_score(event.attributes.get(key)?.number()?));
                let best = scores.reduce(|one, other| direction.better(one, other));
                let count = events.count() as u64;
                (
                    Some(count).filter(|count| *count > 0),
                    best.map(|score| (score, *direction)),
                )
            }
        }
    }
}

/// Counts the results with attributes of their own, and returns the best of their scores.
fn indexed(attributes: &Attributes<'_>, prefix: &str, suffix: &str) -> (u64, Option<f32>) {
    let (mut count, mut best) = (0, None);
    for (key, value) in &attributes.0 {
        let Some((index, field)) = key
            .strip_prefix(prefix)
            .and_then(|rest| rest.split_once('.'))
        else {
            continue;
        };
        let Ok(index) = index.parse::<u32>() else {
            continue;
        };
        count = count.max(u64::from(index) + 1);
        if field == suffix
            && let Some(score) = value.number().and_then(as_score)
        {
            best = Some(best.map_or(score, |best| HIGHER.better(best, score)));
        }
    }
    (count, best)
}

/// Returns the sum of the attribute's numbers: some senders write one for each query vector, as a
/// list or in attributes with an index.
fn count(attributes: &Attributes<'_>, key: &str) -> Option<u64> {
    let counts = values(attributes, key).filter_map(Value::count);
    counts.reduce(u64::saturating_add)
}

/// Returns the values of an attribute, of the elements of its list, and of the attributes with an
/// index after its name.
fn values<'s, 'a>(
    attributes: &'s Attributes<'a>,
    key: &'s str,
) -> impl Iterator<Item = &'s Value<'a>> {
    let named = attributes.0.iter().filter(move |(name, _)| {
        name.strip_prefix(key).is_some_and(|rest| {
            let index = rest.trim_start_matches(['.', '_']);
            rest.is_empty() || index.bytes().all(|byte| byte.is_ascii_digit())
        })
    });
    named.flat_map(|(_, value)| match value {
        Value::List(elements, _) => elements.as_slice(),
        value => std::slice::from_ref(value),
    })
}

/// Returns the value at a path in JSON.
fn json_at<'a>(json: &'a str, path: &[&str]) -> Option<&'a RawValue> {
    let mut value: &'a RawValue = serde_json::from_str(json).ok()?;
    for name in path {
        let Fields(fields) = serde_json::from_str(value.get()).ok()?;
        let found = fields.into_iter().rev().find(|(field, _)| field == name);
        value = found?.1;
    }
    Some(value)
}

/// Returns the score at the first of the paths that has one.
fn score_at(json: &str, paths: &[&[&str]]) -> Option<f32> {
    paths.iter().find_map(|path| {
        let score = json_at(json, path)?.get();
        as_score(score.trim_matches('"').parse().ok()?)
    })
}

/// Returns a score as the log stores it. NaN, infinities and numbers beyond `f32` are none.
#[expect(clippy::cast_possible_truncation, reason = "scores are stored as f32")]
fn as_score(number: f64) -> Option<f32> {
    Some(number as f32).filter(|score| score.is_finite())
}
