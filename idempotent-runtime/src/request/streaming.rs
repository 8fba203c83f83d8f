//! A response that is sent while it is recorded: its frames are sent as they come, and its end when its record is
//! durable.
//!
//! A task reads the handler's body. So a slow client, or a client that disconnects, does not hold the key for longer
//! than the handler needs.

use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use axum::BoxError;
use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::BodyExt;
use tracing::Instrument;

use crate::deadline::Deadline;
use crate::observe::telemetry::Outcome;
use crate::policy::Policy;
use crate::policy::values::Oversize;
use crate::record::{Record, RecordedBody, now_in_millis};
use crate::request::body::Resumed;
use crate::request::coverage::polled_in_each_poll;
use crate::request::respond::Panic;
use crate::request::response_mark::remove_from;
use crate::request::settle::Claimed;
use crate::store::claim::Held;
use crate::sync::tokio::sync::Notify;
use crate::sync::{Mutex, lock};

/// Sends the response while it is recorded. The claim ends before the body does.
pub(super) fn stream(claimed: Box<Claimed>, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let record = claimed.run.classifier.record(&parts, RecordedBody::Whole(Bytes::new()), None);
    let span = claimed.run.span.clone();
    let passage = Arc::new(Passage::default());
    let recording = Recording { claimed, record, client: Client(Arc::clone(&passage)) };
    crate::sync::tokio::spawn(Box::pin(recording.run(body)).instrument(span));
    Response::from_parts(parts, Body::new(StreamedBody { passage, rest: None }))
}

/// The part that follows the recorded data.
enum Last {
    /// The rest of the body. It is not recorded, and the claim has ended.
    Rest(Body),
    /// The response is complete, and recorded.
    End(Option<HeaderMap>),
    Broken(BoxError),
}

/// The buffer between the task that reads the handler's body and the body of the client.
#[derive(Default)]
struct Passage {
    state: Mutex<Passed>,
    left: Notify,
}

#[derive(Default)]
struct Passed {
    data: BytesMut,
    /// The number of bytes that the client has received.
    taken: usize,
    last: Option<Last>,
    waiting: Option<Waker>,
}

/// The task's side of the passage.
struct Client(Arc<Passage>);

impl Client {
    fn received_bytes(&self) -> usize {
        lock(&self.0.state).data.len()
    }

    fn push(&self, chunk: &[u8]) {
        self.change(|passed| passed.data.extend_from_slice(chunk));
    }

    /// Returns a copy of all data.
    fn data(&self) -> Bytes {
        Bytes::copy_from_slice(&lock(&self.0.state).data)
    }

    fn end(&self, last: Last) {
        self.change(|passed| {
            passed.last.get_or_insert(last);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Passed)) {
        let mut passed = lock(&self.0.state);
        change(&mut passed);
        let waiting = passed.waiting.take();
        drop(passed);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Resolves when the client has disconnected.
    async fn has_left(&self) {
        self.0.left.notified().await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // If no end was set before, the runtime of the task has ended.
        self.end(Last::Broken("the response was not recorded to its end".into()));
    }
}

/// The result of reading the handler's body.
enum Read {
    Whole(Option<HeaderMap>),
    /// Contains the rest of the body for the client.
    TooLarge(Body),
    Broken(BoxError),
    /// The client has disconnected, and the time for reading the rest is over.
    Left,
}

struct Recording {
    claimed: Box<Claimed>,
    /// The record, without the body.
    record: Record,
    client: Client,
}

impl Recording {
    async fn run(self, body: Body) {
        let guard = &self.claimed.run.guard;
        let reading = polled_in_each_poll(guard.execution(), self.read(body));
        // A body is the handler's own code and may panic.
        let read = AssertUnwindSafe(reading).catch_unwind().await;
        self.end(read).await;
    }

    /// Passes the frames on, and keeps their data.
    async fn read(&self, mut body: Body) -> Read {
        let policy = self.policy();
        let mut is_over = pin!(async {
            self.client.has_left().await;
            Deadline::after(policy.lease()).reached().await;
        });
        loop {
            let frame = tokio::select! {
                biased;
                () = &mut is_over => return Read::Left,
                frame = body.frame() => frame,
            };
            let frame = match frame {
                None => return Read::Whole(None),
                Some(Err(error)) => return Read::Broken(error.into()),
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(chunk) if self.client.received_bytes() + chunk.len() > policy.max_body() => {
                    return Read::TooLarge(Body::new(Resumed::new([Ok(Frame::data(chunk))], body)));
                }
                Ok(chunk) => self.client.push(&chunk),
                // Trailers are the last frame, and end the response for the client.
                Err(frame) => {
                    if let Ok(mut trailers) = frame.into_trailers() {
                        remove_from(&mut trailers);
                        return Read::Whole(Some(trailers));
                    }
                }
            }
            // A body that is always ready must not keep its client from reading.
            tokio::task::consume_budget().await;
        }
    }

    /// Ends the claim, and then the client's body.
    async fn end(self, read: Result<Read, Panic>) {
        let may_run_again = self.policy().oversize() == Oversize::Rerun;
        let (outcome, last) = match read {
            Ok(Read::Whole(trailers)) => {
                let Self { claimed, mut record, client } = self;
                let lines = trailers.iter().flat_map(|trailers| claimed.run.classifier.trailer_lines(trailers));
                record.headers.extend(lines);
                record.body = RecordedBody::Whole(client.data());
                return finish(claimed, record, Outcome::Recorded, &client, Last::End(trailers)).await;
            }
            Ok(Read::TooLarge(rest)) => (Outcome::TooLarge, Last::Rest(rest)),
            Ok(Read::Left) => (Outcome::TooLarge, Last::Broken("the rest of the response was not read".into())),
            Ok(Read::Broken(error)) => (Outcome::Broken, Last::Broken(error)),
            Err(_) => {
                self.claimed.end_without_record(true, Outcome::Panicked).await;
                self.client.end(Last::Broken("the body of the response panicked".into()));
                return;
            }
        };
        let Self { claimed, record, client } = self;
        if may_run_again && matches!(outcome, Outcome::TooLarge) {
            claimed.end_without_record(false, outcome).await;
            client.end(last);
        } else {
            finish(claimed, record.without_response(), outcome, &client, last).await;
        }
    }

    fn policy(&self) -> &Policy {
        &self.claimed.run.classifier.policy
    }
}

/// Ends the claim with this record, and then the client's body with `last`.
async fn finish(claimed: Box<Claimed>, record: Record, outcome: Outcome, client: &Client, last: Last) {
    let last = match claimed.end_with_record(Record { recorded_at: now_in_millis(), ..record }, outcome).await {
        Held::Yes => last,
        // A retry may get the response of another attempt, and a key must have only one response.
        Held::No => Last::Broken("the claim of the request was lost, so its response must not be complete".into()),
    };
    client.end(last);
}

/// The body of a response that is sent while it is recorded.
struct StreamedBody {
    passage: Arc<Passage>,
    /// The part of the body that is sent without being recorded. After the end, an empty body.
    rest: Option<Body>,
}

/// In bytes.
const LARGEST_FRAME: usize = 64 * 1024;

impl http_body::Body for StreamedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(rest) = &mut self.rest {
            return Pin::new(rest).poll_frame(cx).map_err(Into::into);
        }
        let last = {
            let mut passed = lock(&self.passage.state);
            let end = passed.data.len().min(passed.taken + LARGEST_FRAME);
            let frame = Bytes::copy_from_slice(&passed.data[passed.taken..end]);
            passed.taken = end;
            if !frame.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
            let Some(last) = passed.last.take() else {
                passed.waiting = Some(cx.waker().clone());
                return Poll::Pending;
            };
            passed.data = BytesMut::new();
            passed.taken = 0;
            last
        };
        self.rest = Some(Body::empty());
        match last {
            Last::Rest(rest) => {
                self.rest = Some(rest);
                self.poll_frame(cx)
            }
            Last::End(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Last::Broken(error) => Poll::Ready(Some(Err(error))),
        }
    }
}

impl Drop for StreamedBody {
    fn drop(&mut self) {
        self.passage.left.notify_one();
    }
}
