//! With OpenTelemetry, the span of a replay links to the span in which its response was made.

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Server, alone};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use tracing::Instrument;
use tracing_subscriber::layer::SubscriberExt;

#[idempotent(scope = "linked-charges")]
async fn create_charge() {}

/// Each request starts a new trace.
async fn traced(request: Request, next: Next) -> Response {
    next.run(request).instrument(tracing::info_span!(parent: None, "request")).await
}

#[tokio::test]
async fn the_span_of_a_replay_links_to_the_one_that_made_its_response() {
    if !alone(the_span_of_a_replay_links_to_the_one_that_made_its_response) {
        return;
    }
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("tests"));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).expect("the first subscriber");
    let app = Router::new().route("/", post(create_charge)).layer(from_fn(traced));
    let server = Server::start(app.layer(Registry::new(MemoryStore::new()).layer())).await;
    server.post_with_key("/", "k").await;
    assert!(server.post_with_key("/", "k").await.is_replay());
    provider.force_flush().expect("the spans are there");
    let spans = exporter.get_finished_spans().expect("the spans are there");
    let guarded: Vec<_> = spans.iter().filter(|span| span.name == "idempotent").collect();
    let [first, replay] = guarded[..] else { panic!("two requests: {spans:#?}") };
    let (made, replayed) = (&first.span_context, &replay.span_context);
    assert_ne!(made.trace_id(), replayed.trace_id());
    assert!(first.links.links.is_empty(), "{first:?}");
    let links: Vec<_> = replay.links.iter().map(|link| &link.span_context).collect();
    let [link] = links[..] else { panic!("one link: {replay:?}") };
    assert_eq!((link.trace_id(), link.span_id()), (made.trace_id(), made.span_id()));
    let recorded_by = replay.attributes.iter().find(|attribute| attribute.key.as_str() == "idempotency.recorded_by");
    assert_eq!(recorded_by.map(|attribute| attribute.value.to_string()), Some(made.trace_id().to_string()));
}
