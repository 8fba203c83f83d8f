//! The future that survives its caller, alone and under every schedule: one task at a time polls it, and it is polled
//! to its end.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::response::Response;
use futures_util::future::select;

use crate::concurrency_tests::explore::every_schedule;
use crate::request::completion::Completion;
use crate::request::context::Execution;
use crate::sync::tokio;
use crate::sync::tokio::sync::oneshot;

// A future that is handed over at its current point, and not started again, must survive this:
//   the client's task polls the handler, which waits for an answer
//   the client leaves                             | the answer comes: it wakes the client's task
//   the client's task drops the handler           |
//   the rest is spawned, and polled by a new task, which must find the answer that woke the old one
#[test]
fn a_handler_that_is_dropped_while_it_is_woken_ends_once() {
    every_schedule(200_000, async || {
        let (ended, execution) = (Arc::<AtomicUsize>::default(), Arc::<Execution>::default());
        let (answer, answered) = oneshot::channel();
        let (leave, left) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let running = {
            let (ended, execution) = (Arc::clone(&ended), Arc::clone(&execution));
            Box::pin(async move {
                execution.run.detach_state.set_must_finish(true);
                answered.await.expect("the answer comes");
                ended.fetch_add(1, Ordering::Relaxed);
                tell.send(()).expect("the test waits for it");
                Response::default()
            })
        };
        let completion = Completion::new(running, Some(Arc::clone(&execution)));
        let client = tokio::spawn(async move {
            let mut completion = completion;
            select(&mut completion, pin!(left)).await;
        });
        let answering = tokio::spawn(async move { answer.send(()) });
        leave.send(()).unwrap_or(());
        told.await.expect("the handler ends");
        client.await.expect("the task is not aborted");
        answering.await.expect("the task is not aborted").expect("the handler takes the answer");
        assert_eq!(ended.load(Ordering::Relaxed), 1);
    });
}
