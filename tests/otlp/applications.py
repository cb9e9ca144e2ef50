"""Runs a small application whose retrievals are traced: `applications.py NAME ENDPOINT [--json]`.

Each application makes five retrievals: a hit, a low score, an empty result, an error and a timeout. A sixth shows a
trap of its framework. The spans go to ENDPOINT/v1/traces as protobuf, and with `--json` also as OTLP/JSON. The
instrumentations, frameworks and exporters are released packages, see `requirements.txt`. `applications.py` alone
lists the names.
"""

import os
import socket
import sys

# Frameworks and SDK read these when they are imported.
os.environ.update(
    ANONYMIZED_TELEMETRY="False",
    HAYSTACK_TELEMETRY_ENABLED="False",
    LANGCHAIN_TRACING_V2="false",
    LANGSMITH_TRACING="false",
    TRACELOOP_TRACE_CONTENT="true",
)
for variable in list(os.environ):
    # The spans go to ENDPOINT alone, as they are, without attributes of this machine.
    if variable.startswith("OTEL_") or variable.lower().endswith("_proxy"):
        del os.environ[variable]

from opentelemetry.exporter.otlp.json.http.trace_exporter import OTLPSpanExporter as JsonExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as ProtobufExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

HIT = "where is the key to Müller's office? 🔑"
LOW = "how is bread baked?"
EMPTY = "which documents does nobody own?"
ERROR = "query while the embedding service is down"
TIMEOUT = "query while the embedding service is slow"

DOCUMENTS = {"doc-1": "The key to Müller's office is in the blue box.", "doc-2": "The office opens at nine."}
VECTORS = {
    DOCUMENTS["doc-1"]: [1.0, 0.0],
    DOCUMENTS["doc-2"]: [0.8, -0.6],
    # The cosine similarities are 1.0 and 0.8.
    HIT: [1.0, 0.0],
    # The cosine similarities are 0.28 and -0.352.
    LOW: [0.28, 0.96],
    EMPTY: [1.0, 0.0],
}
CONVERSATION = "conversation-7"
applications = {}


def application(name):
    """Registers an application. It gets the tracer provider."""

    def register(run):
        applications[name] = run
        return run

    return register


def embed(text):
    """Embeds a text in two dimensions, and fails as an embedding service does."""
    if text == ERROR:
        raise ConnectionError("cannot embed the query: the service refused the connection")
    if text == TIMEOUT:
        raise TimeoutError("cannot embed the query: no response within 2 s")
    return VECTORS[text]


def attempt(retrieve, *arguments, **options):
    """Makes a retrieval, and lets a failure pass: the spans have it."""
    try:
        return retrieve(*arguments, **options)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)


# LangChain


def langchain_retrievals():
    from langchain_core.embeddings import Embeddings
    from langchain_core.runnables import RunnableLambda
    from langchain_core.vectorstores import InMemoryVectorStore

    class Embedder(Embeddings):
        def embed_documents(self, texts):
            return [embed(text) for text in texts]

        def embed_query(self, text):
            return embed(text)

    def store(documents):
        made = InMemoryVectorStore(Embedder())
        made.add_texts(list(documents.values()), ids=list(documents))
        return made

    retriever = store(DOCUMENTS).as_retriever()
    context = retriever | RunnableLambda(lambda found: "\n".join(document.page_content for document in found))
    conversation = {"metadata": {"session_id": CONVERSATION}}
    # The hit is a step of a chain, whose other spans are no retrievals.
    attempt(context.invoke, HIT, config=conversation)
    # InMemoryVectorStore does not give a retriever its scores: nothing shows that this one is low.
    attempt(retriever.invoke, LOW, config=conversation)
    attempt(store({}).as_retriever().invoke, EMPTY, config=conversation)
    attempt(retriever.invoke, ERROR, config=conversation)
    attempt(retriever.invoke, TIMEOUT, config=conversation)
    # A sixth: LangChain's documentation shows a custom retriever that puts scores into the metadata.
    attempt(scored_retriever(store(DOCUMENTS)).invoke, LOW, config=conversation)


def scored_retriever(store):
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore

    class ScoredRetriever(BaseRetriever):
        store: VectorStore

        def _get_relevant_documents(self, query, *, run_manager):
            documents = []
            for document, score in self.store.similarity_search_with_score(query):
                document.metadata["score"] = score
                documents.append(document)
            return documents

    return ScoredRetriever(store=store)


@application("langchain-openinference")
def langchain_openinference(provider):
    from openinference.instrumentation.langchain import LangChainInstrumentor

    LangChainInstrumentor().instrument(tracer_provider=provider)
    langchain_retrievals()


@application("langchain-genai")
def langchain_genai(provider):
    capture_content()
    from opentelemetry.instrumentation.genai.langchain import LangChainInstrumentor

    LangChainInstrumentor().instrument(tracer_provider=provider)
    langchain_retrievals()


@application("langchain-openllmetry")
def langchain_openllmetry(provider):
    from opentelemetry.instrumentation.langchain import LangchainInstrumentor

    LangchainInstrumentor().instrument(tracer_provider=provider)
    langchain_retrievals()


def capture_content():
    """Switches on what the GenAI instrumentations leave out by default: queries and documents."""
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"
    os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "SPAN_ONLY"


# LlamaIndex


def llamaindex_retrievals():
    from llama_index.core import VectorStoreIndex
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.llms import MockLLM
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import ExactMatchFilter, MetadataFilters

    class Embedder(BaseEmbedding):
        def _get_query_embedding(self, query):
            return embed(query)

        def _get_text_embedding(self, text):
            return embed(text)

        async def _aget_query_embedding(self, query):
            return embed(query)

    nodes = [TextNode(id_=id, text=text, metadata={"owner": "office"}) for id, text in DOCUMENTS.items()]
    # The metadata is no part of the text that is embedded.
    for node in nodes:
        node.excluded_embed_metadata_keys = ["owner"]
    index = VectorStoreIndex(nodes, embed_model=Embedder(model_name="two-dimensions"))
    retriever = index.as_retriever()
    # The hit is a step of a query engine, whose other spans are no retrievals.
    attempt(index.as_query_engine(llm=MockLLM(max_tokens=8)).query, HIT)
    attempt(retriever.retrieve, LOW)
    nobody = MetadataFilters(filters=[ExactMatchFilter(key="owner", value="nobody")])
    attempt(index.as_retriever(filters=nobody).retrieve, EMPTY)
    attempt(retriever.retrieve, ERROR)
    attempt(retriever.retrieve, TIMEOUT)
    # A sixth: the spans of asynchronous retrievals have other names.
    attempt(asynchronously, retriever.aretrieve, HIT)


def asynchronously(retrieve, query):
    import asyncio

    async def run():
        return await retrieve(query)

    return asyncio.run(run())


@application("llamaindex-openinference")
def llamaindex_openinference(provider):
    from openinference.instrumentation import using_session
    from openinference.instrumentation.llama_index import LlamaIndexInstrumentor

    LlamaIndexInstrumentor().instrument(tracer_provider=provider)
    with using_session(CONVERSATION):
        llamaindex_retrievals()


@application("llamaindex-genai")
def llamaindex_genai(provider):
    capture_content()
    llamaindex_genai_nocontent(provider)


@application("llamaindex-genai-nocontent")
def llamaindex_genai_nocontent(provider):
    from opentelemetry.instrumentation.genai.llama_index import LlamaIndexInstrumentor

    LlamaIndexInstrumentor().instrument(tracer_provider=provider)
    llamaindex_retrievals()


# Haystack


@application("haystack-openinference")
def haystack_openinference(provider):
    from haystack import Document, Pipeline
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore
    from openinference.instrumentation import using_session
    from openinference.instrumentation.haystack import HaystackInstrumentor

    class Store(InMemoryDocumentStore):
        """Fails as a remote store does. The store in memory has no failures of its own."""

        def bm25_retrieval(self, query, *arguments, **options):
            if query in (ERROR, TIMEOUT):
                embed(query)
            return super().bm25_retrieval(query, *arguments, **options)

    HaystackInstrumentor().instrument(tracer_provider=provider)
    store = Store(index="office")
    store.write_documents([Document(id=id, content=text) for id, text in DOCUMENTS.items()])
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store))
    with using_session(CONVERSATION):
        # The hit is a step of a pipeline, whose other span is no retrieval.
        attempt(pipeline.run, {"retriever": {"query": HIT}})
        retriever = InMemoryBM25Retriever(store)
        # No document has more than one of these words.
        attempt(retriever.run, query="who opens bread?")
        attempt(retriever.run, query=EMPTY, filters={"field": "meta.owner", "operator": "==", "value": "nobody"})
        attempt(retriever.run, query=ERROR)
        attempt(retriever.run, query=TIMEOUT)
        # A sixth: the pipeline around a failed retrieval fails, too, with an exception of its own.
        attempt(pipeline.run, {"retriever": {"query": TIMEOUT}})


# Vector databases


@application("chroma-openllmetry")
def chroma_openllmetry(provider):
    import chromadb
    from opentelemetry.instrumentation.chromadb import ChromaInstrumentor

    class Embedder(chromadb.EmbeddingFunction):
        def __init__(self):
            pass

        def __call__(self, input):
            return [embed(text) for text in input]

    ChromaInstrumentor().instrument(tracer_provider=provider)
    settings = chromadb.Settings(anonymized_telemetry=False)
    options = {"embedding_function": Embedder(), "metadata": {"hnsw:space": "cosine"}}
    collection = chromadb.EphemeralClient(settings).create_collection("office", **options)
    metadatas = [{"owner": "office"} for _ in DOCUMENTS]
    collection.add(ids=list(DOCUMENTS), documents=list(DOCUMENTS.values()), metadatas=metadatas)
    # The cosine distances are 0.0 and 0.2.
    attempt(collection.query, query_texts=[HIT], n_results=2)
    # The cosine distances are 0.72 and 1.352.
    attempt(collection.query, query_texts=[LOW], n_results=2)
    attempt(collection.query, query_texts=[EMPTY], n_results=2, where={"owner": "nobody"})
    # The collection has two dimensions: an error of Chroma itself.
    attempt(collection.query, query_embeddings=[[1.0, 0.0, 0.0]], n_results=2)
    attempt(collection.query, query_texts=[TIMEOUT], n_results=2)
    # A sixth: two queries in one span, which does not say which result belongs to which query.
    attempt(collection.query, query_texts=[HIT, LOW], n_results=1)


@application("qdrant-openllmetry")
def qdrant_openllmetry(provider):
    from opentelemetry.instrumentation.qdrant import QdrantInstrumentor
    from qdrant_client import QdrantClient, models

    QdrantInstrumentor().instrument(tracer_provider=provider)
    client = QdrantClient(":memory:")
    vectors = models.VectorParams(size=2, distance=models.Distance.COSINE)
    client.create_collection("office", vectors_config=vectors)
    points = [
        models.PointStruct(id=number, vector=embed(text), payload={"text": text, "owner": "office"})
        for number, text in enumerate(DOCUMENTS.values(), 1)
    ]
    client.upsert("office", points=points)
    attempt(client.query_points, "office", query=embed(HIT), limit=2)
    attempt(client.query_points, "office", query=embed(LOW), limit=2)
    nobody = models.Filter(must=[models.FieldCondition(key="owner", match=models.MatchValue(value="nobody"))])
    attempt(client.query_points, "office", query=embed(EMPTY), query_filter=nobody, limit=2)
    # An error of Qdrant itself.
    attempt(client.query_points, "cellar", query=embed(HIT), limit=2)
    # Qdrant in memory has no timeouts. Its HTTP client has: the server accepts the connection and never responds. The
    # exception is no TimeoutError.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        slow = QdrantClient(url=f"http://127.0.0.1:{port}", timeout=1, check_compatibility=False)
        attempt(slow.query_points, "office", query=embed(HIT), limit=2)
    # A sixth: two queries in one span.
    attempt(client.query_batch_points, "office", requests=[models.QueryRequest(query=embed(HIT), limit=1)] * 2)


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--json"]
    if not arguments:
        print("\n".join(applications))
        return
    name, endpoint = arguments
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    exporters = [ProtobufExporter] + ([JsonExporter] if "--json" in sys.argv else [])
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter(endpoint=f"{endpoint}/v1/traces")))
    applications[name](provider)
    provider.shutdown()


if __name__ == "__main__":
    main()
