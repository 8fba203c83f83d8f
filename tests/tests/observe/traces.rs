//! The span of a request continues after its client has disconnected and the handler has become a separate task.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use futures_util::stream;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Fault, FaultyStore, PATIENCE, Runs, Server, alone, lock};
use tracing::field::{Field, Visit};
use tracing::{Event, Instrument, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Scope};

/// An event, and the spans around it, the outermost first.
#[derive(Clone, Debug)]
struct Seen {
    message: String,
    spans: Vec<(&'static str, u64)>,
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Seen>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Collector {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        let spans = context.event_scope(event).into_iter().flat_map(Scope::from_root);
        let spans = spans.map(|span| (span.name(), span.id().into_u64())).collect();
        lock(&self.0).push(Seen { message: message.0, spans });
    }
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// The collector of this process.
fn collector() -> &'static Collector {
    static COLLECTOR: OnceLock<Collector> = OnceLock::new();
    COLLECTOR.get_or_init(|| {
        let collector = Collector::default();
        let subscriber = tracing_subscriber::registry().with(collector.clone());
        tracing::subscriber::set_global_default(subscriber).expect("the first subscriber");
        collector
    })
}

/// The spans around these events of one request. All of the events must have been logged.
fn spans_of(messages: &[&str]) -> BTreeSet<Vec<(&'static str, u64)>> {
    let seen = lock(&collector().0).clone();
    let spans = messages.iter().map(|message| {
        let event = seen.iter().find(|seen| seen.message.contains(message));
        event.unwrap_or_else(|| panic!("no event `{message}` in {seen:#?}")).spans.clone()
    });
    spans.collect()
}

/// Creates a span for each request, like a router's trace middleware.
async fn traced(request: Request, next: Next) -> Response {
    next.run(request).instrument(tracing::info_span!("request")).await
}

#[idempotent(scope = "left-charges")]
async fn create_charge(State(runs): State<Runs>) -> Body {
    tracing::info!("the handler begins");
    runs.run().await;
    tracing::info!("the handler goes on");
    let parts = stream::unfold(0, |part| async move {
        // The rest of the body is not ready at once.
        tokio::task::yield_now().await;
        tracing::info!("part {part} of the body is made");
        (part < 2).then(|| (Ok::<_, std::io::Error>(Bytes::from_static(b"part")), part + 1))
    });
    Body::from_stream(parts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handler_without_client_keeps_the_spans_of_its_request() {
    if !alone(handler_without_client_keeps_the_spans_of_its_request) {
        return;
    }
    collector();
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let registry = Registry::new(store.clone());
    let app = Router::new().route("/", post(create_charge)).with_state(runs.clone());
    let server = Server::start(app.layer(from_fn(traced)).layer(registry.layer())).await;
    let request = b"POST / HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n";
    let connection = server.connect_and_send(request).await;
    runs.until_started(1).await;
    drop(connection);
    idempotent_tests::eventually(
        async || lock(&collector().0).iter().any(|seen| seen.message.contains("client disconnected")),
        |has_left| *has_left,
    )
    .await;
    store.on_complete(Fault::Unreachable);
    runs.let_finish(1);
    idempotent_tests::eventually(async || store.completions(), |&tried| tried > 0).await;
    store.on_complete(Fault::None);
    assert_eq!(registry.drain(PATIENCE).await, 0);
    let spans = spans_of(&[
        "the handler begins",
        "the client disconnected: the handler continues",
        "the handler goes on",
        "part 0 of the body is made",
        "part 2 of the body is made",
        "a guarded request has ended",
    ]);
    assert_eq!(spans.len(), 1, "all of them lie in the same spans: {spans:?}");
    let names: Vec<&str> = spans.into_iter().flatten().map(|(name, _)| name).collect();
    assert_eq!(names, ["request", "idempotent"]);
}
